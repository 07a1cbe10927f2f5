"""A 3D U-Net whose answer at a voxel depends on its neighbourhood only, not on the crop.

Source paper 1 (section 2.2) gives the shape: 3x3x3 convolutions in pairs, poolings by two, skips,
and a 1x1x1 head a task. Three things differ, each for a reason:

- The input first passes a 1x1x1 stem: q-space is mixed within a voxel before space is looked at,
  which costs a tenth of a 3x3x3 convolution over a hundred channels. The stem's weights are the
  same for every slot of b, whose features are added up: what is learnt at one b serves another.
- Features are normalised over the channels of each voxel, with a learned scale and shift. Norms
  over space make the result depend on how much background is in the crop; this one does not.
- Each pair of convolutions is residual, which trains in fewer steps.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bidsapp.networks.pointwise import Pointwise

#: Sides of the body's input are padded to a multiple of this inside the network.
STRIDE = 8


class VoxelNorm(nn.LayerNorm):
    """Zero mean and unit variance over the channels of each voxel, then scale and shift.

    Computed in the precision of its input: autocast would copy every feature to float32 and back.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, X, Y, Z) → the same shape."""
        with torch.autocast(x.device.type, enabled=False):
            last = x.movedim(1, -1)
            scale, shift = self.weight.to(x.dtype), self.bias.to(x.dtype)
            normed = F.layer_norm(last, self.normalized_shape, scale, shift, self.eps)
        return normed.movedim(-1, 1)


class ResidualPair(nn.Module):
    """Two 3x3x3 convolutions with a shortcut (1x1x1 where the channels change)."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.first = nn.Conv3d(channels_in, channels_out, 3, padding=1)
        self.first_norm = VoxelNorm(channels_out)
        self.second = nn.Conv3d(channels_out, channels_out, 3, padding=1)
        self.second_norm = VoxelNorm(channels_out)
        same = channels_in == channels_out
        self.shortcut = nn.Identity() if same else Pointwise(channels_in, channels_out)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels_in, X, Y, Z) → (B, channels_out, X, Y, Z)."""
        y = F.relu(self.first_norm(self.first(x)))
        y = self.second_norm(self.second(y))
        return F.relu(y + self.shortcut(x))


class Encoder(nn.Module):
    """Stem and one residual pair a level; (B, C, …) → features of each level, finest first."""

    def __init__(self, stem: nn.Module, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.stem = stem
        inner = zip((widths[0], *widths[:-1]), widths, strict=True)
        self.levels = nn.ModuleList(ResidualPair(i, o) for i, o in inner)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Features of each level; level k is pooled k times."""
        features = [self.levels[0](self.stem(x))]
        for level in self.levels[1:]:
            features.append(level(F.max_pool3d(features[-1], 2)))
        return features


class Decoder(nn.Module):
    """From the coarsest level up, joined by the skips; → (B, widths[0], …)."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        pairs = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.ups = nn.ModuleList(nn.ConvTranspose3d(i, o, 2, stride=2) for i, o in pairs)
        self.levels = nn.ModuleList(ResidualPair(2 * o, o) for _, o in pairs)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Features of the encoder → features of the finest level."""
        x = features[-1]
        for up, level, skip in zip(self.ups, self.levels, features[-2::-1], strict=True):
            x = level(torch.cat([up(x), skip], dim=1))
        return x
