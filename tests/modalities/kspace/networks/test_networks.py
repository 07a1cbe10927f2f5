"""Laws of networks that reconstruct, whatever their weights are."""

from __future__ import annotations

import pytest
import torch

from bidsapp.learn.checkpoint import checkpoint_of
from bidsapp.modalities.kspace.networks.cascades import Cascades, consistent
from bidsapp.modalities.kspace.networks.normalised import image_of, unit_of
from bidsapp.modalities.kspace.networks.plain import PlainUNet2d
from bidsapp.modalities.kspace.physics import sampling, sense
from bidsapp.modalities.kspace.physics.fourier import ALONG_PHASE, hybrid
from bidsapp.modalities.kspace.physics.planes import Plane
from bidsapp.modalities.kspace.physics.seen import seen, stacked
from bidsapp.networks.registry import build
from tests.modalities.kspace.phantom import noise_of, scan_of

WIDTHS = (4, 8)


def cascades(seed=0, trained=True):
    torch.manual_seed(seed)
    network = Cascades(4, {'reconstruction': 2}, widths=WIDTHS)
    if trained:  # somewhere else than where it begins
        for parameter in network.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return network.eval()


def given(shape, n, generator, acceleration=2.0, factor=1.0):
    """Input and context of one scan, and the operator."""
    _, maps, kspace = scan_of(n, shape, 0.01, generator)
    mask = sampling.random_lines(shape[1], acceleration, 5, generator)
    op = sense.sense(maps, mask, ALONG_PHASE)
    y = factor * hybrid(kspace) * mask
    plane = Plane(y, maps, mask[None, None], 0.01 * abs(factor))
    image, context = seen(plane)
    return image[None], {name: value[None] for name, value in context.items()}, op


@pytest.mark.parametrize('shape', [(16, 20), (15, 21)])
@pytest.mark.parametrize('coils', [1, 5])
def test_any_matrix_and_any_number_of_coils_will_do(shape, coils, generator):
    image, context, _ = given(shape, coils, generator)
    with torch.no_grad():
        assert cascades()(image, context).shape == (1, 2, *shape, 1)
        plain = PlainUNet2d(4, {'reconstruction': 2}, WIDTHS)
        assert plain(image, context).shape == (1, 2, *shape, 1)


@pytest.mark.parametrize('network', ['cascades', 'plain'])
def test_scale_and_phase_of_k_space_are_the_image_s_and_nothing_else(network):
    factor = complex(1000 * torch.exp(torch.tensor(2.1j)))
    found = []
    for one in (1.0, factor):
        image, context, _ = given((16, 20), 4, torch.Generator().manual_seed(1), factor=one)
        torch.manual_seed(3)
        model = cascades() if network == 'cascades' else PlainUNet2d(4, {'a': 2}, WIDTHS)
        with torch.no_grad():
            out = model(image, context)
        found.append(image_of(out) / one)
    assert (found[0] - found[1]).norm() < 1e-3 * found[0].norm()


def test_untrained_cascades_are_total_variation_made_consistent(generator):
    image, context, op = given((16, 20), 4, generator)
    with torch.no_grad():
        found = image_of(cascades(trained=False)(image, context))
    start, back = image_of(image[:, :2]), image_of(image[:, 2:])
    assert (found - start).norm() < 0.05 * start.norm()
    assert (op.gram(found[0]) - back[0]).norm() < (op.gram(start[0]) - back[0]).norm()


def test_of_a_full_scan_the_data_have_the_last_word(generator):
    """With all of k-space x = (Aᴴ y + λ v) / (1 + λ): a correction counts by λ only."""
    image, _, op = given((16, 20), 4, generator, acceleration=1.0)
    back = image_of(image[:, 2:])
    wrong = noise_of(back.shape, generator)
    found = consistent(op, back, wrong, torch.tensor(0.25))
    assert (found - (back + 0.25 * wrong) / 1.25).norm() < 1e-4 * back.norm()


@pytest.mark.parametrize('coils', [1, 3])
def test_every_parameter_learns(coils, generator):
    """Of one coil the solve is done after two steps, whose gradients must be numbers too."""
    image, context, _ = given((16, 20), coils, generator)
    network = cascades()
    network(image, context).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    assert (network.body.weights.grad != 0).all()


def test_scans_of_a_batch_do_not_see_each_other(generator):
    one, context, _ = given((16, 20), 3, generator)
    other, context_2, _ = given((16, 20), 3, generator, factor=5.0)
    both = {key: torch.cat([context[key], context_2[key]]) for key in context}
    network = cascades()
    with torch.no_grad():
        together = network(torch.cat([one, other]), both)
        apart = torch.cat([network(one, context), network(other, context_2)])
    assert (together - apart).norm() < 1e-4 * apart.norm()


@pytest.mark.parametrize('network', ['cascades', 'plain_unet2d'])
def test_planes_of_a_stack_are_each_by_itself(network, generator):
    """Also where some have fewer coils: what sees nothing changes nothing."""
    given_of = [given((16, 20), coils, generator)[:2] for coils in (3, 5)]
    planes = [(image[0], {k: v[0] for k, v in context.items()}) for image, context in given_of]
    image, context = stacked(planes)
    model = build('kspace', network, 4, {'reconstruction': 2}, widths=WIDTHS).eval()
    with torch.no_grad():
        together = model(image[None], {name: value[None] for name, value in context.items()})
        apart = torch.cat([model(*one) for one in given_of], -1)
    assert together.shape == (1, 2, 16, 20, 2)
    assert (together - apart).norm() < 1e-5 * apart.norm()


def test_all_that_is_learnt_is_kept_in_a_model(generator):
    """Weights are saved as body and heads; nothing that learns stands beside them."""
    network, other = cascades(), cascades(seed=1)
    assert {id(p) for p in network.parameters()} == {
        id(p) for part in (network.body, network.heads) for p in part.parameters()
    }
    kept = checkpoint_of(network, {})
    other.body.load_state_dict(kept.body)
    other.heads['reconstruction'].load_state_dict(kept.heads['reconstruction'])
    image, context, _ = given((16, 20), 3, generator)
    with torch.no_grad():
        assert torch.equal(other(image, context), network(image, context))
    own = {name: {id(p) for p in part.parameters()} for name, part in network.parts().items()}
    assert own['encoder'] | own['decoder'] < own['body']


def test_the_unit_of_an_empty_image_is_no_zero():
    assert (unit_of(torch.zeros(2, 4, 4, dtype=torch.complex64)).abs() > 0).all()


@pytest.mark.parametrize('kind', [Cascades, PlainUNet2d])
def test_they_are_of_one_task(kind):
    with pytest.raises(ValueError, match='one task'):
        kind(4, {'a': 2, 'b': 2})
