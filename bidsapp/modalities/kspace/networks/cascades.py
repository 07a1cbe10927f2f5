"""Cascades that start from total variation: a U-Net corrects, the data have the last word.

Each cascade adds a correction v = x + U(x, Aᴴ y), and then solves (AᴴA + λ) x = Aᴴ y + λ v by a
few steps of conjugate gradients (Aggarwal et al., IEEE TMI 38:394, 2019). λ follows from the noise
by two numbers a cascade that are learnt: what is right for much noise is too much for little.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from bidsapp.modalities.kspace.networks.normalised import (
    channels_of,
    image_of,
    plane_by_plane,
    unit_of,
)
from bidsapp.modalities.kspace.physics.seen import CHANNELS, operator_of
from bidsapp.networks.base import Network
from bidsapp.networks.pointwise import Pointwise
from bidsapp.networks.unet3d import Body, stride_of
from bidsapp.physics.solvers import conjugate_gradient

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bidsapp.physics.operators import LinearOperator

KERNEL = (3, 3, 1)
#: λ that cascades begin with where σ over the brightness of Aᴴ y is so much; its power of that
#: ratio, and between which the ratio is believed.
WEIGHT, USUAL, POWER, NOISE = 1.0, 0.02, 1.0, (1e-4, 1.0)
#: Steps of the solve, and at which residual, over the right-hand side, it ends before.
STEPS, ENOUGH = 6, 1e-5


class CascadesBody(nn.Module):
    """All of the cascades but the last correction."""

    def __init__(self, cascades: int, widths: Sequence[int]) -> None:
        super().__init__()
        channels = len(CHANNELS)
        self.features = nn.ModuleList(Body(channels, widths, KERNEL) for _ in range(cascades))
        self.corrections = nn.ModuleList(Pointwise(widths[0], 2) for _ in range(cascades - 1))
        self.weights = nn.Parameter(torch.tensor([[math.log(WEIGHT), POWER]] * cascades))

    def forward(self, last: nn.Module, image: Tensor, context: Mapping[str, Tensor]) -> Tensor:
        """One plane (B, 4, X, Y, 1) → (B, 2, X, Y, 1), by ``last`` as the last correction."""
        x, back = image_of(image[:, :2]), image_of(image[:, 2:])
        unit = unit_of(back)
        x, back = x / unit, back / unit
        operator = operator_of(context)
        noise = (context['sigma'][..., None] / unit.abs()).clamp(*NOISE) / USUAL
        steps = zip(self.features, [*self.corrections, last], self.weights, strict=True)
        for body, correction, (level, power) in steps:
            seen = torch.cat([channels_of(x), channels_of(back)], 1)
            features = body(seen)
            with torch.autocast(image.device.type, enabled=False):
                corrected = x + image_of(correction(features.float()))
            x = consistent(operator, back, corrected, (level + power * noise.log()).exp())
        return channels_of(x * unit)


class Cascades(Network):
    """(B, 4, X, Y, Z): `physics.seen` → real and imaginary part of the image, plane by plane.

    Where whole lines were measured, X is in hybrid space and may be a crop; else the operator needs
    whole planes. There is one task, whose head makes the last correction.
    """

    body: CascadesBody
    cut = (False, False, False)

    def __init__(
        self,
        channels_in: int,
        heads: Mapping[str, int],
        cascades: int = 2,
        widths: Sequence[int] = (16, 32, 64, 128),
    ) -> None:
        super().__init__()
        if channels_in != len(CHANNELS) or list(heads.values()) != [2]:
            raise ValueError('cascades map 4 channels to the 2 of one task')
        self.stride = stride_of(KERNEL, len(widths))
        self.body = CascadesBody(cascades, widths)
        self.heads = nn.ModuleDict({task: Pointwise(widths[0], 2) for task in heads})
        for last in (*self.body.corrections, *self.heads.values()):
            for parameter in last.parameters():  # begins as total variation, made consistent
                nn.init.zeros_(parameter)

    def parts(self) -> dict[str, nn.Module]:
        """Encoders and decoders of all cascades apart."""
        features = [body for body in self.body.features if isinstance(body, Body)]
        own = {
            'encoder': nn.ModuleList(body.encoder for body in features),
            'decoder': nn.ModuleList(body.decoder for body in features),
        }
        return {'body': self.body, **own, 'heads': self.heads}

    def forward(self, image: Tensor, context: Mapping[str, Tensor]) -> Tensor:
        """The image, with the size and the phase that came in."""
        (last,) = self.heads.values()
        return plane_by_plane(lambda *plane: self.body(last, *plane), image, context)


def consistent(operator: LinearOperator, back: Tensor, image: Tensor, weight: Tensor) -> Tensor:
    """argmin ‖A x - y‖² + λ ‖x - v‖² by a few steps from v (B, X, Y); ``back`` is Aᴴ y.

    Of one coil two steps are enough: what is left of them then has no direction to learn from.
    """
    return conjugate_gradient(
        lambda x: operator.gram(x) + weight * x, back + weight * image,
        steps=STEPS, start=image, tolerance=ENOUGH, batch_dims=1,
    )  # fmt: skip
