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

#: Sides of the body's input are padded to a multiple of this inside the network.
STRIDE = 8


class VoxelNorm(nn.LayerNorm):
    """Zero mean and unit variance over the channels of each voxel, then scale and shift."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, X, Y, Z) → the same shape."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class ResidualPair(nn.Module):
    """Two 3x3x3 convolutions with a shortcut (1x1x1 where the channels change)."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.first = nn.Conv3d(channels_in, channels_out, 3, padding=1)
        self.first_norm = VoxelNorm(channels_out)
        self.second = nn.Conv3d(channels_out, channels_out, 3, padding=1)
        self.second_norm = VoxelNorm(channels_out)
        same = channels_in == channels_out
        self.shortcut = nn.Identity() if same else nn.Conv3d(channels_in, channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels_in, X, Y, Z) → (B, channels_out, X, Y, Z)."""
        y = F.relu(self.first_norm(self.first(x)))
        y = self.second_norm(self.second(y))
        return F.relu(y + self.shortcut(x))


class SlotStem(nn.Module):
    """(B, slots · n + rest, …) → (B, width, …), the same map for each slot of n channels.

    An empty slot is all zeros and adds nothing: its map has no bias, and the channel that says
    'filled' is the bias of one that is not empty.
    """

    def __init__(self, channels_in: int, slots: int, width: int) -> None:
        super().__init__()
        self.slots, self.rest = slots, channels_in % slots
        self.each = nn.Conv3d(channels_in // slots, 2 * width, 1, bias=False)
        self.join = nn.Conv3d(2 * width + self.rest, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The slots stand first, one after another."""
        per_slot = (x.shape[1] - self.rest) // self.slots
        *parts, rest = x.split([per_slot] * self.slots + [self.rest], dim=1)
        added = sum((F.relu(self.each(part)) for part in parts[1:]), F.relu(self.each(parts[0])))
        return self.join(torch.cat([added, rest], dim=1))


class Encoder(nn.Module):
    """Stem and one residual pair a level; (B, C, …) → features of each level, finest first."""

    def __init__(self, channels_in: int, slots: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.stem = SlotStem(channels_in, slots, widths[0])
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


class Body(nn.Module):
    """(B, channels_in, X, Y, Z) → (B, widths[0], X, Y, Z) for any X, Y, Z."""

    def __init__(self, channels_in: int, slots: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.encoder = Encoder(channels_in, slots, widths)
        self.decoder = Decoder(widths)

    def forward(self, x: Tensor) -> Tensor:
        """Sides that are no multiple of 8 are padded with zeros and cropped again."""
        sides = x.shape[2:]
        missing = [-side % STRIDE for side in sides]
        padded = F.pad(x, [0, missing[2], 0, missing[1], 0, missing[0]])
        y = self.decoder(self.encoder(padded))
        return y[..., : sides[0], : sides[1], : sides[2]]


class UNet3d(nn.Module):
    """Body and head, kept apart so that either can be saved, loaded or frozen alone."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        slots: int = 1,
        widths: tuple[int, ...] = (16, 32, 64, 128),
    ) -> None:
        super().__init__()
        if len(widths) != 4:
            raise ValueError(f'widths names {len(widths)} levels; {STRIDE}-voxel padding needs 4')
        self.body = Body(channels_in, slots, tuple(widths))
        self.head = nn.Conv3d(widths[0], channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels_in, X, Y, Z) → (B, channels_out, X, Y, Z), float32."""
        return self.head(self.body(x)).float()
