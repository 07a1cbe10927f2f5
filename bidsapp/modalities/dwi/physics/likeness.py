"""A research scan made like a routine one: its directions and b, its voxels, its noise.

Measured volumes are taken wherever they will do: for each direction that is asked for, the nearest
of the same shell, each once. Only what no measured volume can give is interpolated in q-space, and
only between the lowest and the highest b that were measured. Voxels become longer and never
shorter; noise is added and never taken away.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from typing import TYPE_CHECKING

import numpy as np
import torch

from bidsapp.modalities.dwi.physics.acquisition import VOXEL_SLACK
from bidsapp.modalities.dwi.physics.downsampling import MOSTLY, coarser, sampling
from bidsapp.modalities.dwi.physics.harmonics import basis
from bidsapp.modalities.dwi.physics.noise import map_noise
from bidsapp.modalities.dwi.physics.peaks import MAX_FIBRES, fibre_peaks
from bidsapp.modalities.dwi.physics.qspace import interpolation
from bidsapp.modalities.dwi.physics.unweighted import signal_at_zero
from bidsapp.physics.geometry import grid_axes, voxel_sizes
from bidsapp.physics.streams import stream

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bidsapp.core import BoolArray, FloatArray, LongerVoxels
    from bidsapp.modalities.dwi.physics.gradients import GradientTable

#: Values of b that differ by no more than this share, and so many s/mm² more, are one shell.
SHARE, MORE = 0.05, 50.0
#: Shares by which the variance of the noise may miss what is asked for, and steps to reach it.
NEAR, TRIES = 0.03, 8
#: Slices that an image must keep along each axis.
LEAST = 3
#: Order of the harmonics in which fibres of small voxels are added up.
_ORDER = 8
#: Volumes that are averaged at once.
_CHUNK = 16


@dataclass(frozen=True, slots=True, eq=False)
class Chosen:
    """Measured volumes that stand for those of another table."""

    volumes: np.ndarray  #: (M,) numbers in the run, each once, ascending
    degrees: np.ndarray  #: angles from what was asked for, of the weighted ones
    missing: tuple[str, ...]  #: what no measured volume can give, in words


def nearest_volumes(
    gtab: GradientTable, wanted: GradientTable, usable: BoolArray | None = None
) -> Chosen:
    """For each volume of ``wanted`` a measured one of ``gtab``, world axes both, each once.

    In each shell the angles together are as small as they can be (assignment), up to sign; b=0
    volumes are the first. ``usable`` (N,): which volumes of ``gtab`` may be taken.
    """
    from scipy.optimize import linear_sum_assignment

    free = np.ones(len(gtab), bool) if usable is None else np.asarray(usable, bool)
    unweighted = np.flatnonzero(gtab.b0 & free)[: int(wanted.b0.sum())]
    taken, degrees, missing = [unweighted], [np.zeros(0)], []
    for b, members in wanted.shells():
        near = [(abs(own - b), own, v) for own, v in gtab.shells() if same_b(own, b)]
        there = min(near, key=lambda n: n[0])[2] if near else np.zeros(0, int)
        there = there[free[there]]
        if len(there) < len(members):
            missing.append(
                f'{len(members)} directions at b={b:.0f} (the run has {len(there)} there)'
            )
            continue
        cosines = np.abs(wanted.bvecs[members] @ gtab.bvecs[there].T).clip(0, 1)
        angles = np.rad2deg(np.arccos(cosines))
        rows, columns = linear_sum_assignment(angles)
        taken.append(there[columns])
        degrees.append(angles[rows, columns])
    volumes = np.sort(np.concatenate(taken))
    return Chosen(volumes, np.concatenate(degrees), tuple(missing))


def same_b(own: float, b: float) -> bool:
    """Whether two values of b (s/mm²) may stand for one another."""
    return abs(own - b) <= SHARE * b + MORE


def out_of_reach(gtab: GradientTable, wanted: GradientTable) -> list[float]:
    """Those b of ``wanted`` that lie below or above all that ``gtab`` has measured."""
    own = [b for b, _ in gtab.shells()]
    found = (b for b, _ in wanted.shells())
    return [
        b for b in found
        if not own or not (own[0] <= b <= own[-1] or same_b(own[0], b) or same_b(own[-1], b))
    ]  # fmt: skip


def interpolated(
    data: FloatArray, gtab: GradientTable, wanted: GradientTable, variance: float
) -> tuple[np.ndarray, GradientTable]:
    """Signals (X, Y, Z, N) as ``wanted`` would see them through the dictionary, and their table.

    Both tables are in world axes; ``variance`` is that of the noise of S/S0. The b=0 volumes are
    the run's own, as many as asked for where there are as many. What comes out has less noise than
    what was measured, and shares it between volumes.
    """
    b0, weighted = np.flatnonzero(gtab.b0), np.flatnonzero(~gtab.b0)
    target = wanted[~wanted.b0]
    mapping = interpolation(gtab[weighted], target, variance, len(b0))
    constant = mapping.offset - mapping.matrix @ mapping.centre
    signal = data[..., weighted] @ mapping.matrix.T.astype(data.dtype)
    signal += data[..., b0].mean(-1, keepdims=True) * constant.astype(data.dtype)
    first = b0[: max(1, int(wanted.b0.sum()))]
    table = type(gtab)(
        np.concatenate([gtab.bvecs[first], target.bvecs]),
        np.concatenate([gtab.bvals[first], target.bvals]), gtab.b0_threshold,
    )  # fmt: skip
    return np.concatenate([data[..., first], np.maximum(signal, 0)], axis=-1), table


def world_order(affine: FloatArray) -> tuple[int, ...]:
    """The voxel axis that lies nearest to each world axis."""
    axes = np.abs(grid_axes(affine))
    return max(permutations(range(3)), key=lambda order: axes[np.arange(3), list(order)].sum())


@dataclass(frozen=True, slots=True, eq=False)
class CoarseGrid:
    """A grid of longer voxels over a run."""

    kernels: tuple[torch.Tensor, ...]  #: one an axis (`downsampling.sampling`)
    affine: FloatArray
    ratios: tuple[float, ...]  #: length of a voxel in those of the run, along the run's axes

    @property
    def same(self) -> bool:
        """Whether it is the run's own grid."""
        return all(ratio == 1 for ratio in self.ratios)

    def __call__(self, values: FloatArray, weight: FloatArray) -> tuple[np.ndarray, np.ndarray]:
        """Means of (X, Y, Z[, K]) weighted by (X, Y, Z) ≥ 0; and the share of each that weighs."""
        if self.same:
            return np.asarray(values, np.float32), np.asarray(weight, np.float32)
        volumes = values if values.ndim == 4 else values[..., None]
        heavy = torch.from_numpy(np.ascontiguousarray(weight, np.float32))
        found, share = [], torch.zeros(0)
        for first in range(0, volumes.shape[-1], _CHUNK):
            part = np.moveaxis(volumes[..., first : first + _CHUNK], -1, 0)
            part = np.ascontiguousarray(part, np.float32)
            mean, share = coarser(torch.from_numpy(part), heavy, self.kernels)
            found.append(mean.movedim(0, -1).numpy())
        means = np.concatenate(found, axis=-1)
        return means if values.ndim == 4 else means[..., 0], share.numpy()


def coarse_grid(
    shape: Sequence[int], affine: FloatArray, world_mm: Sequence[float] | FloatArray
) -> CoarseGrid:
    """The grid over a run of ``shape`` and ``affine`` whose voxels measure ``world_mm`` (3,).

    These are the edges of the voxel along the axes that lie nearest to world x, y, z. An axis along
    which the run's own voxels are as long or longer stays as it is.
    """
    own, order = voxel_sizes(affine), world_order(affine)
    ratios = np.ones(3)
    for world, axis in enumerate(order):
        ratio = float(world_mm[world]) / float(own[axis])
        ratios[axis] = ratio if ratio > 1 + VOXEL_SLACK else 1.0
    kernels, step = [], np.eye(4)
    for axis, (n, ratio) in enumerate(zip(shape[:3], ratios, strict=True)):
        # Halves go down whatever the last digits of an affine are.
        count = n if ratio == 1 else max(LEAST, int(n / ratio + 0.49))
        first = 0.0 if ratio == 1 else (n - count * ratio) / 2
        kernels.append(sampling(n, float(ratio), count, first))
        step[axis, axis], step[axis, 3] = ratio, first + ratio / 2 - 0.5
    return CoarseGrid(tuple(kernels), affine @ step, tuple(float(r) for r in ratios))


def noise_of(data: FloatArray, gtab: GradientTable, brain: BoolArray) -> float:
    """Variance of the noise of S/S0 of signals (X, Y, Z, N), as the app estimates it anywhere."""
    s0 = signal_at_zero(data, gtab)
    floor = 1e-3 * float(np.median(s0[brain])) + 1e-12
    relative = np.moveaxis(data, -1, 0) / np.maximum(s0, floor)
    weighted = np.clip(relative[~gtab.b0], 0, 1.5)
    return map_noise(weighted, brain, gtab[~gtab.b0], relative[gtab.b0])


@dataclass(frozen=True, slots=True, eq=False)
class Noisy:
    """Signals with noise added."""

    data: FloatArray  #: (X, Y, Z, N) float32
    before: float  #: variance of the noise of S/S0, as it is estimated
    after: float
    sigma: float  #: of what was added to each channel, in the signal's unit


def noisier(
    data: FloatArray, gtab: GradientTable, brain: BoolArray, variance: float, name: str
) -> Noisy:
    """Magnitudes (X, Y, Z, N) with complex noise until its estimate is ``variance`` (of S/S0).

    The noise follows from ``name`` alone. It is drawn once and scaled, so that the estimate rises
    steadily with it; where there is as much or more already, nothing is added. The floor that the
    magnitude of the scan itself had stays, at the height it had there.
    """
    before = noise_of(data, gtab, brain)
    if before >= variance * (1 - NEAR):
        return Noisy(np.asarray(data, np.float32), before, before, 0.0)
    generator = stream(0, of=f'noise of {name}')
    real, imaginary = (
        torch.randn(data.shape, generator=generator).numpy() for _ in range(2)
    )  # fmt: skip
    unit = float(np.median(signal_at_zero(data, gtab)[brain]))
    sigma = float(np.sqrt(variance - before)) * unit
    seen, after = data, before
    for _ in range(TRIES):
        seen = np.hypot(data + sigma * real, sigma * imaginary).astype(np.float32)
        after = noise_of(seen, gtab, brain)
        if abs(after / variance - 1) <= NEAR:
            break
        gained = max(after - before, 0.05 * (variance - before))
        sigma *= float(np.sqrt((variance - before) / gained))
    return Noisy(seen, before, after, sigma)


def mean_fibres(fibres: FloatArray, brain: BoolArray, grid: LongerVoxels) -> np.ndarray:
    """(X', Y', Z', 9) fibres of longer voxels from those (X, Y, Z, 3n) of short ones.

    Each fibre counts once. Where the sum of all has one peak, the fibre is the main axis of the
    mean of v vᵀ; else the peaks are the fibres, strongest first: bundles that lie side by side in a
    long voxel cross in it. None where less than half of the brain in a voxel holds a fibre.
    """
    vectors = fibres.reshape(*fibres.shape[:3], -1, 3)
    there = np.linalg.norm(vectors, axis=-1) > 0.5
    weight = np.asarray(brain, np.float32)
    density = np.zeros((*brain.shape, 45), np.float32)
    dyads = np.zeros((*brain.shape, 9), np.float32)
    for n in range(vectors.shape[3]):
        own = vectors[there[..., n], n]
        density[there[..., n]] += basis(own, _ORDER)
        dyads[there[..., n]] += np.einsum('vi,vj->vij', own, own).reshape(-1, 9)
    held, _ = grid(there.any(-1).astype(np.float32), weight)
    mean, share = grid(np.concatenate([density, dyads], axis=-1), weight)
    inside = (held >= MOSTLY) & (share >= MOSTLY)
    found = np.zeros((*inside.shape, MAX_FIBRES, 3), np.float32)
    if not inside.any():
        return found.reshape(*inside.shape, -1)
    peaks, _ = fibre_peaks(mean[inside][:, :45].T.astype(float), _ORDER)
    count = (np.linalg.norm(peaks, axis=-1) > 0.5).sum(1)
    _, axes = np.linalg.eigh(mean[inside][:, 45:].reshape(-1, 3, 3).astype(float))
    single = count <= 1
    peaks[single] = 0
    peaks[single, 0] = axes[single, :, -1]
    found[inside] = peaks
    return found.reshape(*inside.shape, -1)
