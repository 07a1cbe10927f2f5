"""What calibration makes of a network's stated uncertainty is exact."""

from __future__ import annotations

import torch

from bidsapp.learn.blocks import fold
from bidsapp.networks.pointwise import Pointwise


def test_a_folded_line_is_the_line_of_the_output():
    generator = torch.Generator().manual_seed(0)
    layer = Pointwise(5, 4).double()
    seen = torch.randn(2, 5, 3, 4, 5, generator=generator, dtype=torch.float64)
    factor, shift = torch.tensor([1.0, 1.0, 0.5, 1.7]), torch.tensor([0.0, 0.0, -0.3, 2.0])
    before = layer(seen)
    fold(layer, factor, shift)
    each = (t.double().view(-1, 1, 1, 1) for t in (factor, shift))
    torch.testing.assert_close(layer(seen), before * next(each) + next(each))
