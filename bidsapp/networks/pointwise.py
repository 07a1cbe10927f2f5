"""A 1x1x1 convolution as the product of matrices that it is."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class Pointwise(nn.Conv3d):
    """(B, channels_in, …) → (B, channels_out, …), the same map at every voxel.

    Weights are those of a Conv3d, whose kernel for one voxel is slow on a processor without
    bfloat16: PyTorch takes its unblocked one there where it has a single thread.
    """

    def __init__(self, channels_in: int, channels_out: int, bias: bool = True) -> None:
        super().__init__(channels_in, channels_out, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """The channels last in memory, coming and going."""
        return F.linear(x.movedim(1, -1), self.weight.flatten(1), self.bias).movedim(-1, 1)
