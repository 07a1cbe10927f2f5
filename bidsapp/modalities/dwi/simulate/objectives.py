"""What a network is pretrained from: an objective's tasks, and scanners that never run dry."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from bidsapp import registry
from bidsapp.learn.splits import SPLITS
from bidsapp.modalities.dwi.physics import qspace
from bidsapp.problems import MissingInput
from bidsapp.simulate.material import Material
from bidsapp.simulate.template_head import kept_template

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from bidsapp.core import Case, Task
    from bidsapp.modalities.dwi.simulate.auxiliary import Run
    from bidsapp.simulate.stream import Scan, Scanner

#: What each objective teaches.
OBJECTIVES = {
    'restore': 'undo what artefacts and noise did to the canonical input',
    'autoencoder': 'give back the canonical input of uncorrupted scans, half of it unseen',
    'supervised': 'do every task at once, by the truth of simulated brains',
    'auxiliary': 'tell NODDI of the full scan from fewer directions and coarser voxels',
}
#: What the simulator draws (`simulate.corruption`, `simulate.blocks`), and tests are drawn from.
SIMULATED = {'directions': [6, 135], 'shells': [1, 3], 'b': [[700, 3300]], 'voxel_mm': [1.0, 4.5],
             'snr': [6, 40]}  # fmt: skip


def tasks_of(objective: str, named: Sequence[str] = ()) -> tuple[Task, ...]:
    """What an objective teaches; ``named`` tasks only, where it teaches them all."""
    if objective == 'supervised':
        return tuple(registry.get(name) for name in named or registry.names())
    if objective == 'auxiliary':
        return (registry.get('microstructure'),)
    restore = registry.get('restore')
    return (restore if objective == 'restore' else replace(restore, name='autoencoder'),)


def simulated(objective: str, named: Sequence[str], seed: int, side: int, kept: Path) -> Material:
    """Endless simulated brains, of another seed for each split; ``kept`` holds the template."""
    from bidsapp.modalities.dwi.simulate.simulator import Simulator

    template = kept_template(kept)
    corrupt = objective != 'autoencoder'
    scanners = {
        name: Simulator(template, len(SPLITS) * seed + k, side, corrupt)
        for k, name in enumerate(SPLITS)
    }
    return Material(
        tasks_of(objective, named),
        facing(objective, scanners),
        {'brains': 'simulated; those that test are of another seed'},
        SIMULATED,
        license='Apache-2.0',
    )


def auxiliary(
    objective: str, cases: Mapping[str, Sequence[Case]], seed: int, side: int, kept: Path
) -> Material:
    """Poorer scans of an auxiliary dataset's runs by split; ``kept`` holds their shells.

    Raises MissingInput if a split has no run that the objective can use.
    """
    from bidsapp.modalities.dwi.simulate.auxiliary import (
        LONGEST_VOXEL,
        Auxiliary,
        keep_run,
        open_run,
    )

    least = 2 if objective == 'auxiliary' else 1
    runs: dict[str, list[Run]] = {}
    for name, part in cases.items():
        opened = [open_run(keep_run(case, kept)) for case in part]
        runs[name] = [run for run in opened if len(run.slots) >= least]
        if not runs[name]:
            raise MissingInput(
                f'No {name} run has shells in {least} of the ranges of b '
                f'{", ".join(f"{low:g} to {high:g}" for low, high in qspace.SLOTS)} s/mm2, which '
                f'the objective {objective} needs. Preprocess participants that have.'
            )
    scanners = {
        name: Auxiliary(part, len(SPLITS) * seed + k, side, objective != 'autoencoder', least)
        for k, (name, part) in enumerate(runs.items())
    }
    everyone = [run for part in runs.values() for run in part]
    slots = sorted({slot for run in everyone for slot in run.slots})
    shells = sorted({b for run in everyone for part in run.slots.values() for b in part})
    edges = [edge for run in everyone for edge in run.voxel_mm]
    most = max(min(len(run.slots), len(slots)) for run in everyone)
    ranges = {
        'directions': [6 * least, (100, 120, 135)[most - 1]],
        'shells': [least, most],
        'b': [[b, b] for b in shells],
        'voxel_mm': [min(edges), max(LONGEST_VOXEL, *edges)],
        'snr': SIMULATED['snr'],
    }
    about = {
        'brains': 'auxiliary dataset, in coarser voxels, interpolated in q-space, and corrupted',
        'participants': {name: len({c.subject for c in part}) for name, part in cases.items()},
    }
    return Material(tasks_of(objective), facing(objective, scanners), about, ranges, slots)


#: Voxels along the edge of a cell, and the share of cells that are hidden from an autoencoder.
CELL, HIDDEN = 4, 0.5


@dataclass(frozen=True, slots=True)
class Mirror:
    """A scanner whose every scan is its own target: harmonics of the input, and flags of slots.

    Half of it is hidden from the network, in cells. A network whose heads see the voxel's own input
    would copy what is there and learn nothing; what is hidden has to be known from around.
    """

    scanner: Scanner

    def scan(self, number: int) -> Scan:
        """Scan number ``number`` with the target of an autoencoder."""
        import torch

        from bidsapp.modalities.dwi.tasks.restore import CHANNELS

        scan = self.scanner.scan(number)
        filled = scan.targets['restore'][CHANNELS:]
        target = torch.cat([qspace.input_harmonics(scan.image), filled])
        cells = [-(-side // CELL) for side in scan.mask.shape[1:]]
        shown = torch.rand(cells, generator=torch.Generator().manual_seed(number)) > HIDDEN
        for axis, side in enumerate(scan.mask.shape[1:]):
            shown = shown.repeat_interleave(CELL, axis).narrow(axis, 0, side)
        return replace(scan, image=scan.image * shown, targets={'autoencoder': target})


def facing(objective: str, scanners: Mapping[str, Scanner]) -> dict[str, Scanner]:
    """The scanners as an objective needs them: an autoencoder looks into a mirror."""
    if objective != 'autoencoder':
        return dict(scanners)
    return {name: Mirror(scanner) for name, scanner in scanners.items()}
