"""What a susceptibility map does not explain of the local field."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bidsapp.modalities.gre.physics.dipole import convolved, kspace
from bidsapp.modalities.gre.physics.maps import Frame

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bidsapp.core import BoolArray, FloatArray


def field_of(
    chi: FloatArray, mask: BoolArray, affine: FloatArray, b: Sequence[float]
) -> np.ndarray:
    """(X, Y, Z) ppm: the field of ``chi`` (ppm) in ``mask``, within the box of the mask.

    ``b`` (3,) is the direction of B0 along the voxel axes.
    """
    frame = Frame.of(mask, affine)
    inside = frame.into(np.where(mask, chi - chi[mask].mean(), 0))
    return frame.back(convolved(inside, kspace(frame.padded, frame.voxel_mm, b)))


def unexplained(
    local: FloatArray,
    chi: FloatArray,
    known: BoolArray,
    mask: BoolArray,
    affine: FloatArray,
    b: Sequence[float],
) -> np.ndarray:
    """(X, Y, Z) ppm, mean 0 where the ``local`` field is ``known``: what χ in ``mask`` leaves."""
    left = local - field_of(chi, mask, affine, b)
    return np.where(known, left - left[known].mean(), 0)
