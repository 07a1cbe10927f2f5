"""Images brought to one size and phase for a network, and back."""

from __future__ import annotations

import torch
from torch import Tensor

#: Of |Aᴴ y| that counts as 1.
QUANTILE = 0.99


def unit_of(zero_filled: Tensor) -> Tensor:
    """(B, 1, 1) complex: the 99th percentile of |Aᴴ y| (B, X, Y) and the phase of its sum.

    An image over its unit stays the same whatever k-space is multiplied by.
    """
    size = torch.quantile(zero_filled.abs().flatten(1), QUANTILE, dim=1)
    total = zero_filled.flatten(1).sum(1)
    turn = torch.where(total.abs() > 0, total / total.abs().clamp_min(1e-30), 1.0)
    return (size.clamp_min(1e-30) * turn)[:, None, None]


def channels_of(image: Tensor) -> Tensor:
    """Complex (B, X, Y) → real and imaginary part, (B, 2, X, Y, 1)."""
    return torch.view_as_real(image).movedim(-1, 1)[..., None]


def image_of(channels: Tensor) -> Tensor:
    """(B, 2, X, Y, 1) → complex (B, X, Y)."""
    return torch.view_as_complex(channels[..., 0].movedim(1, -1).contiguous())
