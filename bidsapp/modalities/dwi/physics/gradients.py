"""Gradient tables: frames, shells, rotation, and the examination of a table as it was given."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from bidsapp.physics.geometry import grid_axes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bidsapp.core import FloatArray

#: s/mm²; a volume of at most this b counts as not diffusion-weighted, unless another is asked for.
B0_THRESHOLD = 50.0
#: s/mm²; where no volume lies below the threshold, the lowest up to this b stand for b = 0.
HIGHEST_B0 = 100.0
#: s/mm²; a volume that counts as b = 0 keeps its direction from this b on.
UNWEIGHTED = 10.0


@dataclass(frozen=True, slots=True, eq=False)
class GradientTable:
    """Diffusion gradients of one run: ``bvecs`` (N, 3) unit vectors, ``bvals`` (N,) in s/mm².

    The axes of ``bvecs`` are named where a table is made: world (RAS+) unless said otherwise.
    A volume that counts as b = 0 has a zero vector, or its own where it was weighted a little;
    models take its b as it is.
    """

    bvecs: FloatArray
    bvals: FloatArray
    b0_threshold: float = B0_THRESHOLD  #: s/mm², the greatest b that counts as b = 0

    def __post_init__(self) -> None:
        if self.bvecs.shape != (len(self.bvals), 3):
            raise ValueError(f'bvecs {self.bvecs.shape} do not fit {len(self.bvals)} b-values')

    def __len__(self) -> int:
        return len(self.bvals)

    def __getitem__(self, index: Any) -> GradientTable:
        return replace(self, bvecs=self.bvecs[index], bvals=self.bvals[index])

    @property
    def b0(self) -> NDArray[np.bool_]:
        """(N,) which volumes count as not diffusion-weighted."""
        return self.bvals <= self.b0_threshold

    def shells(self) -> list[tuple[float, np.ndarray]]:
        """(mean b, volume indices) of each shell, b ascending: `shells` of the weighted volumes."""
        return shells(self.bvals, self.b0_threshold)


def b0_limit(bvals: FloatArray, threshold: float = B0_THRESHOLD) -> float:
    """The greatest b that counts as b = 0: ``threshold``, or that of what has to stand for it.

    Where all volumes are above it, those up to HIGHEST_B0 are the lowest shell.
    """
    low = bvals[bvals <= HIGHEST_B0]
    return threshold if (bvals <= threshold).any() or not low.size else float(low.max())


#: Degrees; two directions nearer than this (up to sign) count as one.
SAME_DIRECTION = 2.0


def _fsl_to_world(affine: FloatArray) -> np.ndarray:
    """(3, 3) matrix that takes a bvec column, as BIDS and FSL store it, to world axes.

    BIDS: components lie along the image axes, the first reversed when det(affine) > 0.
    """
    axes = grid_axes(affine)
    flip = np.diag([-1.0 if np.linalg.det(axes) > 0 else 1.0, 1.0, 1.0])
    return np.asarray(axes @ flip)


def from_fsl(
    bvecs: FloatArray, bvals: FloatArray, affine: FloatArray, b0_threshold: float = B0_THRESHOLD
) -> GradientTable:
    """World-axes table from ``bvecs`` (3, N) and ``bvals`` (N,) as stored beside an image."""
    world = (_fsl_to_world(affine) @ bvecs).T
    norms = np.linalg.norm(world, axis=1, keepdims=True)
    unit = np.divide(world, norms, out=np.zeros_like(world), where=norms > 0)
    values = np.asarray(bvals, float)
    unit[(values <= b0_threshold) & (values < UNWEIGHTED)] = 0
    return GradientTable(unit, values, b0_threshold)


def to_fsl(gtab: GradientTable, affine: FloatArray) -> np.ndarray:
    """(3, N) bvec of a world-axes table for an image with ``affine``."""
    return np.asarray(_fsl_to_world(affine).T @ gtab.bvecs.T)


def in_grid(gtab: GradientTable, affine: FloatArray) -> GradientTable:
    """A world-axes table in the axes of the grid itself (signed by the direction of each axis)."""
    return replace(gtab, bvecs=gtab.bvecs @ grid_axes(affine))


def rotated(gtab: GradientTable, rotations: FloatArray) -> GradientTable:
    """Each vector turned by its own ``rotations`` (N, 3, 3), or all by one (3, 3)."""
    turn = np.broadcast_to(rotations, (len(gtab), 3, 3))
    return replace(gtab, bvecs=np.einsum('nij,nj->ni', turn, gtab.bvecs))


def shells(bvals: FloatArray, b0_threshold: float = B0_THRESHOLD) -> list[tuple[float, np.ndarray]]:
    """(mean b, volume indices) of each cluster of b-values above the threshold, b ascending.

    Values belong together while consecutive ones differ by at most 5 % + 50 s/mm²; they are never
    rounded to thousands.
    """
    order = np.argsort(bvals, kind='stable')
    order = order[bvals[order] > b0_threshold]
    if not len(order):
        return []
    values = bvals[order]
    breaks = np.flatnonzero(np.diff(values) > 0.05 * values[:-1] + 50) + 1
    return [(float(bvals[part].mean()), np.sort(part)) for part in np.split(order, breaks)]


def n_unique(bvecs: FloatArray) -> int:
    """How many of ``bvecs`` (N, 3) differ up to sign."""
    kept: list[np.ndarray] = []
    limit = np.cos(np.deg2rad(SAME_DIRECTION))
    for vector in bvecs:
        if not kept or np.max(np.abs(np.stack(kept) @ vector)) < limit:
            kept.append(vector)
    return len(kept)


def tensor_design(gtab: GradientTable) -> np.ndarray:
    """(N, 7) rows of ln S = ln S0 - b gᵀDg; columns Dxx Dyy Dzz Dxy Dxz Dyz ln S0.

    D in mm²/s is scaled by 1e-3 (that is, the unknown is in µm²/ms), so that columns compare. Of a
    volume that was weighted in no known direction the mean over all directions is taken.
    """
    x, y, z = gtab.bvecs.T
    b = gtab.bvals * 1e-3
    quadratic = np.stack([x * x, y * y, z * z, 2 * x * y, 2 * x * z, 2 * y * z], axis=1)
    quadratic[~gtab.bvecs.any(1), :3] = 1 / 3
    return np.column_stack([-b[:, None] * quadratic, np.ones(len(gtab))])
