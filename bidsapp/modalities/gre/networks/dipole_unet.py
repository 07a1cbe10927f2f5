"""The bundled network: what total variation leaves, by a U-Net, and the data have the last word.

With the start x by total variation, what it leaves r = M (f - A x), and of the U-Net a correction
c and a share g between 0 and 1 of each voxel's r that is signal and no noise,

    χ = x + c + F⁻¹[A / (A² + λ) F(M (g r - A c))],

which with g = 1 is the closed-form step of `physics.inversion.consistent` on x + c, written so that
the far field of x, of which a patch holds a part only, is not asked for again. λ(k) has a constant
and a part that grows as |k|²: fine detail is what noise drowns first. Both follow from what is to
be doubted of the field, by numbers that are learnt. A is D, or S D where the context says a radius.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bidsapp.modalities.gre.physics.dipole import convolved, enlarged, frequencies
from bidsapp.modalities.gre.physics.maps import MARGIN, transfer_of
from bidsapp.modalities.gre.physics.seen import CHANNELS
from bidsapp.networks.base import Network
from bidsapp.networks.pointwise import Pointwise
from bidsapp.networks.unet3d import CUBE, Body, stride_of
from bidsapp.physics.operators import Padded

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bidsapp.modalities.gre.physics.dipole import Shape

#: Voxels along the edge of the box over which the size of a correction is judged.
BOX = 5
#: λ at k = 0 and what Nyquist's frequency adds, each where the doubt is as large as the scale, and
#: the power of their ratio that it follows, before learning: learnt as logarithms over PACE, so
#: that a step moves them as much faster than a filter.
STRENGTH, PACE = ((0.35, 1.0), (1.9, 1.0)), 5.0
#: The share of what the start leaves that counts as signal, as a logit, before learning.
SIGNAL = -1.0
#: The logarithm of a stated deviation over the size of a correction, before learning.
DEVIATION = -1.5
#: Of each voxel: what it is told besides the channels: `told`.
TOLD = 13


def told(context: Mapping[str, Tensor]) -> Tensor:
    """(B, 13) what is one for all voxels: edges over their mean and that, b bᵀ, doubt, filter.

    Directions enter as b bᵀ, of which the dipole is made, so that their sign does not matter.
    """
    edges, b = context['voxel_mm'].log(), context['b']
    mean = edges.mean(1, keepdim=True)
    pairs = [b[:, i] * b[:, j] for i, j in ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))]
    doubt = _doubt(context).log()
    usual = (context['doubt'] / context['noise'].clamp_min(1e-9)).log()
    ball = (context['radius'] / mean[:, 0].exp() / 5).clamp_max(2)
    return torch.cat([edges - mean, mean, torch.stack([*pairs, doubt / 3, usual, ball], 1)], 1)


def _doubt(context: Mapping[str, Tensor]) -> Tensor:
    """(B,) in the field, over the scale of χ."""
    return (context['doubt'] / context['scale']).clamp_min(1e-4)


def over_nyquist(shape: Shape, voxel_mm: Sequence[float]) -> Tensor:
    """|k| with each axis over its Nyquist frequency, in the layout of `torch.fft.rfftn`."""
    axes = zip(frequencies(shape, voxel_mm), voxel_mm, strict=True)
    square = torch.stack(torch.broadcast_tensors(*[(2 * edge * k) ** 2 for k, edge in axes])).sum(0)
    return square.sqrt()[..., : shape[-1] // 2 + 1]


class DipoleBody(nn.Module):
    """(B, 6, X, Y, Z) of `physics.seen` and their context → features, and how large a ppm is."""

    def __init__(self, channels_in: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.unet = Body(channels_in + 1 + TOLD, widths, CUBE)
        self.strength = nn.Parameter(torch.tensor(STRENGTH).log() / PACE)
        self.signal = nn.Conv3d(widths[0], 1, 1)
        nn.init.zeros_(self.signal.weight)
        assert self.signal.bias is not None
        nn.init.constant_(self.signal.bias, SIGNAL)

    def forward(
        self, image: Tensor, context: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Features (B, widths[0], …), the size in ppm of a correction of 1, and the share g.

        The last two are (B, 1, …), float32.
        """
        scale, noise = (context[key].view(-1, 1, 1, 1, 1) for key in ('scale', 'noise'))
        ppm, known = image[:, :4], image[:, 4:]
        start, left = image[:, 1:2], image[:, 2:3]
        size = scale + F.avg_pool3d(start.abs(), BOX, 1, BOX // 2)
        over_noise = left / noise.clamp_min(1e-6)
        values = torch.cat([torch.asinh(ppm / scale), torch.asinh(over_noise) / 3, known], 1)
        wide = told(context)[..., None, None, None].expand(-1, -1, *image.shape[2:])
        features: Tensor = self.unet(torch.cat([values, wide.to(values)], 1))
        return features, size.float(), self.signal(features).float().sigmoid()

    def regularisation(self, context: Mapping[str, Tensor], k: Tensor) -> Tensor:
        """λ of the last step at ``k`` (B, 1, …), the length over Nyquist's frequency."""
        level, growth = (PACE * self.strength).exp()
        doubt = _doubt(context).view(-1, 1, 1, 1, 1)
        found: Tensor = level[0] * doubt ** level[1] + growth[0] * doubt ** growth[1] * k**2
        return found

    def consistent(
        self, correction: Tensor, signal: Tensor, image: Tensor, context: Mapping[str, Tensor]
    ) -> Tensor:
        """``correction`` (B, 1, …) ppm after the step towards the field, float32.

        ``signal`` (B, 1, …) is the share of what the start leaves that is stepped towards.
        """
        c, left = correction.float(), signal * image[:, 2:3].float()
        trusted = (image[:, 4:5] * image[:, 5:6].clamp(0, 1)).float()
        x, y, z = (int(n) for n in c.shape[2:])
        padded = enlarged((x, y, z), MARGIN)
        a = torch.stack([
            transfer_of(padded, edges.tolist(), b.tolist(), float(radius))
            for edges, b, radius in zip(
                context['voxel_mm'], context['b'], context['radius'], strict=True
            )
        ])[:, None].to(c)  # fmt: skip
        k = torch.stack([over_nyquist(padded, edges.tolist()) for edges in context['voxel_mm']])
        strength = self.regularisation(context, k[:, None].to(c))
        frame = Padded((x, y, z), padded)
        missed = trusted * (left - frame.adjoint(convolved(frame(c), a)))
        step = frame.adjoint(convolved(frame(missed), a / (a**2 + strength)))
        return c + step


class DipoleUNet(Network):
    """χ and the logarithm of its standard deviation, in ppm, from the channels of `physics.seen`.

    Each head has these two channels. The last step needs the whole grid: an image that the network
    is applied to is not cut; patches to learn from may be, for a correction is small.
    """

    body: DipoleBody
    cut = (False, False, False)

    def __init__(
        self,
        channels_in: int,
        heads: Mapping[str, int],
        widths: Sequence[int] = (16, 32, 64),
    ) -> None:
        super().__init__()
        if channels_in < len(CHANNELS) or set(heads.values()) - {2}:
            raise ValueError(f'{len(CHANNELS)} channels or more and heads of 2 expected')
        self.stride = stride_of(CUBE, len(widths))
        self.body = DipoleBody(channels_in, widths)
        # Beside the features a head sees the logarithm of a correction's size.
        self.heads = nn.ModuleDict({task: Pointwise(widths[0] + 1, n) for task, n in heads.items()})
        for head in self.heads.values():
            assert isinstance(head, Pointwise)
            nn.init.zeros_(head.weight)
            with torch.no_grad():
                head.weight[1, -1] = 1
                assert head.bias is not None
                head.bias.copy_(torch.tensor([0.0, DEVIATION]))

    def parts(self) -> dict[str, nn.Module]:
        """Encoder and decoder apart."""
        own = {'encoder': self.body.unet.encoder, 'decoder': self.body.unet.decoder}
        return {'body': self.body, **own, 'heads': self.heads}

    def forward(self, image: Tensor, context: Mapping[str, Tensor]) -> Tensor:
        """(B, 6, X, Y, Z) → (B, 2, X, Y, Z) a head, float32."""
        features, size, signal = self.body(image, context)
        read = torch.cat([features.float(), size.log()], 1)
        said = []
        with torch.autocast(image.device.type, enabled=False):
            for head in self.heads.values():
                values = head(read)
                correction = self.body.consistent(values[:, :1] * size, signal, image, context)
                said += [image[:, 1:2] + correction, values[:, 1:]]
        return torch.cat(said, 1).float()
