"""Published transfer learning, and fine-tuning another of the modality's networks."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bidsapp import registry
from bidsapp.core import Plan
from bidsapp.learn.checkpoint import checkpoint_of
from bidsapp.learn.fit import rated
from bidsapp.learn.inputs import with_network_of
from bidsapp.learn.published import as_published, recipe_of
from bidsapp.modalities.gre.learn.published import PUBLISHED
from bidsapp.networks.registry import build
from bidsapp.pretrain import refuse_other_network, with_network
from bidsapp.problems import WrongUsage

HEADS = {'susceptibility': 2}
PLAN = Plan(steps=1000, patch=(48, 48, 48), batch=2, lr=4e-3, validate_every=100)


def started(name, **options):
    """A network of the modality, and its checkpoint."""
    network = build('gre', name, 6, HEADS, **options)
    card = {
        'name': 'x', 'version': 'v1', 'modality': 'gre', 'heads': HEADS,
        'network': {'name': name, 'channels_in': 6, 'options': options},
    }  # fmt: skip
    return network, checkpoint_of(network, card)


@pytest.fixture(scope='module')
def adaptive():
    return started('adaptive_unet')


@pytest.fixture(scope='module')
def twin():
    return started('adaptive_unet', adaptive=False)


@pytest.fixture(scope='module')
def bundled():
    return started('dipole_unet', widths=[4, 8])


def rates(network, plan):
    """Name of each parameter that learns → its rate."""
    groups = rated(network, plan)
    of = {id(p): plan.lr * group['factor'] for group in groups for p in group['params']}
    return {name: of[id(p)] for name, p in network.named_parameters() if p.requires_grad}


@pytest.mark.parametrize('kind', ['adaptive', 'twin', 'bundled'])
def test_the_decoder_learns_the_rest_hardly_and_what_is_adaptive_not(kind, request):
    network, start = request.getfixturevalue(kind)
    found = rates(network, as_published(PLAN, PUBLISHED, start, 4, None))
    still = {name for name, _ in network.named_parameters()} - found.keys()
    manifold = {name for name, _ in network.named_parameters() if '.manifold.' in name}
    assert still == manifold
    assert bool(manifold) == (kind == 'adaptive')
    for name, rate in found.items():
        last = '.decoder.' in name or name.startswith('heads.')
        assert rate == pytest.approx(1e-3 if last else 1e-5), name
    assert {round(rate, 9) for rate in found.values()} == {1e-3, 1e-5}


def test_it_takes_30_epochs_of_120_patches_a_scan_unless_steps_are_given(twin):
    plan = as_published(PLAN, PUBLISHED, twin[1], 109, None)
    assert plan.steps == 30 * 13_080 / 2
    assert as_published(PLAN, PUBLISHED, twin[1], 109, 7).steps == 7


def test_without_a_start_or_for_another_modality_it_is_refused(twin):
    with pytest.raises(WrongUsage, match='none to start from'):
        as_published(PLAN, PUBLISHED, None, 4, None)
    with pytest.raises(WrongUsage, match='means nothing to tissue'):
        recipe_of(registry.task('tissue'))
    assert recipe_of(registry.task('susceptibility')) is PUBLISHED
    other = replace(PUBLISHED, rates={'tail': 1.0})
    with pytest.raises(WrongUsage, match='has not: tail; it has body, encoder, decoder, heads'):
        as_published(PLAN, other, twin[1], 4, None)


def test_a_start_is_known_by_its_card_for_what_it_is(adaptive, twin, bundled):
    own = registry.input('gre')
    for name, (_, start) in (('adaptive_unet', adaptive), ('conventional_unet', twin)):
        assert with_network_of(own, start).network == own.networks[name]
    # Of the usual kind, whatever its widths: the shape of today, from which others are grown.
    assert with_network_of(own, bundled[1]) is own
    assert with_network_of(own, None) is own


def test_pretraining_goes_on_with_the_network_that_is_asked_for(adaptive, twin, bundled):
    own = registry.input('gre')
    refuse_other_network(own, None)
    refuse_other_network(own, bundled[1])
    refuse_other_network(with_network(own, 'conventional_unet'), twin[1])
    with pytest.raises(WrongUsage, match='--network conventional_unet'):
        refuse_other_network(own, twin[1])
    with pytest.raises(WrongUsage, match='--network conventional_unet'):
        refuse_other_network(with_network(own, 'adaptive_unet'), twin[1])
    with pytest.raises(WrongUsage, match='Leave --network out'):
        refuse_other_network(with_network(own, 'adaptive_unet'), bundled[1])
