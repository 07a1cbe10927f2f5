"""Rotations by right angles and mirrors of a head: no voxel is interpolated, no fibre lost."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from bidsapp.modalities.dwi.physics import fixed_response_fod, log_tensor
from bidsapp.modalities.dwi.physics.harmonics import turning
from bidsapp.modalities.dwi.physics.qspace import (
    DENSITY_CHANNELS,
    N_SH,
    ORDER,
    SIZE_CHANNELS,
    SLOT_CHANNELS,
    SLOTS,
    TENSOR_CHANNELS,
)
from bidsapp.physics.geometry import turned_voxels

if TYPE_CHECKING:
    from torch import Tensor

    from bidsapp.core import Turn


@cache
def turned_harmonics(turn: Turn, order: int = ORDER) -> np.ndarray:
    """(K, K) coefficients of f(Q⁻¹u) from those of f(u), for a rotation or mirror Q."""
    matrix = turning(np.array(turn), order)
    return np.asarray(np.where(np.abs(matrix) < 1e-6, 0, matrix), np.float32)


def turned_channels(image: Tensor, turn: Turn) -> Tensor:
    """The canonical input (…, N_CHANNELS, X, Y, Z) of a scan whose axes are turned by ``turn``.

    ``turn`` (3, 3) is a signed permutation: the head, its fibres and its voxels are rotated or
    mirrored together. Every voxel moves, so no value is interpolated.
    """
    import torch

    moved = turned_voxels(image, turn).contiguous()
    turned_harmonics_of_slots(moved, turn, SLOT_CHANNELS)
    for channels, order in (
        (DENSITY_CHANNELS, fixed_response_fod.ORDER),
        (TENSOR_CHANNELS, log_tensor.ORDER),
    ):
        values = moved[..., channels, :, :, :]
        matrix = torch.from_numpy(turned_harmonics(turn, order)).to(moved)
        values.copy_(torch.einsum('dc,...cxyz->...dxyz', matrix, values))
    # The head keeps its voxels, whose edges now lie along other axes.
    sizes = moved[..., SIZE_CHANNELS, :, :, :]
    edges = np.abs(np.array(turn)).argmax(1).tolist()
    sizes.copy_(sizes[..., edges, :, :, :].clone())
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
