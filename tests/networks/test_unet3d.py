"""The shared U-Net keeps the grid, looks and pools along the axes of its kernel, reads no more."""

from __future__ import annotations

import pytest
import torch

from bidsapp.networks.base import Network
from bidsapp.networks.planar import Convolution, Enlargement
from bidsapp.networks.registry import SHARED, architecture, build

SMALL = {'widths': (4, 4, 8, 8)}
SLICES = {**SMALL, 'kernel': (3, 3, 1)}


def unet(heads, **options):
    return build('dwi', 'unet', 3, heads, **options).eval()


@pytest.mark.parametrize('options', [SMALL, SLICES, {'widths': (4, 8)}])
@pytest.mark.parametrize('shape', [(16, 16, 16), (17, 9, 30), (5, 8, 1)])
def test_output_has_the_grid_of_the_input(shape, options):
    network = unet({'a': 2}, **options)
    assert network(torch.randn(2, 3, *shape), {}).shape == (2, 2, *shape)


@pytest.mark.parametrize(
    ('options', 'stride'),
    [(SMALL, (8, 8, 8)), (SLICES, (8, 8, 1)), ({'widths': (4, 8)}, (2, 2, 2))],
)
def test_it_says_what_it_pools_together(options, stride):
    assert unet({'a': 2}, **options).stride == stride


def test_answer_does_not_depend_on_what_else_is_in_the_batch():
    network = unet({'a': 2})
    pair = torch.randn(2, 3, 16, 16, 16)
    assert torch.allclose(network(pair, {})[:1], network(pair[:1], {}), atol=1e-5)


def test_background_that_is_added_changes_nothing_far_from_it():
    """Normalisation is within a voxel, so more zeros around a head do not move its features."""
    torch.manual_seed(0)
    network = unet({'a': 2}, **SMALL)
    head = torch.zeros(1, 3, 96, 16, 16)
    head[:, :, :16] = torch.randn(1, 3, 16, 16, 16)
    wider = torch.nn.functional.pad(head, [0, 0, 0, 0, 0, 64])
    here, there = (network(x, {})[:, :, :16] for x in (head, wider))
    assert torch.allclose(here, there, atol=1e-4)


def test_slices_leave_each_other_alone():
    """With a kernel of (3, 3, 1) a volume is a pile of slices, each as if it were by itself."""
    torch.manual_seed(0)
    network, volume = unet({'a': 2}, **SLICES), torch.randn(1, 3, 13, 16, 5)
    whole = network(volume, {})
    for k in range(5):
        assert torch.allclose(network(volume[..., k : k + 1], {}), whole[..., k : k + 1], atol=1e-5)
    cubes = unet({'a': 2}, **SMALL)
    alone = cubes(volume[..., 2:3], {})
    assert not torch.allclose(alone, cubes(volume, {})[..., 2:3], atol=1e-2)


@pytest.mark.parametrize('depth', [1, 3])
@pytest.mark.parametrize(
    'layer', [Convolution(3, 4, (3, 3, 1)), Convolution(3, 4, (3, 3, 3)),
              Enlargement(3, 4, (2, 2, 1)), Enlargement(3, 4, (2, 2, 2))]
)  # fmt: skip
def test_slices_are_convolved_as_a_volume_is(layer, depth):
    """The routine for two dimensions gives what torch's own for three does, gradients too."""
    plain = super(type(layer), layer).forward
    x = torch.randn(2, 3, 6, 5, depth, requires_grad=True)
    found, wanted = layer(x), plain(x)
    assert torch.allclose(found, wanted, atol=1e-5)
    slopes = [torch.autograd.grad(y.square().sum(), [x, layer.weight]) for y in (found, wanted)]
    for a, b in zip(*slopes, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-3)


def test_body_moves_to_a_network_with_another_head():
    first, second = unet({'a': 2}, **SMALL), unet({'b': 6}, **SMALL)
    second.body.load_state_dict(first.body.state_dict())
    x = torch.randn(1, 3, 8, 8, 8)
    assert torch.equal(first.body(x), second.body(x))


def test_heads_stand_one_after_another_and_leave_each_other_alone():
    both, alone = unet({'a': 2, 'b': 5}), unet({'b': 5})
    alone.body.load_state_dict(both.body.state_dict())
    alone.heads['b'].load_state_dict(both.heads['b'].state_dict())
    x = torch.randn(1, 3, 8, 8, 8)
    assert both(x, {}).shape[1] == 7
    assert torch.allclose(both(x, {})[:, 2:], alone(x, {}), atol=1e-6)


def test_half_precision_says_nearly_the_same():
    torch.manual_seed(0)
    network = unet({'a': 2})
    x = torch.randn(1, 3, 16, 16, 16)
    with torch.no_grad(), torch.autocast('cpu', dtype=torch.bfloat16):
        half = network(x, {})
    assert half.dtype == torch.float32
    whole = network(x, {})
    assert (half - whole).abs().mean() < 0.05 * whole.std()


def test_its_parts_are_all_of_it():
    network = unet({'a': 2}, **SMALL)
    parts = network.parts()
    assert list(parts) == ['body', 'encoder', 'decoder', 'heads']
    own = {name: {id(p) for p in part.parameters()} for name, part in parts.items()}
    assert own['body'] == own['encoder'] | own['decoder']
    assert own['body'] | own['heads'] == {id(p) for p in network.parameters()}
    assert not own['encoder'] & own['decoder']


def test_a_network_knows_what_applying_it_takes():
    assert unet({'a': 2}, **SMALL).bytes_per_voxel == SHARED['unet'].bytes_per_voxel
    assert architecture('dwi', 'unet') is SHARED['unet']


def test_unknown_network_is_refused_with_the_names_that_exist():
    with pytest.raises(ValueError, match='unet, unet3d'):
        build('dwi', 'vnet', 1, {'a': 1})


def test_a_network_that_says_nothing_is_refused():
    with pytest.raises(TypeError, match='does not say what it computes'):
        Network()(torch.zeros(1, 1, 1, 1, 1), {})
