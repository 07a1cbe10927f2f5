"""How what a network sees of slices is turned and rephased, and what a card says of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from bidsapp.core import Batch
from bidsapp.modalities.kspace.physics.seen import CHANNELS
from bidsapp.physics.geometry import turned_voxels

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Generator, Tensor

    from bidsapp.core import Sample, Turn

#: Radians that a phase drawn anew turns from the middle of an image to its edge, typically.
TURNING = 2.0


def turned(
    image: Tensor, context: Mapping[str, Tensor], turn: Turn
) -> tuple[Tensor, Mapping[str, Tensor]]:
    """Image and context of slices that are mirrored or turned in their plane.

    Maps are turned as the image is. Of k-space the origin stays where it is, n // 2: the mirror
    image of sample k is sample -k, and of an even number the first, -n / 2, is its own. Raises
    ValueError for a turn out of the plane.
    """
    if turn[2][:2] != (0, 0):
        raise ValueError('slices are not turned out of their plane')
    moved = dict(context)
    if 'maps' in moved:
        moved['maps'] = turned_voxels(moved['maps'], turn)
        mask = turned_voxels(moved['mask'], turn)
        for axis, row in zip((-3, -2), turn[:2], strict=True):
            if sum(row) < 0 and mask.shape[axis] % 2 == 0:
                mask = mask.roll(1, axis)
        moved['mask'] = mask
        if turn[2][2] < 0:
            moved['sigma'] = moved['sigma'].flip(-1)
    return turned_voxels(image, turn), moved


def rephased(batch: Batch, generator: Generator) -> Batch:
    """Slices with another smooth phase, which the maps take off again: the data stay the same."""
    x, y = (torch.linspace(-1, 1, n) for n in batch.image.shape[2:4])
    one, other = x[:, None].expand(len(x), len(y)), y.expand(len(x), len(y))
    shapes = torch.stack([torch.ones_like(one), one, other, one * other, one**2, other**2])
    weights = TURNING * torch.randn(len(batch.image), len(shapes), generator=generator)
    angle = torch.einsum('bk,kxy->bxy', weights, shapes)
    phase = torch.polar(torch.ones_like(angle), angle)[..., None].to(batch.image.device)
    context = dict(batch.context)
    context['maps'] = context['maps'] * phase[:, None].conj()
    return Batch(_times(batch.image, phase), _times(batch.target, phase), batch.mask, context)


def _times(channels: Tensor, phase: Tensor) -> Tensor:
    """(B, 2n, X, Y, Z) pairs of real and imaginary parts, times (B, X, Y, 1)."""
    pairs = channels.unflatten(1, (-1, 2)).movedim(2, -1).contiguous()
    found = torch.view_as_real(torch.view_as_complex(pairs) * phase[:, None])
    return found.movedim(-1, 2).flatten(1, 2)


def about(samples: Sequence[Sample]) -> dict[str, Any]:
    """What a card says of the input."""
    return {'input': f'{", ".join(CHANNELS)}; coil maps, mask and noise (docs/architecture.md)'}
