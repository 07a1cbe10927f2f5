"""Scans of an auxiliary dataset to pretrain from, in the manner of source papers 1 and 2.

A preprocessed run is known on whole shells (`physics.downsampling`). From it any number of poorer
scans are made: a block of coarser voxels, seen by another scheme on shells that were measured,
spoilt as a simulated scan is. What the run itself would give on that block is the truth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from bidsapp.bids.images import load_volume, onto_sample, open_image
from bidsapp.hidden import whole_folder
from bidsapp.modalities.dwi.physics import qspace
from bidsapp.modalities.dwi.physics.acquisition import acquisition, determines_tensor
from bidsapp.modalities.dwi.physics.downsampling import (
    MOSTLY,
    coarser,
    coarser_noddi,
    sampling,
    signal_harmonics,
)
from bidsapp.modalities.dwi.simulate.corruption import (
    Table,
    corrupted,
    draw_corruption,
    spread_directions,
    true_volumes,
    with_b0,
)
from bidsapp.modalities.dwi.simulate.measured_runs import measured_volumes, place_of
from bidsapp.modalities.dwi.simulate.scanned import (
    DwiScan,
    canonical,
    clean_harmonics,
    correction_to,
)
from bidsapp.modalities.dwi.simulate.simulator import NO_CONTRAST, SIDE
from bidsapp.physics.geometry import voxel_sizes
from bidsapp.physics.streams import stream
from bidsapp.problems import BadData
from bidsapp.simulate.grids import Grid, chance, normal, uniform

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from bidsapp.core import Case

#: mm; voxels are not made longer than this.
LONGEST_VOXEL = 4.5
#: Chance that voxels stay as they are.
SAME_VOXELS = 0.2
#: Directions of a shell: at least, and at most where one, two or three shells are drawn.
LEAST, MOST = 6, (100, 60, 45)
#: s/mm²; a shell below is no use for directions.
LEAST_B = 400.0
#: Voxels of brain that a block must hold for its noise to be estimated.
LEAST_BRAIN = 64
#: Channels that are made coarser at once.
_CHUNK = 16
LABELS = ('icvf', 'od', 'isovf')


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """One run on its own grid in RAS, cropped to the brain; signals with median S0 1.

    Arrays may be mapped from a file, and are as precise as the scan needs (float16).
    """

    s0: Tensor  #: (X, Y, Z)
    harmonics: Mapping[float, Tensor]  #: b in s/mm² → (45, X, Y, Z) of S on that shell
    mask: Tensor  #: (X, Y, Z) bool
    noddi: Tensor | None  #: (3, X, Y, Z) icvf, od, isovf
    voxel_mm: tuple[float, ...]

    @property
    def slots(self) -> dict[int, list[float]]:
        """Slot of the canonical input → its shells."""
        found: dict[int, list[float]] = {}
        for b in self.harmonics:
            if b >= LEAST_B:
                found.setdefault(qspace.slot_of(b), []).append(b)
        return found


def cache_run(case: Case, folder: Path) -> Path:
    """Cache a run: its shells, worked out once, as arrays under ``folder``; returns their place.

    NODDI is kept beside them if the case has its maps. Volumes with slices that were predicted
    from others are left out. Raises BadData for a run without b=0, or of which too few are left.
    """
    labels = [case.files[name] for name in LABELS if name in case.files]
    place = place_of(case, folder, labels)
    if place.is_dir():
        return place
    run = measured_volumes(case)
    if run.dropped is not None:
        kept, everything = len(run.world), len(run.world) + run.dropped
        if 2 * kept < everything or not determines_tensor(acquisition(run.world)):
            raise BadData(
                f'{case.files["dwi"]}: {run.dropped} of {everything} volumes hold slices '
                'that were predicted from the others, and too few are left to learn from'
            )
    gtab = run.gtab
    if not gtab.b0.any():
        raise BadData(f'{case.files["dwi"]} has no b=0 volume, and S/S0 needs one')
    unit = run.unit
    arrays = {'s0': run.s0 / unit, 'mask': run.brain, 'voxel_mm': voxel_sizes(run.sample.affine)}
    for b, matrix in signal_harmonics(gtab, run.variance).items():
        arrays[f'b{np.float32(b):.9g}'] = np.moveaxis(run.data @ matrix.T, -1, 0) / unit
    if len(labels) == len(LABELS):
        maps = [case.files[name] for name in LABELS]
        arrays['noddi'] = np.concatenate(
            [onto_sample(load_volume(p), open_image(p).affine, run.sample) for p in maps]
        )
    with whole_folder(place) as staging:
        for name, array in arrays.items():
            kind = array.dtype if array.ndim < 3 or array.dtype == bool else np.float16
            np.save(staging / f'{name}.npy', array.astype(kind))
    return place


def open_run(place: Path) -> Run:
    """A cached run; its arrays are mapped copy-on-write, so only what is used is read."""

    def read(name: str) -> Tensor:
        return torch.from_numpy(np.load(place / f'{name}.npy', mmap_mode='c'))

    # A scheme holds b in float32, so a shell is known by exactly that number.
    shells = sorted(float(np.float32(path.stem[1:])) for path in place.glob('b*.npy'))
    return Run(
        s0=read('s0'),
        harmonics={b: read(f'b{np.float32(b):.9g}') for b in shells},
        mask=read('mask'),
        noddi=read('noddi') if (place / 'noddi.npy').is_file() else None,
        voxel_mm=tuple(np.load(place / 'voxel_mm.npy').tolist()),
    )


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """A block of a run in coarser voxels."""

    s0: Tensor  #: (X, Y, Z)
    harmonics: dict[float, Tensor]
    mask: Tensor
    noddi: Tensor | None
    grid: Grid


def draw_voxel(size: Sequence[float], generator: torch.Generator) -> list[float]:
    """mm along each axis: ``size`` or longer, up to LONGEST_VOXEL; not always the same."""
    if chance(SAME_VOXELS, generator):
        return list(size)
    low = math.prod(size) ** (1 / 3)
    edge = low * (max(LONGEST_VOXEL / low, 1)) ** uniform(0, 1, generator)
    stretch = torch.exp(0.3 * normal((3,), generator)) if chance(0.5, generator) else torch.ones(3)
    wanted = (edge * stretch).clamp(max=LONGEST_VOXEL).tolist()
    return [max(own, new) for own, new in zip(size, wanted, strict=True)]


def draw_piece(run: Run, shells: Sequence[float], side: int, generator: torch.Generator) -> Piece:
    """A block of ``side``³ coarser voxels around a voxel of the brain."""
    voxel = draw_voxel(run.voxel_mm, generator)
    ratios = [new / own for new, own in zip(voxel, run.voxel_mm, strict=True)]
    where = run.mask.nonzero()
    middle = where[int(uniform(0, len(where), generator))].tolist()
    spans, kernels = [], []
    for centre, ratio, n in zip(middle, ratios, run.mask.shape, strict=True):
        first = centre + 0.5 - side * ratio / 2
        if ratio == 1:
            first = float(round(first))
        low = max(0, math.floor(first - 2 * ratio))
        high = min(n, math.ceil(first + (side + 2) * ratio))
        spans.append(slice(low, high))
        kernels.append(sampling(high - low, ratio, side, first - low))
    i, j, k = spans
    s0, mask = run.s0[i, j, k].float(), run.mask[i, j, k]
    weight = mask.float()
    coarse_s0, share = coarser(s0[None], weight, kernels)
    noddi = None
    if run.noddi is not None:
        noddi = coarser_noddi(run.noddi[:, i, j, k].float(), s0, mask, kernels)
    harmonics = {
        b: torch.cat([
            coarser(part.float(), weight, kernels)[0]
            for part in run.harmonics[b][:, i, j, k].split(_CHUNK)
        ])
        for b in shells
    }  # fmt: skip
    grid = Grid((side, side, side), torch.diag(torch.tensor([*voxel, 1.0])))
    return Piece(coarse_s0[0], harmonics, share >= MOSTLY, noddi, grid)


def draw_scheme(shells: Sequence[float], generator: torch.Generator) -> Table:
    """A scheme on some of ``shells`` (s/mm²), at exactly their b, with one to six b=0 volumes."""
    most = MOST[len(shells) - 1]
    vectors, values = [], []
    for b in shells:
        n = round(LEAST * (most / LEAST) ** uniform(0, 1, generator))
        even, half = chance(0.8, generator), chance(0.3, generator)
        vectors.append(spread_directions(n, generator, even, half))
        values.append(torch.full((n,), b))
    return with_b0(vectors, values, generator)


class Auxiliary:
    """Draws scan number i of a seed from ``runs``, each the same whenever it is asked for.

    Takes the place of `simulate.stream.Simulator`. Every scan fills ``least_slots`` slots of the
    canonical input or more, and every run must be able to.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        seed: int,
        side: int = SIDE,
        corrupt: bool = True,
        least_slots: int = 1,
    ) -> None:
        self._runs = list(runs)
        self._seed, self._side = seed, side
        self._corrupt, self._least = corrupt, least_slots

    def shells(self, run: Run, generator: torch.Generator) -> list[float]:
        """One shell in each of some slots."""
        slots = list(run.slots.values())
        count = self._least + int(uniform(0, len(slots) - self._least + 1, generator))
        order = torch.randperm(len(slots), generator=generator)[:count].sort().values
        return [slots[i][int(uniform(0, len(slots[i]), generator))] for i in order.tolist()]

    def scan(self, number: int) -> DwiScan:
        """Scan number ``number``."""
        generator = stream(self._seed, number)
        run = self._runs[int(uniform(0, len(self._runs), generator))]
        shells = self.shells(run, generator)
        piece = draw_piece(run, shells, self._side, generator)
        while piece.mask.sum() < LEAST_BRAIN:
            piece = draw_piece(run, shells, self._side, generator)
        table = draw_scheme(shells, generator)
        # The median of S0 in the brain is near that of white matter, which noise refers to.
        corruption = draw_corruption(piece.grid, table, 1.0, generator)
        if not self._corrupt:
            corruption = corruption.undone
        volumes = true_volumes(piece.harmonics, piece.s0, table, corruption.motion)
        volumes = corrupted(volumes, corruption, piece.grid, generator)
        image, gtab = canonical(volumes, table, piece.mask, piece.grid.spacing)
        slots = qspace.filled_slots(gtab)
        clean = clean_harmonics(piece.harmonics, piece.s0, slots)
        truth = {'correction': correction_to(clean, image, piece.mask, slots)}
        if piece.noddi is not None:
            truth['microstructure'] = torch.where(piece.mask, piece.noddi, -1)
        if chance(NO_CONTRAST, generator):
            image[qspace.S0_CHANNEL] = 0
        return DwiScan(image, piece.mask[None], truth, tuple(piece.grid.spacing), table=table)
