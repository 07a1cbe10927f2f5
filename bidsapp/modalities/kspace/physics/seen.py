"""What a network sees of planes: where it starts, the zero-filled image, and the operator.

The start is total variation. Nothing is divided by anything: networks do that themselves, so that
what is seen stays in the units of the samples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from bidsapp.modalities.kspace.physics.fourier import PHASE, READOUT
from bidsapp.modalities.kspace.physics.sense import sense
from bidsapp.physics.operators import Fourier

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from bidsapp.modalities.kspace.physics.planes import Plane
    from bidsapp.physics.operators import LinearOperator

#: Channels of an image: real and imaginary part of the start, then of the zero-filled image.
CHANNELS = ('start_real', 'start_imaginary', 'zerofilled_real', 'zerofilled_imaginary')


def seen(plane: Plane) -> tuple[Tensor, dict[str, Tensor]]:
    """Image (4, X, Y, 1) and context of one plane.

    The context: ``maps`` (C, X, Y, 1), ``mask`` (1, 1 or X, Y, 1), and ``sigma`` (1,) of the
    samples. Several planes are `stacked`.
    """
    pairs = torch.view_as_real(torch.stack([plane.start(), plane.zero_filled]))
    context = {
        'maps': plane.maps[..., None],
        'mask': plane.mask[..., None].float(),
        'sigma': torch.tensor([plane.sigma], dtype=torch.float32),
    }
    return pairs.permute(0, 3, 1, 2).flatten(0, 1)[..., None].float(), context


def stacked(
    planes: Sequence[tuple[Tensor, dict[str, Tensor]]],
) -> tuple[Tensor, dict[str, Tensor]]:
    """Planes of `seen` as one image (4, X, Y, Z) and one context, Z last.

    Those with fewer coils get coils that see nothing. Raises ValueError where some are of whole
    lines and others are not.
    """
    contexts = [context for _, context in planes]
    if len({context['mask'].shape[1] == 1 for context in contexts}) > 1:
        raise ValueError('planes of whole lines and of samples do not make one stack')
    coils = max(len(context['maps']) for context in contexts)
    maps = [
        functional.pad(context['maps'], [0, 0] * 3 + [0, coils - len(context['maps'])])
        for context in contexts
    ]
    return torch.cat([image for image, _ in planes], -1), {
        'maps': torch.cat(maps, -1),
        'mask': torch.cat([context['mask'] for context in contexts], -1),
        'sigma': torch.cat([context['sigma'] for context in contexts]),
    }


def operator_of(context: Mapping[str, Tensor]) -> LinearOperator:
    """A of one plane: image (…, X, Y) → (…, C, X, Y), from a ``context`` with a last axis of 1.

    A mask that is one for all of an axis is in hybrid space along it: readout, or, of an image
    that was turned, the other.
    """
    maps, mask = context['maps'].squeeze(-1), context['mask'].squeeze(-1)
    axes = tuple(axis for axis in (READOUT, PHASE) if mask.shape[axis] > 1)
    return sense(maps, mask, Fourier(axes))
