"""Adaptive convolution: each sample has the filters of its own geometry."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from bidsapp.modalities.gre.networks.adaptive import (
    AdaptiveConvolution,
    Norm,
    Pair,
    side_information,
)
from bidsapp.networks.registry import build

HEADS = {'susceptibility': 2}


def context(*edges):
    n = len(edges)
    b = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.6, 0.8], [0.6, 0.0, -0.8]])[:n]
    return {'voxel_mm': torch.tensor([[e, e, 2 * e] for e in edges]), 'b': b}


def network(**options):
    torch.manual_seed(0)
    return build('gre', 'adaptive_unet', 6, HEADS, **options)


def test_a_batch_is_its_samples_one_by_one(generator):
    """That of the source shares one geometry a batch."""
    convolution = AdaptiveConvolution(6, 3, 5)
    x = torch.randn(3, 3, 6, 5, 4, generator=generator)
    told = side_information(context(0.5, 1.0, 2.0), dyads=False)
    together = convolution(x, told)
    for k in range(3):
        filters = convolution.manifold(told[k : k + 1]).reshape(5, 3, 3, 3, 3)
        assert torch.allclose(together[k], F.conv3d(x[k : k + 1], filters, padding=1)[0], atol=1e-5)


def test_the_layers_have_the_sizes_of_the_source():
    manifold = network().body.encoder[1].adaptive.manifold
    sizes = [layer.weight.shape for layer in manifold if hasattr(layer, 'weight')]
    assert sizes == [(12, 6), (48, 12), (192, 48), (32 * 16 * 27, 192)]
    assert sum(p.numel() for p in manifold.parameters()) == 2_678_148
    chi_only = build('gre', 'adaptive_unet', 6, {'susceptibility': 1})
    assert sum(p.numel() for p in chi_only.parameters()) == pytest.approx(8_310_949, rel=0.002)


def test_only_the_adaptive_network_looks_at_the_geometry(generator):
    x = torch.randn(1, 6, 16, 16, 16, generator=generator)
    for adaptive in (True, False):
        net = network(adaptive=adaptive).eval()
        one, other = (net(x, context(edge)) for edge in (0.5, 2.0))
        assert torch.equal(one, other) is not adaptive
        assert ('adaptive' in net.parts()) is adaptive


def test_the_twin_is_the_same_but_for_those_filters():
    own, twin = (network(adaptive=a) for a in (True, False))
    shapes = [
        {k: v.shape for k, v in n.state_dict().items() if '.encoder.1.' not in k}
        for n in (own, twin)
    ]
    assert shapes[0] == shapes[1]
    assert isinstance(twin.body.encoder[1], Pair)
    assert twin.body.encoder[1].first.weight.shape == (32, 16, 3, 3, 3)


def test_dyads_do_not_know_the_sign_of_b():
    here = context(1.0, 1.0)
    there = {**here, 'b': -here['b']}
    assert torch.equal(side_information(here, True), side_information(there, True))
    assert not torch.equal(side_information(here, False), side_information(there, False))
    assert network(dyads=True).body.encoder[1].adaptive.manifold[0].in_features == 9


@pytest.mark.parametrize('shape', [(16, 16, 16), (17, 9, 20)])
def test_the_field_is_added_on_grids_of_any_size(shape, generator):
    net = network().eval()
    x = torch.randn(2, 6, *shape, generator=generator)
    out = net(x, context(1.0, 2.0))
    assert out.shape == (2, 2, *shape)
    torch.nn.init.zeros_(net.heads['susceptibility'].weight)
    torch.nn.init.zeros_(net.heads['susceptibility'].bias)
    assert torch.equal(net(x, context(1.0, 2.0))[:, :1], x[:, :1])


def test_what_an_average_of_weights_holds_is_real_numbers():
    assert all(v.is_floating_point() for v in Norm(4).state_dict().values())
    assert all(v.is_floating_point() for v in network().state_dict().values())


def test_the_same_seed_makes_the_same_network():
    one, other = (network().state_dict() for _ in range(2))
    assert all(torch.equal(one[k], other[k]) for k in one)
