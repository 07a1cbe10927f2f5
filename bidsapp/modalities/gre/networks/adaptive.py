"""Adaptive convolution: a U-Net whose filters in one place follow from voxel size and B0.

Source paper 2 (ISMRM 2024, 1205) and its Figure 1: five levels, 16 channels at first, ELU, batch
norm, no bias; the first convolution after the first pooling has its weights from a *filter manifold
network* of four fully connected layers, whose input is the side information; the field is added to
what comes out. Written from the paper and from the sizes of its layers. One thing differs: in a
batch each sample has filters of its own, so that scans of different geometry are learnt together.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bidsapp.networks.base import Network
from bidsapp.networks.unet3d import padded

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Channels of each level; features between the layers of the filter manifold network.
WIDTHS, MANIFOLD = (16, 32, 64, 128, 256), (12, 48, 192)
#: Voxels along the edge of a filter.
SIDE = 3


def side_information(context: Mapping[str, Tensor], dyads: bool) -> Tensor:
    """(B, 6) voxel edges in mm and the unit vector of B0, as published.

    Or, with ``dyads``, (B, 9) logarithms of the edges and b bᵀ, for which the sign of b is nothing.
    """
    edges, b = context['voxel_mm'], context['b']
    if not dyads:
        return torch.cat([edges, b], 1)
    pairs = [b[:, i] * b[:, j] for i, j in ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))]
    return torch.cat([edges.log(), torch.stack(pairs, 1)], 1)


class FilterManifold(nn.Sequential):
    """(B, told) side information → (B, weights); an ELU behind every layer, the last one too."""

    def __init__(self, told: int, weights: int) -> None:
        sizes = (told, *MANIFOLD, weights)
        layers: list[nn.Module] = []
        for before, after in pairwise(sizes):
            layers += [nn.Linear(before, after), nn.ELU()]
        super().__init__(*layers)


class AdaptiveConvolution(nn.Module):
    """A 3x3x3 convolution without bias, of each sample with filters from its side information."""

    def __init__(self, told: int, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.shape = (channels_out, channels_in, SIDE, SIDE, SIDE)
        self.manifold = FilterManifold(told, channels_out * channels_in * SIDE**3)

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        """(B, channels_in, X, Y, Z) and (B, told) → (B, channels_out, X, Y, Z)."""
        batch, space = len(x), x.shape[2:]
        filters = self.manifold(told.to(x)).reshape(batch * self.shape[0], *self.shape[1:])
        # One group a sample: its channels meet its own filters only.
        y = F.conv3d(x.reshape(1, -1, *space), filters, padding=SIDE // 2, groups=batch)
        return y.reshape(batch, self.shape[0], *space)


class Norm(nn.BatchNorm3d):
    """Batch norm that does not count its batches: its state is made of real numbers only."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.num_batches_tracked = None

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        # Batch norm's own adds the count to weights that have none, and then finds it unexpected.
        nn.Module._load_from_state_dict(self, state, prefix, *rest)


def convolution(channels_in: int, channels_out: int) -> nn.Conv3d:
    """3x3x3, without bias."""
    return nn.Conv3d(channels_in, channels_out, SIDE, padding=SIDE // 2, bias=False)


class Pair(nn.Module):
    """Two convolutions, each with batch norm and ELU; the first may be adaptive."""

    def __init__(self, channels_in: int, channels_out: int, told: int = 0) -> None:
        super().__init__()
        self.adaptive = AdaptiveConvolution(told, channels_in, channels_out) if told else None
        self.first = None if told else convolution(channels_in, channels_out)
        self.second = convolution(channels_out, channels_out)
        self.norms = nn.ModuleList(Norm(channels_out) for _ in range(2))

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        """(B, channels_in, X, Y, Z) → (B, channels_out, X, Y, Z)."""
        y = x if self.first is None else self.first(x)
        y = y if self.adaptive is None else self.adaptive(x, told)
        y = F.elu(self.norms[0](y))
        return F.elu(self.norms[1](self.second(y)))


class Up(nn.Module):
    """Twice as many voxels along each axis, joined by a skip, and a pair of convolutions."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose3d(channels_in, channels_out, 2, stride=2, bias=False)
        self.norm = Norm(channels_out)
        self.pair = Pair(2 * channels_out, channels_out)

    def forward(self, x: Tensor, skip: Tensor, told: Tensor) -> Tensor:
        """(B, channels_in, …) and a skip of twice its sides → (B, channels_out, …)."""
        y: Tensor = self.pair(torch.cat([F.elu(self.norm(self.up(x))), skip], 1), told)
        return y


class AdaptiveBody(nn.Module):
    """The field (B, 1, X, Y, Z) and side information → (B, 16, X, Y, Z) for any X, Y, Z."""

    def __init__(self, told: int) -> None:
        super().__init__()
        before = (1, *WIDTHS)
        # The place of the adaptive filters is behind the first pooling.
        self.encoder = nn.ModuleList(
            Pair(before[k], width, told if k == 1 else 0) for k, width in enumerate(WIDTHS)
        )
        self.decoder = nn.ModuleList(
            Up(WIDTHS[k + 1], WIDTHS[k]) for k in reversed(range(len(WIDTHS) - 1))
        )

    def forward(self, field: Tensor, told: Tensor) -> Tensor:
        """Sides that are no multiple of 16 are padded with zeros and cropped again."""
        i, j, k = field.shape[2:]
        stride = (2 ** (len(WIDTHS) - 1),) * 3
        features = [self.encoder[0](padded(field, stride), told)]
        for level in list(self.encoder)[1:]:
            features.append(level(F.max_pool3d(features[-1], 2), told))
        x = features.pop()
        for up in self.decoder:
            x = up(x, features.pop(), told)
        return x[..., :i, :j, :k]


class AdaptiveUNet(Network):
    """Of `physics.seen` it looks at the field alone, in ppm; heads of χ and log σ.

    Not ``adaptive``, it is the source's conventional U-Net: an ordinary convolution in that place,
    and no side information. ``dyads`` is ours: see `side_information`.
    """

    body: AdaptiveBody
    stride = (16, 16, 16)

    def __init__(
        self,
        channels_in: int,
        heads: Mapping[str, int],
        adaptive: bool = True,
        dyads: bool = False,
    ) -> None:
        super().__init__()
        self.dyads = dyads
        self.body = AdaptiveBody((9 if dyads else 6) if adaptive else 0)
        self.heads = nn.ModuleDict({task: nn.Conv3d(WIDTHS[0], n, 1) for task, n in heads.items()})

    def parts(self) -> dict[str, nn.Module]:
        """Encoder, decoder and, where there is one, the filter manifold network apart."""
        encoder = self.body.encoder
        own: dict[str, nn.Module] = {'encoder': encoder, 'decoder': self.body.decoder}
        second = encoder[1]
        assert isinstance(second, Pair)
        if second.adaptive is not None:
            own['adaptive'] = second.adaptive
        return {'body': self.body, **own, 'heads': self.heads}

    def forward(self, image: Tensor, context: Mapping[str, Tensor]) -> Tensor:
        """(B, channels, X, Y, Z) → of each head χ = field + what is learnt, and the rest of it."""
        field = image[:, :1]
        features = self.body(field, side_information(context, self.dyads))
        said = []
        for head in self.heads.values():
            values = head(features).float()
            said += [field + values[:, :1], values[:, 1:]]
        return torch.cat(said, 1)
