"""Weighted means over a voxel and its neighbours, with weights that a network says."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bidsapp.networks.pointwise import Pointwise

#: Offsets of a voxel and its 26 neighbours into an array padded by one.
_AROUND = tuple((i, j, k) for i in range(3) for j in range(3) for k in range(3))


class WeightedSum(torch.autograd.Function):
    """Σ over neighbours of weight times value; (B, 27, X, Y, Z), (B, C, X+2, Y+2, Z+2).

    The values are data and get no gradient. Autograd would keep 27 products where this keeps none.
    """

    @staticmethod
    def forward(ctx: Any, weights: Tensor, values: Tensor) -> Tensor:
        """(B, C, X, Y, Z)."""
        x, y, z = weights.shape[-3:]
        total = values.new_zeros(*values.shape[:2], x, y, z)
        for n, (i, j, k) in enumerate(_AROUND):
            total.addcmul_(weights[:, n, None], values[..., i : i + x, j : j + y, k : k + z])
        ctx.save_for_backward(values)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """That of the weights."""
        (values,) = ctx.saved_tensors
        x, y, z = gradient.shape[-3:]
        gradient = gradient.contiguous()
        parts = [
            (gradient * values[..., i : i + x, j : j + y, k : k + z]).sum(1) for i, j, k in _AROUND
        ]
        return torch.stack(parts, dim=1), None


class Neighbours(nn.Module):
    """Harmonics of each voxel as a weighted mean over it and its 26 neighbours in the brain.

    The weights are positive, add up to one and are said by the features at the voxel, one set for
    the low degrees, one for the high, whose noise is the stronger, and one for the density. What is
    linear in the data stays exact here: directions keep the precision of the input, and an average
    never invents.
    """

    #: How much more the voxel itself counts at first, in logits.
    OWN = 3.0

    def __init__(self, features: int, bands: tuple[tuple[int, int], ...]) -> None:
        super().__init__()
        self.bands = bands
        sets = len(bands) + 1
        self.logits = Pointwise(features, sets * len(_AROUND))
        at_first = torch.zeros(sets, len(_AROUND))
        at_first[:, _AROUND.index((1, 1, 1))] = self.OWN
        with torch.no_grad():
            self.logits.weight.mul_(0.3)
        self.logits.bias = nn.Parameter(at_first.flatten())

    def forward(
        self, features: Tensor, harmonics: Tensor, density: Tensor, brain: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Means like ``harmonics`` (B, slots, H, X, Y, Z) and like ``density`` (B, D, X, Y, Z)."""
        logits = self.logits(features).float().contiguous()
        brain = F.pad(brain.contiguous(), (1,) * 6)
        parts = []
        values = [harmonics[:, :, first:last] for first, last in self.bands]
        values.append(density[:, None])
        for value, own in zip(values, logits.chunk(len(values), 1), strict=True):
            weights = (own - own.amax(1, keepdim=True)).exp()
            padded = F.pad(value.contiguous(), (1,) * 6).flatten(1, 2)
            total = WeightedSum.apply(weights, torch.cat([padded, brain], 1))
            mean = total[:, :-1] / total[:, -1:].clamp_min(1e-6)
            parts.append(mean.unflatten(1, value.shape[1:3]))
        return torch.cat(parts[:-1], dim=2), parts[-1][:, 0]
