"""Where all weighted volumes together lie against b = 0, found in small windows.

Predictions from the others know nothing of a displacement that the weighted volumes share. What
tells it is the b = 0 image, whose contrast is another one: fluid is bright in it and dark in the
others. Within a few millimetres, though, one image is nearly the other times a number, of any sign.
The mean over such windows of the squared correlation (Gaussian weights, as the points lie; local
correlation: Hermosillo et al., Int J Comput Vision 2002) therefore needs no common relation of
intensities. From each window a constant and a linear trend are taken off, or the shading by the
coils, a third of a per cent a millimetre, would pull by half a millimetre.

Interpolation smooths least on the voxels themselves, so that two images agree best where their
grids do. Both are therefore smoothed a little, made finer by splines, and compared at points that
lie in no lattice.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from bidsapp.modalities.dwi.physics.subsets import halves
from bidsapp.physics.geometry import voxel_sizes
from bidsapp.physics.resampling import N_RIGID, RADIUS, resample_linear, sample, smooth
from bidsapp.physics.resampling import world_gradient as gradient_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from bidsapp.core import FloatArray
    from bidsapp.modalities.dwi.physics.gradients import GradientTable
    from bidsapp.modalities.dwi.physics.realignment import CroppedRun

#: mm, standard deviation of the points of a window around its centre, and how many they are.
_WIDTH, _POINTS = 3.0, 60
#: Windows, at most, and at least: fewer determine nothing.
_MOST, _FEWEST = 3000, 200
#: Gaussian in voxels (geometric mean edge) over both images before they are compared.
_BLUR = 0.5
#: mm of an edge of the blocks whose windows are no independent witnesses.
_BLOCK = 20.0
#: mm; step of differences of slopes, and where Newton's steps end.
_STEP, _NEAR = 0.3, 0.01
#: mm; further from where registration had left it this search is not to be trusted.
_FARTHEST = 5.0
#: mm (rotations as arc at RADIUS) to parameters of a `Warp`.
_UNITS = np.repeat([1.0, 1 / RADIUS], 3)
#: Powers of the root of x⁴ = x + 1: their multiples fill a cube evenly (Roberts 2018).
_FILLING = 1.2207440846057596 ** -np.arange(1.0, 4.0)


@dataclass(frozen=True, slots=True)
class Placement:
    """How far the weighted volumes were found from where they had been put, in the brain."""

    shift: float = float('nan')  #: mm, RMS over the brain; NaN where nothing could be found
    doubt: float = float('nan')  #: mm, its standard error
    moved: bool = False  #: whether they were moved by it: not by less than the doubt


UNKNOWN = Placement()


def placed(scan: CroppedRun, parameters: FloatArray) -> tuple[np.ndarray, Placement]:
    """``parameters`` (N, 6 + K) with the weighted volumes moved together, and what was found."""
    weighted = ~scan.gtab.b0
    found, covariance = _found(scan, parameters, weighted)
    if found is None:
        return np.array(parameters), UNKNOWN
    extent = _extent(scan)
    parts = halves(scan.turned(parameters)) if weighted.sum() > 1 else []
    each = [_found(scan, parameters, _among(part, weighted), found)[0] for part in parts]
    ends = [end for end in each if end is not None]
    variance = np.trace(extent @ covariance)
    if len(ends) == 2:
        # Of the mean of two the variance is a fourth of that of their difference.
        apart = ends[0] - ends[1]
        variance += apart @ extent @ apart / 4
    shift, doubt = np.sqrt(found @ extent @ found), np.sqrt(variance)
    result = np.array(parameters)
    moved = bool(shift > doubt)
    if moved:
        result[weighted, :N_RIGID] += found * _UNITS
    return result, Placement(float(shift), float(doubt), moved)


def _among(part: np.ndarray, weighted: np.ndarray) -> np.ndarray:
    """(N,) which of the ``weighted`` volumes are of a ``part`` (indices)."""
    return weighted & np.isin(np.arange(len(weighted)), part)


def balanced(gtab: GradientTable) -> np.ndarray:
    """(N,) weights of weighted volumes whose mean follows no direction, of sum 1.

    The least that make Σ w g gᵀ = I / 3 in each shell: what a few directions stress is evened out.
    """
    weights = np.zeros(len(gtab))
    shells = gtab.shells()
    for _, members in shells:
        g = gtab.bvecs[members]
        design = np.einsum('ni,nj->ijn', g, g).reshape(9, -1)
        even = np.full(len(g), 1 / len(g))
        lacks = np.eye(3).ravel() / 3 - design @ even
        weights[members] = (even + np.linalg.pinv(design, rcond=0.2) @ lacks) / len(shells)
    return weights / weights.sum()


def _found(
    scan: CroppedRun, parameters: FloatArray, chosen: np.ndarray, start: FloatArray | None = None
) -> tuple[np.ndarray | None, np.ndarray]:
    """(6,) mm by which the ``chosen`` volumes (N,) lie off, None if unknown; (6, 6) covariance."""
    b0 = scan.gtab.b0
    matrices = scan.grid.matrices(parameters)
    still = resample_linear(scan.volumes[b0], matrices[b0]).mean(0)
    weights = torch.as_tensor(balanced(scan.turned(parameters)[chosen])).to(still)
    volumes = resample_linear(scan.volumes[chosen], matrices[chosen])
    windows = Windows(scan, still, torch.tensordot(weights, volumes, dims=1))
    unknown = None, np.full((N_RIGID, N_RIGID), np.nan)
    if windows.count < _FEWEST:
        return unknown
    found = np.zeros(N_RIGID) if start is None else np.array(start)
    for _ in range(2 if start is None else 1):
        curvature = _curvature(windows.slope, found)
        if np.linalg.eigvalsh(curvature).max() >= 0:
            return unknown
        for _ in range(6):
            step = np.linalg.solve(curvature, windows.slope(found))
            found = found - step
            if np.abs(step).max() < _NEAR:
                break
        if not np.linalg.norm(found) < _FARTHEST:
            return unknown
    inverse = np.linalg.inv(curvature)
    blocks = windows.by_block(found)
    return found, inverse @ (blocks.T @ blocks) @ inverse


def _curvature(slope: Callable[[np.ndarray], np.ndarray], at: np.ndarray) -> np.ndarray:
    """(6, 6) derivatives of a ``slope`` (6,), by differences."""
    steps = _STEP * np.eye(N_RIGID)
    rows = np.array([(slope(at + e) - slope(at - e)) / (2 * _STEP) for e in steps])
    return np.asarray((rows + rows.T) / 2)


def _extent(scan: CroppedRun) -> np.ndarray:
    """(6, 6) quadratic form of a displacement: its mean square in mm² over what is compared."""
    arm = scan.grid.points.double().cpu().numpy() - scan.grid.warp.centre
    turned = np.cross(np.eye(3), arm[:, None]) / RADIUS  # (M, 3 axes, 3)
    each = np.concatenate([np.broadcast_to(np.eye(3), turned.shape), turned], axis=1)
    return np.asarray(np.einsum('mai,mbi->ab', each, each) / len(arm))


class Windows:
    """Squared local correlation of two images (X, Y, Z) on the grid of ``scan``."""

    def __init__(self, scan: CroppedRun, still: Tensor, moving: Tensor) -> None:
        edges = voxel_sizes(scan.grid.affine)
        both = smooth(torch.stack([still, moving]), _BLUR * np.cbrt(edges.prod()) / edges)
        fixed, self.moving = (_finer(image) for image in both)
        affine = scan.grid.affine @ np.diag([0.5, 0.5, 0.5, 1.0])
        offsets = _ball()
        voxels = _window_points(scan, offsets)
        self.count = len(voxels)
        self.grid = replace(scan.grid, affine=affine, voxels=2 * voxels.reshape(-1, 3))
        middle = self.grid.points.reshape(self.count, -1, 3).double().mean(1).cpu().numpy()
        cells = np.floor(middle / _BLOCK).astype(int)
        self.block = np.unique(cells, axis=0, return_inverse=True)[1].ravel()
        trend = np.linalg.qr(np.column_stack([np.ones(len(offsets)), offsets]))[0]
        self.trend = torch.as_tensor(trend).to(still)
        self.fixed = self._without_trend(sample(fixed[None], self.grid.voxels, np.eye(4)[None])[0])
        self.power = self.fixed.square().sum(1).clamp_min(1e-20)
        slopes = next(iter(gradient_of(self.moving[None], affine)))
        self.images = torch.cat([self.moving[None], slopes.movedim(-1, 0)])

    def _without_trend(self, values: Tensor) -> Tensor:
        """(K, P) of K windows, without their constants and linear trends."""
        values = values.reshape(self.count, -1)
        return values - (values @ self.trend) @ self.trend.T

    def slopes(self, displacement: np.ndarray) -> np.ndarray:
        """(K, 6) change of the squared correlation of each window per mm of ``displacement``."""
        parameters = np.zeros((1, self.grid.warp.n_parameters))
        parameters[0, :N_RIGID] = displacement * _UNITS
        matrices = np.repeat(self.grid.matrices(parameters), 4, axis=0)
        value, *gradient = sample(self.images, self.grid.voxels, matrices)
        change = self.grid.warp.derivatives(self.grid.points, torch.stack(gradient, -1))
        change = (change[:, :N_RIGID] * torch.as_tensor(_UNITS).to(change)).reshape(
            self.count, -1, N_RIGID
        )
        moved = self._without_trend(value)
        power = moved.square().sum(1).clamp_min(1e-20)
        product = (self.fixed * moved).sum(1) / (self.power * power)
        with_fixed = torch.einsum('kp,kpi->ki', self.fixed, change)
        with_moved = torch.einsum('kp,kpi->ki', moved, change)
        share = product * self.power  # of the fixed image in the moved
        slopes = 2 * product[:, None] * (with_fixed - share[:, None] * with_moved)
        return np.asarray(slopes.double().cpu().numpy())

    def slope(self, displacement: np.ndarray) -> np.ndarray:
        """(6,) of the mean over the windows."""
        return np.asarray(self.slopes(displacement).mean(0))

    def by_block(self, displacement: np.ndarray) -> np.ndarray:
        """(blocks, 6) what the windows of each block add to `slope`."""
        slopes = self.slopes(displacement) / self.count
        return np.stack([np.bincount(self.block, column) for column in slopes.T], axis=1)


def _ball() -> np.ndarray:
    """(P, 3) mm, Gaussian around 0."""
    from scipy.special import ndtri

    offsets = _WIDTH * ndtri((np.outer(np.arange(_POINTS), _FILLING) + 0.5) % 1)
    return np.asarray(offsets - offsets.mean(0))


def _window_points(scan: CroppedRun, offsets: np.ndarray) -> Tensor:
    """(K, P, 3) voxels of windows that are centred in the brain and lie within the image."""
    brain = np.argwhere(scan.mask.cpu().numpy())
    chosen = (np.arange(len(brain)) * 0.6180339887498949) % 1 < _MOST / max(len(brain), 1)
    centres = brain[chosen] + np.outer(np.arange(chosen.sum()), _FILLING) % 1 - 0.5
    voxels = centres[:, None] + offsets @ np.linalg.inv(scan.grid.affine[:3, :3]).T
    last = np.array(scan.mask.shape) - 1
    inside = ((voxels >= 0) & (voxels <= last)).all((1, 2))
    return torch.as_tensor(voxels[inside]).to(scan.grid.voxels)


def _finer(image: Tensor) -> Tensor:
    """``image`` (X, Y, Z) at half voxels too (2 X - 1, …), by cubic splines."""
    from scipy import ndimage

    shape = tuple(2 * n - 1 for n in image.shape)
    halved = np.diag([0.5, 0.5, 0.5])
    values = ndimage.affine_transform(
        image.cpu().numpy(), halved, output_shape=shape, order=3, mode='nearest'
    )
    return torch.as_tensor(values).to(image)
