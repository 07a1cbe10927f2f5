"""Cascades that start from total variation: a U-Net corrects, the data have the last word.

Each cascade adds a correction v = x + U(x, Aᴴ y), and then solves (AᴴA + λ) x = Aᴴ y + λ v by a
few steps of conjugate gradients, λ learnt (Aggarwal et al., IEEE TMI 38:394, 2019).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from bidsapp.modalities.kspace.networks.normalised import channels_of, image_of, unit_of
from bidsapp.modalities.kspace.physics.fourier import ALONG_PHASE, BOTH
from bidsapp.modalities.kspace.physics.sense import sense
from bidsapp.networks.base import Network
from bidsapp.networks.pointwise import Pointwise
from bidsapp.networks.unet3d import Body, stride_of
from bidsapp.physics.solvers import conjugate_gradient

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bidsapp.physics.operators import LinearOperator

KERNEL = (3, 3, 1)
#: λ that cascades begin with, and steps of the solve.
WEIGHT, STEPS = 0.3, 6


class Cascades(Network):
    """(B, 4, X, Y, 1): real and imaginary part of the start and of Aᴴ y → those of the image.

    ``context`` has ``maps`` (B, C, X, Y), complex, and ``mask`` (B, 1, X, Y), or (B, 1, 1, Y) of
    whole lines, for which X is in hybrid space and may be a crop. There is one task, whose head
    makes the last correction.
    """

    def __init__(
        self,
        channels_in: int,
        heads: Mapping[str, int],
        cascades: int = 2,
        widths: Sequence[int] = (16, 32, 64, 128),
    ) -> None:
        super().__init__()
        if channels_in != 4 or list(heads.values()) != [2]:
            raise ValueError('cascades map 4 channels to the 2 of one task')
        self.stride = stride_of(KERNEL, len(widths))
        self.body = nn.ModuleDict(
            {
                'features': nn.ModuleList(Body(4, widths, KERNEL) for _ in range(cascades)),
                'corrections': nn.ModuleList(Pointwise(widths[0], 2) for _ in range(cascades - 1)),
            }
        )
        self.heads = nn.ModuleDict({task: Pointwise(widths[0], 2) for task in heads})
        self.log_weights = nn.Parameter(torch.full((cascades,), math.log(WEIGHT)))
        for last in self._corrections():  # begins as total variation, made consistent with data
            for parameter in last.parameters():
                nn.init.zeros_(parameter)

    def _corrections(self) -> list[nn.Module]:
        return [*self.body.get_submodule('corrections').children(), *self.heads.children()]

    def forward(self, image: Tensor, context: Mapping[str, Tensor]) -> Tensor:
        """The image, with the size and the phase that came in."""
        x, back = image_of(image[:, :2]), image_of(image[:, 2:])
        unit = unit_of(back)
        x, back = x / unit, back / unit
        mask = context['mask']
        operator = sense(context['maps'], mask, ALONG_PHASE if mask.shape[-2] == 1 else BOTH)
        features = self.body.get_submodule('features').children()
        steps = zip(features, self._corrections(), self.log_weights.exp(), strict=True)
        for body, last, weight in steps:
            seen = torch.cat([channels_of(x), channels_of(back)], 1)
            corrected = x + image_of(last(body(seen)).float())
            x = consistent(operator, back, corrected, weight)
        return channels_of(x * unit)


def consistent(operator: LinearOperator, back: Tensor, image: Tensor, weight: Tensor) -> Tensor:
    """argmin ‖A x - y‖² + λ ‖x - v‖² by a few steps from v (B, X, Y); ``back`` is Aᴴ y."""
    return conjugate_gradient(
        lambda x: operator.gram(x) + weight * x,
        back + weight * image, steps=STEPS, start=image, batch_dims=1,
    )  # fmt: skip
