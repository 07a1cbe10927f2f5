"""Several heads as one are no other than each of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from bidsapp.core import Head, Sample
from bidsapp.learn.joint import joint
from bidsapp.physics.geometry import ALL_TURNS, MIRRORED


def squared(prediction, target, mask):
    where = mask.expand_as(target)
    return (prediction[:, : target.shape[1]] - target)[where].square().mean()


def absolute(prediction, target, mask):
    return (prediction - target)[mask.expand_as(target)].abs().mean()


def by_turn(values, turn):
    """Vectors of a head that is turned."""
    return torch.einsum('dc,bcxyz->bdxyz', values.new_tensor(turn), values)


def brightened(batch, generator):
    return batch._replace(image=batch.image + 1)


def head(name, channels, targets, loss, **further):
    return Head(channels, targets, loss, lambda o, s: [], 'loss', False, name=name, **further)


VALUE = head('value', 3, 2, squared, weight=0.25, turns=MIRRORED, augment=brightened)
VECTOR = head(
    'vector', 3, 3, absolute, weight=2.0, turns=ALL_TURNS, turn_target=by_turn, turn_output=by_turn
)


@pytest.fixture
def example():
    """Output (1, 6, …), target (1, 5, …) and mask of both heads."""
    generator = torch.Generator().manual_seed(0)
    output, target = (torch.randn(1, n, 4, 4, 4, generator=generator) for n in (6, 5))
    return output, target, torch.rand(1, 1, 4, 4, 4, generator=generator) > 0.3


def test_the_loss_is_the_weighted_sum_of_the_heads_own(example):
    output, target, mask = example
    value = float(squared(output[:, :3], target[:, :2], mask))
    vector = float(absolute(output[:, 3:], target[:, 2:], mask))
    both = joint([VALUE, VECTOR])
    whole = 0.25 * value + 2 * vector
    assert float(both.loss(output, target, mask)) == pytest.approx(whole, rel=1e-5)
    rows = both.metrics(output[0], Sample(output[0], mask[0], np.eye(4), target[0]))
    assert [row[:2] for row in rows] == [('total', 'all'), ('loss', 'value'), ('loss', 'vector')]
    assert [row[2] for row in rows] == pytest.approx([whole, value / 4, 2 * vector], rel=1e-5)
    assert (both.score, both.higher_is_better) == ('total', False)


def test_what_is_turned_is_each_part_turned(example):
    output, target, _ = example
    both = joint([VALUE, VECTOR])
    assert both.turns == ALL_TURNS
    for turn in (ALL_TURNS[5], ALL_TURNS[30]):
        expected = torch.cat([target[:, :2], by_turn(target[:, 2:], turn)], 1)
        assert torch.equal(both.turn_target(target, turn), expected)
        expected = torch.cat([output[:, :3], by_turn(output[:, 3:], turn)], 1)
        assert torch.equal(both.turn_output(output, turn), expected)


def test_heads_have_the_names_and_sizes_of_their_own():
    both = joint([VECTOR, replace(VALUE, augment=VECTOR.augment)])
    assert dict(both.heads) == {'vector': 3, 'value': 3}
    assert list(both.heads) == ['vector', 'value']
    assert (both.channels, both.targets) == (6, 5)
    assert dict(VALUE.heads) == {'value': 3}


def test_a_batch_is_augmented_as_the_first_head_says():
    assert joint([VALUE, VECTOR]).augment is brightened
    assert joint([VECTOR, VALUE]).augment is VECTOR.augment


def test_a_sample_without_target_cannot_be_judged(example):
    output, _, mask = example
    with pytest.raises(ValueError, match='labelled'):
        joint([VALUE, VECTOR]).metrics(output[0], Sample(output[0], mask[0], np.eye(4)))
