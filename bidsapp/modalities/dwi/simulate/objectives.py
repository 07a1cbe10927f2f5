"""What diffusion networks are pretrained from: an objective's tasks, and endless scanners."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from bidsapp import registry
from bidsapp.learn.splits import SPLITS
from bidsapp.modalities.dwi.physics import qspace
from bidsapp.physics.streams import stream
from bidsapp.problems import BadData, MissingInput
from bidsapp.simulate.material import Material, same_number
from bidsapp.simulate.template_head import kept_template

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from bidsapp.core import Case, Task
    from bidsapp.simulate.material import Request, Scan, Scanner

log = logging.getLogger('transfermri')

T = TypeVar('T')
#: Objectives that learn of real scans by volumes left out.
BY_LEFT_OUT = ('restore', 'mixed')

#: What the simulator draws (`simulate.corruption`, `simulate.blocks`), and tests are drawn from.
SIMULATED = {'directions': [6, 135], 'shells': [1, 3], 'b': [[700, 3300]], 'voxel_mm': [1.0, 4.5],
             'snr': [6, 200]}  # fmt: skip


def material(request: Request) -> Material:
    """Simulated heads, or what is made of an auxiliary dataset's runs where the request has any."""
    if not request.cases:
        return simulated(request)
    return left_out(request) if request.objective in BY_LEFT_OUT else auxiliary(request)


def tasks_of(objective: str, named: Sequence[str] = ()) -> tuple[Task[Any], ...]:
    """What an objective teaches; ``named`` tasks only, where it teaches them all."""
    if objective in ('supervised', 'mixed'):
        every = [task.name for task in registry.tasks_of('dwi') if task.truth is not None]
        return tuple(registry.task(name) for name in named or every)
    if objective == 'auxiliary':
        return (registry.task('microstructure'),)
    restore = registry.task('restore')
    return (restore if objective == 'restore' else renamed(restore, 'autoencoder'),)


def renamed(task: Task[Any], name: str) -> Task[Any]:
    """The same task with a head of another name."""
    return replace(task, name=name, head=replace(task.head, name=name))


def said_of_input(slots: Sequence[int]) -> dict[str, Any]:
    """What a card says of the canonical input, and of the b-value bins that are ever filled."""
    return {
        'input': {
            'description': 'canonical q-space channels (docs/architecture.md)',
            'slots_of_b': [list(b) for b in qspace.SLOTS],
            'order': qspace.ORDER,
        },
        'learnt_b_ranges': [list(qspace.SLOTS[slot]) for slot in slots],
    }


def simulated(request: Request) -> Material:
    """Endless simulated brains, of another seed for each split."""
    from bidsapp.modalities.dwi.simulate.simulator import Simulator, scan_of_person

    template = kept_template(request.kept)
    corrupt = request.objective != 'autoencoder'
    scanners = {
        name: Simulator(template, len(SPLITS) * request.seed + k, request.side, corrupt)
        for k, name in enumerate(SPLITS)
    }
    return Material(
        tasks_of(request.objective, request.tasks),
        facing(request.objective, scanners),
        {'brains': 'simulated; those that test are of another seed'},
        SIMULATED,
        said_of_input(range(len(qspace.SLOTS))),
        license='Apache-2.0',
        scan_of=scan_of_person,
    )


def left_out(request: Request) -> Material:
    """Real scans by volumes that are left out; between them simulated ones where all is taught."""
    from bidsapp.modalities.dwi.learn.left_out import with_left_out
    from bidsapp.modalities.dwi.simulate.left_out import (
        InTurn,
        LeftOut,
        cache_volumes,
        open_volumes,
        ranges_of,
        truth_with_left_out,
    )

    runs = opened(request, cache_volumes, open_volumes, 'left-out')
    if lacking := [name for name, part in runs.items() if not part]:
        raise MissingInput(
            f'No {lacking[0]} run has volumes enough to leave some out. Preprocess participants '
            'that have.'
        )
    scanners: dict[str, Scanner] = {
        name: LeftOut(runs[name], len(SPLITS) * request.seed + k, request.side)
        for k, name in enumerate(runs)
    }
    about = {'brains': 'real scans, by volumes that were left out'}
    scan_of: Callable[[int], int] = same_number
    slots, ranges = ranges_of([run for part in runs.values() for run in part])
    if request.objective == 'mixed':
        made = simulated(request)
        scanners = {name: InTurn((made.scanners[name], own)) for name, own in scanners.items()}
        about = {'brains': 'simulated, and real scans in turn, by volumes that were left out'}
        scan_of = InTurn.of_people(made.scan_of)
        slots, ranges = list(range(len(qspace.SLOTS))), SIMULATED
    people = {name: len({c.subject for c in part}) for name, part in request.cases.items()}
    tasks = (
        replace(task, head=with_left_out(task.head), truth=truth_with_left_out(task))
        if task.name == 'restore' else task
        for task in tasks_of(request.objective, request.tasks)
    )  # fmt: skip
    return Material(
        tuple(tasks), scanners, {**about, 'participants': people}, ranges, said_of_input(slots),
        scan_of=scan_of,
    )  # fmt: skip


def auxiliary(request: Request) -> Material:
    """Poorer scans of an auxiliary dataset's runs by split; their shells are kept.

    Raises MissingInput if a split has no run that the objective can use.
    """
    from bidsapp.modalities.dwi.simulate.auxiliary import (
        LONGEST_VOXEL,
        Auxiliary,
        cache_run,
        open_run,
    )
    from bidsapp.modalities.dwi.simulate.simulator import scan_of_person

    objective = request.objective
    least = 2 if objective == 'auxiliary' else 1
    runs = {
        name: [run for run in part if len(run.slots) >= least]
        for name, part in opened(request, cache_run, open_run, 'auxiliary').items()
    }
    if lacking := [name for name, part in runs.items() if not part]:
        raise MissingInput(
            f'No {lacking[0]} run has shells in {least} of the ranges of b '
            f'{", ".join(f"{low:g} to {high:g}" for low, high in qspace.SLOTS)} s/mm2, which '
            f'the objective {objective} needs. Preprocess participants that have.'
        )
    seeds = {name: len(SPLITS) * request.seed + k for k, name in enumerate(runs)}
    scanners = {
        name: Auxiliary(part, seeds[name], request.side, objective != 'autoencoder', least)
        for name, part in runs.items()
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
        'participants': {
            name: len({c.subject for c in part}) for name, part in request.cases.items()
        },
    }
    return Material(
        tasks_of(objective), facing(objective, scanners), about, ranges, said_of_input(slots),
        scan_of=scan_of_person,
    )  # fmt: skip


def opened(
    request: Request, cache: Callable[[Case, Path], Path], read: Callable[[Path], T], kind: str
) -> dict[str, list[T]]:
    """The runs of each split, kept on disk under ``kind``; what cannot be used is named."""
    runs: dict[str, list[T]] = {}
    for name, part in request.cases.items():
        runs[name] = []
        for case in part:
            try:
                runs[name].append(read(cache(case, request.kept / kind)))
            except BadData as problem:
                log.warning('left out: %s', problem)
    return runs


#: Voxels along the edge of a cell, and the share of cells that are hidden from an autoencoder.
CELL, HIDDEN = 4, 0.5


@dataclass(frozen=True, slots=True)
class MaskedAutoencoder:
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
        filled = scan.truth['correction'][CHANNELS:]
        target = torch.cat([qspace.input_harmonics(scan.image), filled])
        cells = [-(-side // CELL) for side in scan.mask.shape[1:]]
        shown = torch.rand(cells, generator=stream(number, of='hidden cells')) > HIDDEN
        for axis, side in enumerate(scan.mask.shape[1:]):
            shown = shown.repeat_interleave(CELL, axis).narrow(axis, 0, side)
        return replace(scan, image=scan.image * shown, truth={'correction': target})


def facing(objective: str, scanners: Mapping[str, Scanner]) -> dict[str, Scanner]:
    """The scanners as an objective needs them: those of an autoencoder mask what they give."""
    if objective != 'autoencoder':
        return dict(scanners)
    return {name: MaskedAutoencoder(scanner) for name, scanner in scanners.items()}
