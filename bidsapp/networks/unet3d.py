"""A residual U-Net whose answer at a voxel depends on its neighbourhood only, not on the crop.

Source paper 1 (section 2.2) gives the shape: 3x3x3 convolutions in pairs, poolings by two, skips,
and a 1x1x1 head a task. Three things differ, each for a reason:

- The input first passes a stem that mixes channels within a voxel before space is looked at, which
  costs a tenth of a 3x3x3 convolution over a hundred channels.
- Features are normalised over the channels of each voxel, with a learned scale and shift. Norms
  over space make the result depend on how much background is in the crop; this one does not.
- Each pair of convolutions is residual, which trains in fewer steps.

A kernel of (3, 3, 1) makes it a network of slices: it neither looks nor pools along the last axis.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bidsapp.networks.base import Network
from bidsapp.networks.planar import Convolution, Enlargement
from bidsapp.networks.pointwise import Pointwise

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: Voxels along each axis.
Triple = tuple[int, int, int]
CUBE: Triple = (3, 3, 3)


def pooling(kernel: Triple) -> Triple:
    """By how much a level is pooled: by two along each axis that the kernel sees."""
    i, j, k = (1 if side == 1 else 2 for side in kernel)
    return i, j, k


def stride_of(kernel: Triple, levels: int) -> Triple:
    """Voxels of the finest level that the coarsest of ``levels`` pools into one."""
    i, j, k = (step ** (levels - 1) for step in pooling(kernel))
    return i, j, k


def padded(x: Tensor, stride: Sequence[int]) -> Tensor:
    """(…, X, Y, Z) with zeros appended until each side is a multiple of ``stride``."""
    missing = [-side % step for side, step in zip(x.shape[-3:], stride, strict=True)]
    if not any(missing):
        return x
    return F.pad(x, [0, missing[2], 0, missing[1], 0, missing[0]])


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
    """Two convolutions (3x3x3) with a shortcut (1x1x1 where the channels change)."""

    def __init__(self, channels_in: int, channels_out: int, kernel: Triple = CUBE) -> None:
        super().__init__()
        self.first = Convolution(channels_in, channels_out, kernel)
        self.first_norm = VoxelNorm(channels_out)
        self.second = Convolution(channels_out, channels_out, kernel)
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

    def __init__(self, stem: nn.Module, widths: Sequence[int], kernel: Triple = CUBE) -> None:
        super().__init__()
        self.stem, self.pool = stem, pooling(kernel)
        inner = zip((widths[0], *widths[:-1]), widths, strict=True)
        self.levels = nn.ModuleList(ResidualPair(i, o, kernel) for i, o in inner)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Features of each level; level k is pooled k times."""
        features = [self.levels[0](self.stem(x))]
        for level in self.levels[1:]:
            features.append(level(F.max_pool3d(features[-1], self.pool)))
        return features


class Decoder(nn.Module):
    """From the coarsest level up, joined by the skips; → (B, widths[0], …)."""

    def __init__(self, widths: Sequence[int], kernel: Triple = CUBE) -> None:
        super().__init__()
        pairs, step = list(zip(widths[:0:-1], widths[-2::-1], strict=True)), pooling(kernel)
        self.ups = nn.ModuleList(Enlargement(i, o, step) for i, o in pairs)
        self.levels = nn.ModuleList(ResidualPair(2 * o, o, kernel) for _, o in pairs)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Features of the encoder → features of the finest level."""
        x = features[-1]
        for up, level, skip in zip(self.ups, self.levels, features[-2::-1], strict=True):
            x = level(torch.cat([up(x), skip], dim=1))
        return x


class Body(nn.Module):
    """(B, channels_in, X, Y, Z) → (B, widths[0], X, Y, Z) for any X, Y, Z."""

    def __init__(self, channels_in: int, widths: Sequence[int], kernel: Triple) -> None:
        super().__init__()
        self.stride = stride_of(kernel, len(widths))
        self.encoder = Encoder(Pointwise(channels_in, widths[0]), widths, kernel)
        self.decoder = Decoder(widths, kernel)

    def forward(self, x: Tensor) -> Tensor:
        """Sides that are no multiple of the stride are padded with zeros and cropped again."""
        x_side, y_side, z_side = x.shape[2:]
        y: Tensor = self.decoder(self.encoder(padded(x, self.stride)))
        return y[..., :x_side, :y_side, :z_side]


class UNet(Network):
    """The U-Net with a 1x1x1 head a task, for images of any modality; it reads no context."""

    def __init__(
        self,
        channels_in: int,
        heads: Mapping[str, int],
        widths: Sequence[int] = (16, 32, 64, 128),
        kernel: Sequence[int] = CUBE,
    ) -> None:
        super().__init__()
        i, j, k = kernel
        self.stride = stride_of((i, j, k), len(widths))
        self.body = Body(channels_in, widths, (i, j, k))
        self.heads = nn.ModuleDict({task: Pointwise(widths[0], n) for task, n in heads.items()})

    def parts(self) -> dict[str, nn.Module]:
        """Encoder and decoder apart."""
        assert isinstance(self.body, Body)
        own = {'encoder': self.body.encoder, 'decoder': self.body.decoder}
        return {'body': self.body, **own, 'heads': self.heads}

    def forward(self, image: Tensor, context: Mapping[str, Tensor]) -> Tensor:
        """(B, channels_in, X, Y, Z) → the heads' channels one after another, float32."""
        features = self.body(image)
        return torch.cat([head(features).float() for head in self.heads.values()], dim=1)
