"""Voxel axes and sizes, signed permutations of the axes."""

from __future__ import annotations

from itertools import permutations, product
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from bidsapp.core import FloatArray, Turn


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


def nearest_rotation(matrix: FloatArray) -> np.ndarray:
    """The proper rotation nearest to a (3, 3) matrix (polar decomposition)."""
    left, _, right = np.linalg.svd(matrix)
    return np.asarray(left @ np.diag([1, 1, np.linalg.det(left @ right)]) @ right)


#: The head as it is and mirrored left-right: both are anatomy.
MIRRORED: tuple[Turn, ...] = (
    ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    ((-1, 0, 0), (0, 1, 0), (0, 0, 1)),
)
#: All 48 signed permutations of the axes: what is true of a fibre is true of it turned.
ALL_TURNS: tuple[Turn, ...] = tuple(
    tuple(
        tuple(sign * int(k == axis) for k in range(3))
        for sign, axis in zip(signs, axes, strict=True)
    )
    for axes in permutations(range(3))
    for signs in product((1, -1), repeat=3)
)


def turned_voxels(array: Tensor, turn: Turn) -> Tensor:
    """(…, X, Y, Z) with its last three axes permuted and flipped by a signed permutation."""
    matrix = np.array(turn)
    source = np.abs(matrix).argmax(1)  # new axis i runs along old axis source[i]
    lead = array.ndim - 3
    moved = array.permute(*range(lead), *(lead + int(axis) for axis in source))
    flipped = [lead + i for i in range(3) if matrix[i, source[i]] < 0]
    return moved.flip(flipped) if flipped else moved
