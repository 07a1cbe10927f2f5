"""Gradient tables: frames, shells, rotation, and the examination of a table as it was given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bidsapp.core import B0_THRESHOLD, Acquisition, BadData, GradientTable

if TYPE_CHECKING:
    from bidsapp.core import FloatArray

#: Degrees; two directions nearer than this (up to sign) count as one.
SAME_DIRECTION = 2.0
#: A vector whose norm differs from 1 by more than this is reported.
NORM_TOLERANCE = 0.05
#: Smallest number of different directions that determine a tensor.
MIN_DIRECTIONS = 6
#: Largest condition number of the tensor's design matrix that counts as determined.
MAX_CONDITION = 1e3


@dataclass(frozen=True, slots=True)
class Finding:
    """Something noticed in a table. ``severity`` is 'error' or 'warning'."""

    severity: str
    code: str
    message: str


def grid_axes(affine: FloatArray) -> np.ndarray:
    """(3, 3) orthonormal directions of the voxel axes in world axes, one a column.

    A shear in the affine is divided evenly among the axes (polar decomposition). The determinant
    keeps its sign: -1 for a left-handed grid.
    """
    left, _, right = np.linalg.svd(np.asarray(affine, float)[:3, :3] / voxel_sizes(affine))
    return np.asarray(left @ right)


def voxel_sizes(affine: FloatArray) -> np.ndarray:
    """(3,) voxel edge lengths in mm."""
    return np.asarray(np.linalg.norm(np.asarray(affine, float)[:3, :3], axis=0))


def _fsl_to_world(affine: FloatArray) -> np.ndarray:
    """(3, 3) matrix that takes a bvec column, as BIDS and FSL store it, to world axes.

    BIDS: components lie along the image axes, the first reversed when det(affine) > 0.
    """
    axes = grid_axes(affine)
    flip = np.diag([-1.0 if np.linalg.det(axes) > 0 else 1.0, 1.0, 1.0])
    return np.asarray(axes @ flip)


def from_fsl(bvecs: FloatArray, bvals: FloatArray, affine: FloatArray) -> GradientTable:
    """World-axes table from ``bvecs`` (3, N) and ``bvals`` (N,) as stored beside an image."""
    world = (_fsl_to_world(affine) @ bvecs).T
    norms = np.linalg.norm(world, axis=1, keepdims=True)
    unit = np.divide(world, norms, out=np.zeros_like(world), where=norms > 0)
    unit[np.asarray(bvals) < B0_THRESHOLD] = 0
    return GradientTable(unit, np.asarray(bvals, float))


def to_fsl(gtab: GradientTable, affine: FloatArray) -> np.ndarray:
    """(3, N) bvec of a world-axes table for an image with ``affine``."""
    return np.asarray(_fsl_to_world(affine).T @ gtab.bvecs.T)


def in_grid(gtab: GradientTable, affine: FloatArray) -> GradientTable:
    """A world-axes table in the axes of the grid itself (signed by the direction of each axis)."""
    return GradientTable(gtab.bvecs @ grid_axes(affine), gtab.bvals)


def rotated(gtab: GradientTable, rotations: FloatArray) -> GradientTable:
    """Each vector turned by its own ``rotations`` (N, 3, 3), or all by one (3, 3)."""
    turn = np.broadcast_to(rotations, (len(gtab), 3, 3))
    return GradientTable(np.einsum('nij,nj->ni', turn, gtab.bvecs), gtab.bvals)


def nearest_rotation(matrix: FloatArray) -> np.ndarray:
    """The proper rotation nearest to a (3, 3) matrix (polar decomposition)."""
    left, _, right = np.linalg.svd(matrix)
    return np.asarray(left @ np.diag([1, 1, np.linalg.det(left @ right)]) @ right)


def shells(bvals: FloatArray) -> list[tuple[float, np.ndarray]]:
    """(mean b, volume indices) of each cluster of non-zero b-values, b ascending.

    Values belong together while consecutive ones differ by at most 5 % + 50 s/mm²; they are never
    rounded to thousands.
    """
    order = np.argsort(bvals, kind='stable')
    order = order[bvals[order] >= B0_THRESHOLD]
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

    D in mm²/s is scaled by 1e-3 (that is, the unknown is in µm²/ms), so that columns compare.
    """
    x, y, z = gtab.bvecs.T
    b = gtab.bvals * 1e-3
    quadratic = np.stack([x * x, y * y, z * z, 2 * x * y, 2 * x * z, 2 * y * z], axis=1)
    return np.column_stack([-b[:, None] * quadratic, np.ones(len(gtab))])


def acquisition(gtab: GradientTable, has_t1w: bool = False) -> Acquisition:
    """The facts that decide what a run can give."""
    weighted = gtab[~gtab.b0]
    groups = tuple((b, n_unique(gtab.bvecs[i])) for b, i in shells(gtab.bvals))
    quadratic = tensor_design(weighted)[:, :6] / np.maximum(weighted.bvals[:, None] * 1e-3, 1e-9)
    condition = float(np.linalg.cond(quadratic)) if len(weighted) >= MIN_DIRECTIONS else np.inf
    return Acquisition(n_unique(weighted.bvecs), groups, condition, has_t1w)


def determines_tensor(facts: Acquisition) -> bool:
    """Whether six directions that differ up to sign are there, and well enough spread."""
    return facts.directions >= MIN_DIRECTIONS and facts.condition <= MAX_CONDITION


def examine(
    bvecs: FloatArray, bvals: FloatArray, n_volumes: int
) -> tuple[np.ndarray, np.ndarray, list[Finding]]:
    """Look at a table as stored: (bvecs (3, N), bvals (N,), findings).

    A transposed table is turned, since its shape tells; nothing else is changed. With an error
    among the findings the returned table must not be used.
    """
    findings: list[Finding] = []

    def found(severity: str, code: str, message: str) -> None:
        findings.append(Finding(severity, code, message))

    bvecs, bvals = np.atleast_2d(np.asarray(bvecs, float)), np.asarray(bvals, float).ravel()
    if bvecs.shape[0] != 3 and bvecs.shape[1] == 3:
        bvecs = bvecs.T
        found(
            'warning',
            'BVEC_TRANSPOSED',
            f'the bvec file has {bvecs.shape[1]} rows of 3 numbers; BIDS wants 3 rows. '
            'It was read as its transpose.',
        )
    if len(bvals) != n_volumes:
        found(
            'error',
            'BVAL_COUNT',
            f'{len(bvals)} b-values for {n_volumes} volumes; there must be one for each volume',
        )
    if bvecs.shape != (3, n_volumes):
        found(
            'error',
            'BVEC_COUNT',
            f'the bvec file is {bvecs.shape[0]} x {bvecs.shape[1]}; '
            f'expected 3 rows of {n_volumes} numbers, one column for each volume',
        )
    if not (np.isfinite(bvecs).all() and np.isfinite(bvals).all()):
        found('error', 'GRADIENT_NAN', 'the gradient table holds values that are not numbers')
    if (bvals < 0).any():
        found('error', 'BVAL_NEGATIVE', 'the bval file holds negative b-values')
    if any(f.severity == 'error' for f in findings):
        return bvecs, bvals, findings
    findings += _examine_values(bvecs, bvals)
    return bvecs, bvals, findings


def _examine_values(bvecs: FloatArray, bvals: FloatArray) -> list[Finding]:
    """Findings about the numbers of a table whose shape is right."""
    findings: list[Finding] = []
    weighted = bvals >= B0_THRESHOLD
    norms = np.linalg.norm(bvecs, axis=0)
    if not weighted.any():
        message = f'all {len(bvals)} b-values are below {B0_THRESHOLD:g}: nothing is weighted'
        return [Finding('error', 'ALL_B0', message)]
    if (zero := np.flatnonzero(weighted & (norms < 1e-6))).size:
        message = (
            f'volumes {_listing(zero)} (counted from 0) have b > 0 and a gradient of length zero; '
            'give each its direction, or take out a volume that is an average (a trace image)'
        )
        return [Finding('error', 'ZERO_GRADIENT', message)]
    if weighted.all():
        message = f'no volume has b < {B0_THRESHOLD:g}; S/S0 needs at least one'
        findings.append(Finding('error', 'NO_B0', message))
    if (odd := np.flatnonzero(weighted & (np.abs(norms - 1) > NORM_TOLERANCE))).size:
        message = (
            f'gradients of volumes {_listing(odd)} are not of length 1; '
            'only their directions are used'
        )
        findings.append(Finding('warning', 'NORM', message))
    table = GradientTable(np.where(weighted, bvecs / np.maximum(norms, 1e-9), 0).T, bvals)
    facts = acquisition(table)
    if not determines_tensor(facts):
        message = (
            f'{facts.directions} different directions (up to sign), condition number '
            f'{facts.condition:.3g}; at least {MIN_DIRECTIONS} that determine a tensor are needed'
        )
        findings.append(Finding('error', 'TOO_FEW_DIRECTIONS', message))
    per_shell = sum(n for _, n in facts.shells)
    if per_shell < weighted.sum():
        message = f'{int(weighted.sum()) - per_shell} weighted volumes repeat a direction'
        findings.append(Finding('warning', 'REPEATED_DIRECTIONS', message))
    return findings


def _listing(indices: np.ndarray) -> str:
    shown = ', '.join(str(int(i)) for i in indices[:6])
    return shown + (f' and {len(indices) - 6} more' if len(indices) > 6 else '')


def well_spread(gtab: GradientTable, n: int) -> np.ndarray:
    """Indices of the b=0 volumes and of ``n`` weighted ones that are spread as they can be.

    Greedy: the next direction is the one farthest (up to sign) from those chosen, starting from
    the first of the largest shell; all of that shell before any other. Raises BadData if the
    table has fewer.
    """
    weighted = np.flatnonzero(~gtab.b0)
    if n > len(weighted):
        raise BadData(f'{n} input directions were asked for; the run has {len(weighted)}')
    by_size = sorted((members for _, members in shells(gtab.bvals)), key=len, reverse=True)
    chosen: list[int] = []
    for members in by_size:
        candidates = [int(i) for i in members]
        while candidates and len(chosen) < n:
            taken = gtab.bvecs[chosen] if chosen else gtab.bvecs[candidates[:1]]
            nearest = np.abs(gtab.bvecs[candidates] @ taken.T).max(1)
            chosen.append(candidates.pop(int(nearest.argmin()) if chosen else 0))
    return np.sort(np.concatenate([np.flatnonzero(gtab.b0), chosen]))


def halves(gtab: GradientTable) -> list[np.ndarray]:
    """Indices of two halves of the weighted volumes, each with all b=0; none if too few.

    Within a shell the volumes are dealt out in turn by a fixed shuffle, so both halves have every
    shell and spread over the sphere. A half that does not determine a tensor is no half.
    """
    rng = np.random.default_rng(0)
    dealt = np.concatenate([rng.permutation(members) for _, members in shells(gtab.bvals)])
    b0 = np.flatnonzero(gtab.b0)
    parts = [np.sort(np.concatenate([b0, dealt[start::2]])) for start in (0, 1)]
    enough = all(determines_tensor(acquisition(gtab[part])) for part in parts)
    return parts if enough else []
