"""Susceptibility displacement from two b = 0 images of opposite phase-encoding polarity.

One field shifts the two images in opposite directions, so the displacement d is the smooth one
that makes them agree once each is put back and made as bright as it was (Andersson, Skare and
Ashburner, NeuroImage 2003; Holland, Kuperman and Dale, NeuroImage 2010; Ruthotto et al., Phys Med
Biol 2012). In mm and world coordinates:

    (1 + ∂d) I₁(x + d u) = g(x) (1 - κ ∂d) I₂(T x - κ d u'),

u and u' are the unit vectors of the two phase-encoding axes, κ is the ratio of the displacements,
T the head's rigid motion between the images, g a smooth ratio of their sensitivities. All of it
is solved for together by Gauss-Newton, from coarse to fine voxels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from bidsapp.physics.brain import otsu
from bidsapp.physics.distortion import sample_along
from bidsapp.physics.geometry import grid_axes, voxel_sizes
from bidsapp.physics.pair_matching import Level
from bidsapp.physics.resampling import RADIUS
from bidsapp.problems import BadData

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from bidsapp.core import FloatArray

#: mm: least voxel edge at each level. A field has no detail finer than the last.
LEVELS = (12.0, 8.0, 4.0, 2.0)
#: mm: how far from 0 the scanner's adjustment leaves the median displacement in the brain.
ADJUSTMENT = 0.25
#: Cosine of the largest angle between the two phase-encoding axes.
LEAST_COSINE = 0.8


@dataclass(frozen=True, slots=True, eq=False)
class ReversedPair:
    """The displacement of the first image of a pair, and how well the pair agrees with it."""

    displacement: FloatArray  #: (X, Y, Z) float32 voxels along the axis, as in `distortion`
    matrix: FloatArray  #: (4, 4) a point of the head in the first image → in the second, world mm
    motion: FloatArray  #: (6,) the same, as `resampling.Warp` about the brain's centre: mm, rad
    similarity_before: float  #: correlation of the two images in the mask
    similarity_after: float
    median_mm: float  #: of |d| in the mask
    max_mm: float


def displacement_from_pair(
    first: FloatArray,
    affine: FloatArray,
    mask: NDArray[np.bool_] | None,
    second: FloatArray,
    second_affine: FloatArray,
    ratio: float,
    axis: int,
    device: str = 'cpu',
) -> ReversedPair:
    """Displacement along ``axis`` of ``first`` (X, Y, Z), from it and ``second`` (X', Y', Z').

    Both are mean b = 0 images, encoded along nearly the same line in space in opposite
    directions, whatever their grids and the head's motion between them. ``ratio`` is the readout
    time of the second over that of the first, 1 if unknown. ``mask`` (X, Y, Z) is the brain in
    the first; without one what is bright is taken. A constant displacement and a motion along the
    axis look alike: both are kept small (`_adjusted`), so the corrected image may be shifted by a
    fraction of a voxel. Raises BadData if the axes differ or an image is empty, ValueError if
    ``ratio`` is not positive.
    """
    if not ratio > 0:
        raise ValueError(f'a ratio of readout times of {ratio}')
    images = [_scaled(image, device) for image in (first, second)]
    usable = mask is not None and mask.any()
    inside = np.ascontiguousarray(mask if usable else images[0].cpu() > 0.5)
    centre = affine[:3, :3] @ np.argwhere(inside).mean(0) + affine[:3, 3]
    toward, second_size = _second_axis(affine, second_affine, axis)
    kappa = ratio * second_size / float(voxel_sizes(affine)[axis])
    transform = np.eye(4)
    d = torch.zeros_like(images[0])
    for mm in LEVELS:
        reduced = [
            _pooled(image, grid, mm)
            for image, grid in zip(images, (affine, second_affine), strict=True)
        ]
        level = Level(*reduced[0], *reduced[1], axis, toward, kappa, centre)
        coarse, transform = level.solve(_pooled(d, affine, mm)[0], transform)
        d = _spread(coarse, _factors(affine, mm), d.shape)
    d, transform = _adjusted(d, transform, affine, axis, toward, kappa, inside)
    where = torch.as_tensor(inside, device=device)
    whole = Level(images[0], affine, images[1], second_affine, axis, toward, kappa, centre)
    shift = d[where].abs()
    size = float(voxel_sizes(affine)[axis])
    return ReversedPair(
        displacement=np.asarray((d / size).cpu().numpy(), np.float32),
        matrix=transform,
        motion=_parameters(transform, centre),
        similarity_before=whole.similarity(torch.zeros_like(d), np.eye(4), where),
        similarity_after=whole.similarity(d, transform, where),
        median_mm=float(shift.median()),
        max_mm=float(shift.max()),
    )


def _scaled(image: FloatArray, device: str) -> Tensor:
    """``image`` in units of the mean of what is bright in it."""
    array = np.nan_to_num(np.asarray(image, np.float32))
    bright = array > otsu(array)
    if not bright.any():
        raise BadData(
            'one of the two b = 0 images of the reversed pair is empty or constant: leave it out '
            'of fmap/, or out of IntendedFor'
        )
    return torch.as_tensor(np.ascontiguousarray(array / array[bright].mean()), device=device)


def _second_axis(affine: FloatArray, second: FloatArray, axis: int) -> tuple[np.ndarray, float]:
    """The second grid's axis that is nearest to ``axis`` of the first, turned to point with it.

    Returns its unit vector (3,) in world axes and its voxel size in mm.
    """
    cosines = grid_axes(second).T @ grid_axes(affine)[:, axis]
    nearest = int(np.abs(cosines).argmax())
    if abs(cosines[nearest]) < LEAST_COSINE:
        angle = np.rad2deg(np.arccos(abs(cosines[nearest])))
        raise BadData(
            f'the phase-encoding axes of the reversed pair lie {angle:.0f} degrees apart; they '
            'must nearly coincide: give another pair, or none'
        )
    unit = grid_axes(second)[:, nearest] * np.sign(cosines[nearest])
    return np.asarray(unit), float(voxel_sizes(second)[nearest])


def _adjusted(
    d: Tensor,
    transform: FloatArray,
    affine: FloatArray,
    axis: int,
    toward: FloatArray,
    kappa: float,
    mask: NDArray[np.bool_],
) -> tuple[Tensor, np.ndarray]:
    """Divide what shifts the images against each other between the field and the head.

    d(x + c u) + c with T shifted by (1 + κ) c fits as well as d, which was found with no motion
    along u. The scanner's frequency keeps the median of d near 0 (`ADJUSTMENT`), and along u the
    head moved about as much as it did otherwise: the likeliest c for two normal distributions.
    """
    inside = torch.as_tensor(mask, device=d.device)
    centre = affine[:3, :3] @ np.argwhere(mask).mean(0) + affine[:3, 3]
    motion = _parameters(transform, centre) * np.repeat([1.0, RADIUS], 3)
    variance = float(np.square(motion).sum() / 5)  # five parameters were free
    share = variance / (variance + ((1 + kappa) * ADJUSTMENT) ** 2 + 1e-12)
    size = float(voxel_sizes(affine)[axis])
    c, shifted = 0.0, d
    wanted = (1 - share) * float(d[inside].median())
    for _ in range(4):
        c += wanted - float(shifted[inside].median())
        shifted = sample_along(d, torch.full_like(d, c / size), axis, 1) + c
    before, after = np.eye(4), np.eye(4)
    before[:3, 3], after[:3, 3] = c * grid_axes(affine)[:, axis], kappa * c * toward
    return shifted, np.asarray(after @ transform @ before)


def _parameters(transform: FloatArray, centre: FloatArray) -> np.ndarray:
    """(6,) `resampling.Warp` parameters of a rigid ``transform`` (4, 4) about ``centre``."""
    from scipy.spatial.transform import Rotation

    shift = transform[:3, :3] @ centre + transform[:3, 3] - centre
    turn = Rotation.from_matrix(transform[:3, :3]).as_rotvec()
    return np.asarray(np.r_[shift, turn])


def _factors(affine: FloatArray, mm: float) -> list[int]:
    """Voxels along each axis that make one of at least about ``mm``."""
    return [max(1, round(mm / float(size))) for size in voxel_sizes(affine)]


def _pooled(image: Tensor, affine: FloatArray, mm: float) -> tuple[Tensor, np.ndarray]:
    """``image`` (X, Y, Z) and its affine with voxels averaged to about ``mm``."""
    factors = _factors(affine, mm)
    padding = [end for n, f in zip(image.shape, factors, strict=True) for end in (-n % f, 0)]
    padded = functional.pad(image[None, None], padding[::-1], mode='replicate')
    grid = affine @ np.diag([*factors, 1.0])
    grid[:3, 3] += affine[:3, :3] @ ((np.array(factors) - 1) / 2)
    return functional.avg_pool3d(padded, factors)[0, 0], np.asarray(grid)


def _spread(coarse: Tensor, factors: list[int], shape: Sequence[int]) -> Tensor:
    """The inverse of `_pooled` for a smooth image: linear interpolation."""
    shape_padded = [n * f for n, f in zip(coarse.shape, factors, strict=True)]
    fine = functional.interpolate(coarse[None, None], shape_padded, mode='trilinear')[0, 0]
    return fine[: shape[0], : shape[1], : shape[2]].contiguous()
