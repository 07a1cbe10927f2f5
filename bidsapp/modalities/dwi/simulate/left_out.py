"""Real scans to learn from without a clean twin: input from some volumes, truth from others.

The noise of volumes that the network was not shown is independent of what it says, so the squared
error to them is least for the mean of the signal (noise2self, Batson and Royer, ICML 2019; over
directions here). A run stays on its grid, nothing is interpolated; a block of it is seen by a
few of its own volumes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bidsapp.hidden import whole_folder
from bidsapp.learn.patches import padded_to
from bidsapp.modalities.dwi.learn.left_out import CHANNELS, LEFT_OUT, encoded
from bidsapp.modalities.dwi.learn.losses import UNKNOWN_FIBRES
from bidsapp.modalities.dwi.physics import qspace
from bidsapp.modalities.dwi.physics.acquisition import acquisition
from bidsapp.modalities.dwi.physics.gradients import GradientTable
from bidsapp.modalities.dwi.physics.peaks import MAX_FIBRES
from bidsapp.modalities.dwi.simulate.corruption import Table
from bidsapp.modalities.dwi.simulate.measured_runs import measured_volumes, place_of
from bidsapp.modalities.dwi.simulate.scanned import DwiScan, canonical
from bidsapp.modalities.dwi.simulate.simulator import NO_CONTRAST, SIDE
from bidsapp.physics.geometry import voxel_sizes
from bidsapp.physics.streams import stream
from bidsapp.problems import BadData
from bidsapp.simulate.grids import chance, uniform

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from bidsapp.core import Case, Task
    from bidsapp.simulate.material import Scan, Scanner

#: Weighted volumes of an input: at least; and the condition number of its tensor's design at most.
LEAST, WELL_CONDITIONED = 6, 20.0
#: Voxels of brain that a block must hold for its noise to be estimated, and the share of a small
#: block or brain.
LEAST_BRAIN, SHARE = 2000, 0.25


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """One run on its own grid in RAS, cropped to the brain; median S0 in the brain is 1."""

    signals: Tensor  #: (N, X, Y, Z), mapped from a file
    gtab: GradientTable  #: in the axes of the grid
    mask: Tensor  #: (X, Y, Z) bool
    sigma: float  #: standard deviation of the noise
    voxel_mm: tuple[float, ...]


def cache_volumes(case: Case, folder: Path) -> Path:
    """Keep a run's volumes as float16 under ``folder``; returns their place.

    Those with slices that were predicted from others are left out. Raises BadData for a run that
    has no b = 0, or too few volumes to leave some out.
    """
    place = place_of(case, folder)
    if place.is_dir():
        return place
    run = measured_volumes(case)
    gtab = run.gtab
    if not gtab.b0.any() or (~gtab.b0).sum() < LEAST + LEFT_OUT:
        raise BadData(
            f'{case.files["dwi"]}: {int((~gtab.b0).sum())} measured weighted and '
            f'{int(gtab.b0.sum())} other volumes; expected {LEAST + LEFT_OUT} and one or more, to '
            'learn from some what others look like'
        )
    with whole_folder(place) as staging:
        signals = np.moveaxis(run.data, -1, 0) / run.unit
        np.save(staging / 'signals.npy', np.clip(signals, 0, 6e4).astype(np.float16))
        np.savez(
            staging / 'rest.npz', mask=run.brain, bvecs=gtab.bvecs, bvals=gtab.bvals,
            sigma=np.sqrt(run.variance), voxel_mm=voxel_sizes(run.sample.affine),
            b0=gtab.b0_threshold,
        )  # fmt: skip
    return place


def open_volumes(place: Path) -> Measured:
    """A cached run; its volumes are mapped, so only what is used is read."""
    signals = torch.from_numpy(np.load(place / 'signals.npy', mmap_mode='c'))
    with np.load(place / 'rest.npz') as rest:
        gtab = GradientTable(rest['bvecs'], rest['bvals'], float(rest['b0']))
        return Measured(
            signals, gtab, torch.from_numpy(rest['mask']), float(rest['sigma']),
            tuple(rest['voxel_mm'].tolist()),
        )  # fmt: skip


def divided(gtab: GradientTable, generator: torch.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Volumes that an input is made of, b = 0 among them, and LEFT_OUT others.

    From LEAST weighted volumes to all but LEFT_OUT, few as often as twice as many. The best
    conditioned of some random choices.
    """
    weighted = np.flatnonzero(~gtab.b0)
    most = len(weighted) - LEFT_OUT
    n = round(LEAST * (most / LEAST) ** uniform(0, 1, generator))
    best: tuple[float, np.ndarray] | None = None
    for _ in range(30):
        order = weighted[torch.randperm(len(weighted), generator=generator).numpy()]
        condition = acquisition(gtab[order[:n]]).condition
        if best is None or condition < best[0]:
            best = condition, order
        if condition < WELL_CONDITIONED:
            break
    assert best is not None
    order = best[1]
    return np.sort(np.r_[np.flatnonzero(gtab.b0), order[:n]]), np.sort(order[n : n + LEFT_OUT])


class LeftOut:
    """Draws scan number i of a seed from ``runs``, each the same whenever it is asked for."""

    def __init__(self, runs: Sequence[Measured], seed: int, side: int = SIDE) -> None:
        self._runs, self._seed, self._side = list(runs), seed, side

    def scan(self, number: int) -> DwiScan:
        """Scan number ``number``."""
        generator = stream(self._seed, number, of='left out')
        run = self._runs[int(uniform(0, len(self._runs), generator))]
        signals, mask = self._block(run, generator)
        seen, hidden = divided(run.gtab, generator)
        table = run.gtab[seen]
        vectors, values = (torch.from_numpy(part).float() for part in (table.bvecs, table.bvals))
        own = Table(vectors, torch.where(torch.from_numpy(table.b0), 0.0, values))
        image, gtab = canonical(signals[seen], own, mask, run.voxel_mm)
        s0 = signals[seen][table.b0].mean(0)
        target = encoded(image, gtab, signals[hidden], run.gtab[hidden], s0, run.sigma)
        if chance(NO_CONTRAST, generator):
            image[qspace.S0_CHANNEL] = 0
        truth = {'left_out': target, **unknown(mask)}
        return DwiScan(image, mask[None], truth, run.voxel_mm, table=own)

    def _block(self, run: Measured, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(N, S, S, S) signals and (S, S, S) mask of a box of one side around a voxel of the brain.

        Where a run is thinner, nothing stands behind it.
        """
        where = run.mask.nonzero()
        least = min(LEAST_BRAIN, SHARE * min(self._side**3, len(where)))
        while True:
            middle = where[int(uniform(0, len(where), generator))].tolist()
            spans = []
            for centre, n in zip(middle, run.mask.shape, strict=True):
                first = min(max(centre - self._side // 2, 0), max(n - self._side, 0))
                spans.append(slice(first, first + self._side))
            i, j, k = spans
            if int(run.mask[i, j, k].sum()) >= least:
                whole = (self._side,) * 3
                signals = padded_to(run.signals[:, i, j, k].float(), whole)
                return signals, padded_to(run.mask[i, j, k].clone(), whole)


def unknown(mask: Tensor) -> Mapping[str, Tensor]:
    """The truth of a real scan: none, as the losses of tasks by a simulator's truth pass it by."""
    blank = mask.new_zeros(mask.shape, dtype=torch.float32)
    n = len(qspace.SLOTS)
    return {
        'tissue': blank.expand(3, *mask.shape),
        'fibres': torch.full((3 * MAX_FIBRES, *mask.shape), UNKNOWN_FIBRES),
        'microstructure': torch.full((3, *mask.shape), -1.0),
        'correction': blank.expand(n * qspace.N_SH + n, *mask.shape),
        'brain': torch.zeros_like(mask),
    }


def truth_with_left_out(task: Task[Any]) -> Callable[[Mapping[str, Tensor]], Tensor]:
    """The truth of `restore`, then volumes that are left out."""
    own = task.truth
    assert own is not None
    return lambda known: torch.cat([own(known), known['left_out']])


def ranges_of(runs: Sequence[Measured]) -> tuple[list[int], dict[str, Any]]:
    """Bins that are ever filled, and the tested ranges of a card."""
    filled = [qspace.filled_slots(run.gtab) for run in runs]
    slots = sorted({slot for own in filled for slot in own})
    edges = [edge for run in runs for edge in run.voxel_mm]
    levels = [1 / max(run.sigma, 1e-3) for run in runs]
    return slots, {
        'directions': [LEAST, max(int((~run.gtab.b0).sum()) for run in runs) - LEFT_OUT],
        'shells': [min(map(len, filled)), max(map(len, filled))],
        'b': [[b, b] for b in sorted({float(np.float32(b)) for o in filled for b in o.values()})],
        'voxel_mm': [min(edges), max(edges)],
        'snr': [min(levels), max(levels)],
    }


@dataclass(frozen=True, slots=True)
class InTurn:
    """Scans of two scanners in turn: simulated ones with every truth, and real ones."""

    scanners: tuple[Scanner, Scanner]

    @staticmethod
    def of_people(scan_of: Callable[[int], int]) -> Callable[[int], int]:
        """Index → number of a scan, each simulated one of another person by ``scan_of``."""
        return lambda index: 2 * scan_of(index // 2) + index % 2

    def scan(self, number: int) -> Scan:
        """Scan number ``number``; of a simulated one no volumes are left out."""
        turn, which = divmod(number, 2)
        scan = self.scanners[which].scan(turn)
        if 'left_out' in scan.truth:
            return scan
        nothing = torch.zeros(CHANNELS, *scan.mask.shape[1:])
        return replace(scan, truth={**scan.truth, 'left_out': nothing})
