"""Rotations by right angles and mirrors of a head: no voxel is interpolated, no fibre lost."""

from __future__ import annotations

from functools import cache
from itertools import permutations, product
from typing import TYPE_CHECKING

import numpy as np

from bidsapp.physics import sharpening
from bidsapp.physics.harmonics import basis, fibonacci_hemisphere
from bidsapp.physics.qspace import (
    DENSITY_CHANNELS,
    N_SH,
    ORDER,
    SIZE_CHANNELS,
    SLOT_CHANNELS,
    SLOTS,
)

if TYPE_CHECKING:
    from torch import Tensor

    from bidsapp.core import Turn

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


@cache
def turned_harmonics(turn: Turn, order: int = ORDER) -> np.ndarray:
    """(K, K) coefficients of f(Q⁻¹u) from those of f(u), for a rotation or mirror Q."""
    directions = fibonacci_hemisphere(200)
    matrix = np.linalg.pinv(basis(directions, order)) @ basis(directions @ np.array(turn), order)
    return np.asarray(np.where(np.abs(matrix) < 1e-6, 0, matrix), np.float32)


def turned_channels(image: Tensor, turn: Turn) -> Tensor:
    """The canonical input (…, N_CHANNELS, X, Y, Z) of a scan whose axes are turned by ``turn``.

    ``turn`` (3, 3) is a signed permutation: the head, its fibres and its voxels are rotated or
    mirrored together. Every voxel moves, so no value is interpolated.
    """
    import torch

    moved = turned_voxels(image, turn).contiguous()
    turned_harmonics_of_slots(moved, turn, SLOT_CHANNELS)
    density = moved[..., DENSITY_CHANNELS, :, :, :]
    matrix = torch.from_numpy(turned_harmonics(turn, sharpening.ORDER)).to(moved)
    density.copy_(torch.einsum('dc,...cxyz->...dxyz', matrix, density))
    # The head keeps its voxels, whose edges now lie along other axes.
    sizes = moved[..., SIZE_CHANNELS, :, :, :]
    order = np.abs(np.array(turn)).argmax(1).tolist()
    sizes.copy_(sizes[..., order, :, :, :].clone())
    return moved


def turned_harmonics_of_slots(values: Tensor, turn: Turn, stride: int = N_SH) -> Tensor:
    """Turn, in place, the harmonics (…, slots · ``stride`` [+ more], X, Y, Z) that begin a slot."""
    import torch

    harmonics = torch.from_numpy(turned_harmonics(turn)).to(values)
    for slot in range(len(SLOTS)):
        part = values[..., slot * stride : slot * stride + N_SH, :, :, :]
        if part.any():
            part.copy_(torch.einsum('dc,...cxyz->...dxyz', harmonics, part))
    return values


def turned_voxels(array: Tensor, turn: Turn) -> Tensor:
    """(…, X, Y, Z) with its last three axes permuted and flipped by a signed permutation."""
    matrix = np.array(turn)
    source = np.abs(matrix).argmax(1)  # new axis i runs along old axis source[i]
    lead = array.ndim - 3
    moved = array.permute(*range(lead), *(lead + int(axis) for axis in source))
    flipped = [lead + i for i in range(3) if matrix[i, source[i]] < 0]
    return moved.flip(flipped) if flipped else moved
