"""Images brought to one size and phase for a network, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from bidsapp.modalities.kspace.physics.sense import brightness

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor


def unit_of(zero_filled: Tensor) -> Tensor:
    """(B, 1, 1) complex: the 99th percentile of |Aᴴ y| (B, X, Y) and the phase of its sum.

    An image over its unit stays the same whatever k-space is multiplied by.
    """
    total = zero_filled.sum((1, 2), keepdim=True)
    turn = torch.where(total.abs() > 0, total / total.abs().clamp_min(1e-30), 1.0)
    return brightness(zero_filled) * turn


def channels_of(image: Tensor) -> Tensor:
    """Complex (B, X, Y) → real and imaginary part, (B, 2, X, Y, 1)."""
    return torch.view_as_real(image).movedim(-1, 1)[..., None]


def image_of(channels: Tensor) -> Tensor:
    """(B, 2, X, Y, 1) → complex (B, X, Y)."""
    return torch.view_as_complex(channels[..., 0].movedim(1, -1).contiguous())


def plane_by_plane(
    function: Callable[[Tensor, Mapping[str, Tensor]], Tensor],
    image: Tensor,
    context: Mapping[str, Tensor],
) -> Tensor:
    """``function`` of image (B, K, X, Y, 1) and context, plane by plane along the last axis.

    So that what it takes at once is what one plane takes.
    """
    found = []
    for z in range(image.shape[-1]):
        plane = slice(z, z + 1)
        own = {name: value[..., plane] for name, value in context.items()}
        found.append(function(image[..., plane], own))
    return torch.cat(found, -1)
