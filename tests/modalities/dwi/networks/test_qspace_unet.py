"""The network keeps the grid and is the same in pieces as in one."""

from __future__ import annotations

import pytest
import torch

from bidsapp import registry
from bidsapp.core import Checkpoint
from bidsapp.learn.fit import grown, start_network
from bidsapp.learn.joint import joint
from bidsapp.modalities.dwi.networks import qspace_unet
from bidsapp.modalities.dwi.networks.neighbours import WeightedSum
from bidsapp.modalities.dwi.networks.sphere import Sphere
from bidsapp.modalities.dwi.physics.qspace import (
    DENSITY_CHANNELS,
    LAYOUT,
    N_CHANNELS,
    N_SH,
    SLOT_CHANNELS,
)
from bidsapp.networks.registry import build, reads
from bidsapp.registry import task


@pytest.mark.parametrize('shape', [(16, 16, 16), (17, 9, 30), (5, 8, 1)])
def test_output_has_the_grid_of_the_input(shape):
    network = build('dwi', 'unet3d', 3, {'a': 2}).eval()
    assert network(torch.randn(2, 3, *shape), {}).shape == (2, 2, *shape)


def test_answer_does_not_depend_on_what_else_is_in_the_batch():
    network = build('dwi', 'unet3d', 3, {'a': 2}).eval()
    pair = torch.randn(2, 3, 16, 16, 16)
    alone = network(pair[:1], {})
    assert torch.allclose(network(pair, {})[:1], alone, atol=1e-5)


def test_background_that_is_added_changes_nothing_far_from_it():
    """Normalisation is within a voxel, so more zeros around a head do not move its features."""
    torch.manual_seed(0)
    network = build('dwi', 'unet3d', 3, {'a': 2}, widths=(4, 4, 8, 8)).eval()
    head = torch.zeros(1, 3, 96, 16, 16)
    head[:, :, :16] = torch.randn(1, 3, 16, 16, 16)
    wider = torch.nn.functional.pad(head, [0, 0, 0, 0, 0, 64])
    middle = slice(0, 16)
    assert torch.allclose(
        network(head, {})[:, :, middle], network(wider, {})[:, :, middle], atol=1e-4
    )


def test_body_moves_to_a_network_with_another_head():
    first, second = build('dwi', 'unet3d', 3, {'a': 2}), build('dwi', 'unet3d', 3, {'b': 6})
    second.body.load_state_dict(first.body.state_dict())
    x = torch.randn(1, 3, 8, 8, 8)
    assert torch.equal(first.body(x), second.body(x))


def test_unknown_network_is_refused_with_the_names_that_exist():
    with pytest.raises(ValueError, match='unet3d'):
        build('dwi', 'vnet', 1, {'a': 1})


def test_levels_that_do_not_fit_the_padding_are_refused():
    with pytest.raises(ValueError, match='levels'):
        build('dwi', 'unet3d', 1, {'a': 1}, widths=(4, 8))


def test_slots_share_their_weights_and_an_empty_one_adds_nothing():
    """What stands in one slot of b means the same in another."""
    network = build('dwi', 'unet3d', 3 * 5 + 1, {'a': 2}, slots=3).eval()
    first, second = torch.zeros(2, 1, 16, 8, 8, 8)
    first[:, :5] = torch.randn(1, 5, 8, 8, 8)
    second[:, 5:10] = first[:, :5]
    stem = network.body.encoder.stem
    assert torch.allclose(stem(first), stem(second), atol=1e-6)
    assert not torch.allclose(stem(first), stem(torch.zeros_like(first)))


def test_heads_stand_one_after_another_and_leave_each_other_alone():
    both = build('dwi', 'unet3d', 3, {'a': 2, 'b': 5}).eval()
    alone = build('dwi', 'unet3d', 3, {'b': 5}).eval()
    alone.body.load_state_dict(both.body.state_dict())
    alone.heads['b'].load_state_dict(both.heads['b'].state_dict())
    x = torch.randn(1, 3, 8, 8, 8)
    assert both(x, {}).shape[1] == 7
    assert torch.allclose(both(x, {})[:, 2:], alone(x, {}), atol=1e-6)


def test_half_precision_says_nearly_the_same():
    torch.manual_seed(0)
    network = build('dwi', 'unet3d', 3, {'a': 2}).eval()
    x = torch.randn(1, 3, 16, 16, 16)
    with torch.no_grad(), torch.autocast('cpu', dtype=torch.bfloat16):
        half = network(x, {})
    assert half.dtype == torch.float32
    whole = network(x, {})
    assert (half - whole).abs().mean() < 0.05 * whole.std()


SLOTTED = {'slots': 2, 'slot_channels': 8, 'harmonics': 6, 'density': 45, 'widths': (4, 4, 8, 8)}


def slotted(seed=0, shape=(8, 8, 8)):
    """Two slots of 6 harmonics, flag and one more, the second empty; one channel; a density."""
    x = torch.zeros(1, 62, *shape)
    x[:, :8] = torch.randn(1, 8, *shape, generator=torch.Generator().manual_seed(seed))
    x[:, 6] = 1
    x[:, 17:] = torch.randn(1, 45, *shape, generator=torch.Generator().manual_seed(seed + 1))
    return x


def changes(body, x):
    """What the body gives the heads beside its features: changes of the slots, and the axis."""
    beside = body(x)[:, -17 - Sphere.width_out : -Sphere.width_out]
    return beside[:, :6], beside[:, 6:12], beside[:, 12:]


def test_means_stay_between_their_neighbours_and_constants_stay():
    body = build('dwi', 'unet3d', 62, {'a': 1}, **SLOTTED).eval().body
    torch.nn.init.normal_(body.neighbours.logits.weight)
    x = slotted()
    change, empty, _ = changes(body, x)
    mean = x[:, :6] + change
    highest = torch.nn.functional.max_pool3d(x[:, :6], 3, 1, 1)
    lowest = -torch.nn.functional.max_pool3d(-x[:, :6], 3, 1, 1)
    assert (mean <= highest + 1e-5).all()
    assert (mean >= lowest - 1e-5).all()
    assert change.abs().max() > 0.1
    assert not empty.any()
    x[:, :6] = 0.3
    assert changes(body, x)[0].abs().max() < 1e-5


def test_the_density_is_averaged_over_neighbours_too():
    body = build('dwi', 'unet3d', 62, {'a': 1}, **SLOTTED).eval().body
    torch.nn.init.normal_(body.neighbours.logits.weight)
    x = slotted()
    mean = body._averaged(body.decoder(body.encoder(x)), x)[4]
    assert mean.std() < 0.9 * x[:, 17:].std()
    x[:, 17:] = 0.4
    assert torch.allclose(
        body._averaged(body.decoder(body.encoder(x)), x)[4], torch.tensor(0.4), atol=1e-5
    )


def test_what_is_outside_the_brain_is_no_neighbour():
    body = build('dwi', 'unet3d', 62, {'a': 1}, **SLOTTED).eval().body
    x = slotted()
    x[:, :6] = 0.3
    x[..., 4:] = 0
    assert changes(body, x)[0][..., :4].abs().max() < 1e-5


def test_the_axis_is_that_of_degree_two_whatever_its_size():
    body = build('dwi', 'unet3d', 62, {'a': 1}, **SLOTTED).eval().body
    x = slotted()
    x[:, :6] = torch.randn(6, generator=torch.Generator().manual_seed(2))[None, :, None, None, None]
    axis = changes(body, x)[2]
    expected = torch.nn.functional.normalize(x[:, 1:6], dim=1)
    assert torch.allclose(axis, expected, atol=1e-3)
    x[:, :6] *= 5
    assert torch.allclose(changes(body, x)[2], axis, atol=1e-3)


def test_the_weighted_sum_has_the_gradient_of_its_definition():
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(1, 27, 3, 2, 2, generator=generator, dtype=torch.float64)
    values = torch.randn(1, 2, 5, 4, 4, generator=generator, dtype=torch.float64)
    weights.requires_grad_()
    assert torch.autograd.gradcheck(lambda w: WeightedSum.apply(w, values), (weights,))
    centre = torch.zeros(1, 27, 3, 2, 2, dtype=torch.float64)
    centre[:, 13] = 1
    assert torch.equal(WeightedSum.apply(centre, values), values[..., 1:4, 1:3, 1:3])


@pytest.mark.parametrize('planes', [1, 3, 11])
def test_answers_a_few_planes_at_a_time_are_those_of_all_at_once(planes, monkeypatch):
    """Also across the planes' borders, where neighbours are averaged, and outside the brain."""
    torch.manual_seed(0)
    shape = (11, 9, 10)
    network = build('dwi', 'unet3d', N_CHANNELS, {'a': 4}, **LAYOUT).eval()
    x = torch.zeros(1, N_CHANNELS, *shape)
    x[:, :SLOT_CHANNELS] = torch.randn(1, SLOT_CHANNELS, *shape)
    x[:, DENSITY_CHANNELS.start :] = torch.randn(1, N_CHANNELS - DENSITY_CHANNELS.start, *shape)
    x[:, N_SH] = 1
    x[:, N_SH + 2] = 0.2  # of a scan, not of a voxel
    x[..., :3, :] = 0
    at_once = network(x, {})
    monkeypatch.setitem(qspace_unet.AT_A_TIME, 'cpu', planes * shape[1] * shape[2])
    with torch.inference_mode():
        assert torch.allclose(network(x, {}), at_once, atol=1e-5)
    assert at_once.std() > 0.01


def test_an_input_with_more_channels_is_not_looked_at_by_a_network_of_before():
    """Later inputs append channels; a model made before gives what it gave."""
    network = build('dwi', 'unet3d', 142, {'a': 2}, **{**LAYOUT, 'appended': 0}).eval()
    x = torch.randn(1, N_CHANNELS, 8, 8, 8)
    with torch.no_grad():
        assert torch.equal(network(x, {}), network(x[:, :142], {}))
    assert reads('dwi', {'name': 'unet3d', 'channels_in': 142}, N_CHANNELS)
    assert not reads('dwi', {'name': 'unet3d', 'channels_in': 141}, N_CHANNELS)
    assert not reads('dwi', {'name': 'unet3d', 'channels_in': N_CHANNELS + 1}, N_CHANNELS)


def test_a_grown_network_says_what_it_said():
    old = {**LAYOUT, 'appended': 0}
    own = registry.input('dwi')
    head = joint([task('tissue').head, task('restore').head])
    network = build('dwi', 'unet3d', 142, {'tissue': 3}, **old).eval()
    card = {
        'name': 'x', 'version': 'v1', 'modality': 'dwi', 'objective': 'supervised',
        'network': {'name': 'unet3d', 'channels_in': 142, 'options': old},
        'heads': {'tissue': 3},
    }  # fmt: skip
    before = Checkpoint(
        card, network.body.state_dict(), {'tissue': network.heads['tissue'].state_dict()}
    )
    after = grown(before, own, head, N_CHANNELS)
    assert after.card['network']['channels_in'] == N_CHANNELS
    bigger = start_network(own, head, after, N_CHANNELS, 0).eval()
    x = torch.randn(1, N_CHANNELS, 8, 8, 8)
    with torch.no_grad():
        said, corrected = bigger(x, {}).split([3, 84], 1)
        assert torch.allclose(said, network(x, {}), atol=1e-5)
    assert corrected[:, :N_SH].any()  # it begins on the way to the tensor, in the lowest bin
    assert not corrected[:, N_SH:].any()
    x[:, N_SH + 1] = 0  # and goes nowhere where the input is sure
    with torch.no_grad():
        assert not bigger(x, {})[:, 3:].any()
    assert grown(after, own, head, N_CHANNELS) is after


def test_a_correction_by_deviation_is_as_large_as_the_input_is_unsure():
    options = {**LAYOUT, 'by_deviation': ('restore',)}
    network = build('dwi', 'unet3d', N_CHANNELS, {'a': 4, 'restore': 3 * N_SH}, **options).eval()
    plain = build('dwi', 'unet3d', N_CHANNELS, {'a': 4, 'restore': 3 * N_SH}, **LAYOUT).eval()
    plain.load_state_dict(network.state_dict())
    torch.manual_seed(0)
    image = torch.randn(1, N_CHANNELS, 8, 8, 8)
    known = 0.0, 0.5, 2.0
    for slot, deviation in enumerate(known):
        image[:, slot * SLOT_CHANNELS + N_SH] = 1
        image[:, slot * SLOT_CHANNELS + N_SH + 1] = deviation
    with torch.no_grad():
        found, other = network(image, {}), plain(image, {})
    assert torch.equal(found[:, :4], other[:, :4])
    factors = torch.tensor(known).repeat_interleave(N_SH)[:, None, None, None]
    assert torch.allclose(found[:, 4:], other[:, 4:] * factors, atol=1e-6)
    assert other[:, 4:].abs().min() > 0
