"""What every network is: a body, and a head a task."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Network(nn.Module):
    """One body and a head a task, kept apart so that either can be saved, loaded or frozen alone.

    ``heads`` maps names of tasks to modules. Called with an image (B, C, X, Y, Z) and the context
    by name (B, …), it gives the heads' channels one after another, (B, K, X, Y, Z) float32.
    """

    body: nn.Module
    heads: nn.ModuleDict
    #: Voxels along each axis that are pooled into one; patches and volumes are padded to multiples.
    stride: tuple[int, int, int] = (1, 1, 1)
    #: Along which axes an image may be cut into patches; else what is told of it would not fit.
    cut: tuple[bool, bool, bool] = (True, True, True)
    #: That applying it takes at once; `networks.registry.Architecture` sets it.
    bytes_per_voxel: int = 0

    def parts(self) -> dict[str, nn.Module]:
        """What can be fine-tuned at a rate of its own, the finest parts last."""
        return {'body': self.body, 'heads': self.heads}

    @torch.no_grad()
    def begin(self, heads: Sequence[str]) -> None:
        """Have ``heads``, which correct their input, begin with no correction.

        A network that knows a better answer in closed form begins with that.
        """
        for name in heads:
            for parameter in self.heads[name].parameters():
                parameter.zero_()

    def forward(self, image: Tensor, context: Mapping[str, Tensor]) -> Tensor:
        """Raises TypeError for a network that does not say what it computes."""
        raise TypeError(f'{type(self).__name__} does not say what it computes')
