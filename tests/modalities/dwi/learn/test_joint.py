"""Every task of dMRI learnt as one is no other than each of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from bidsapp import registry
from bidsapp.core import Sample
from bidsapp.learn.joint import joint

NAMES = ('tissue', 'orientation', 'crossings', 'microstructure', 'restore', 'kurtosis')


@pytest.fixture
def parts():
    return [registry.task(name).head for name in NAMES]


def example(parts):
    generator = torch.Generator().manual_seed(0)
    shape = (1, 4, 4, 4)
    layouts = {
        'tissue': torch.randint(1, 4, shape, generator=generator).expand(3, -1, -1, -1).float(),
        'orientation': torch.nn.functional.normalize(
            torch.randn(3, 3, 4, 4, 4, generator=generator), dim=1
        ).flatten(0, 1),
        'crossings': torch.randint(1, 5, shape, generator=generator).float(),
        'microstructure': torch.rand(3, 4, 4, 4, generator=generator),
        'restore': torch.ones(87, 4, 4, 4),
        'kurtosis': torch.rand(3, 4, 4, 4, generator=generator),
    }
    target = torch.cat([layouts[part.name] for part in parts])[None]
    output = torch.randn(1, sum(p.channels for p in parts), 4, 4, 4, generator=generator)
    return output, target, torch.ones(1, 1, 4, 4, 4, dtype=torch.bool)


def test_there_is_an_example_of_every_task():
    assert sorted(NAMES) == [task.name for task in registry.tasks_of('dwi')]


def test_the_loss_is_the_weighted_sum_of_the_tasks_own(parts):
    parts = [replace(part, weight=0.5 + k) for k, part in enumerate(parts)]
    output, target, mask = example(parts)
    own = zip(
        parts, output.split([p.channels for p in parts], 1),
        target.split([p.targets for p in parts], 1), strict=True,
    )  # fmt: skip
    expected = sum(p.weight * p.loss(o, t, mask) for p, o, t in own)
    both = joint(parts)
    assert torch.allclose(both.loss(output, target, mask), expected)
    rows = both.metrics(output[0], Sample(output[0], mask[0], np.eye(4), target[0]))
    assert rows[0][:2] == ('total', 'all')
    assert rows[0][2] == pytest.approx(float(expected), rel=1e-5)


def test_a_turned_target_is_each_target_turned(parts):
    _, target, _ = example(parts)
    both = joint(parts)
    turn = both.turns[17]
    whole = both.turn_target(target, turn)
    begin = 0
    for part in parts:
        own = target[:, begin : begin + part.targets]
        assert torch.equal(
            whole[:, begin : begin + part.targets], part.turn_target(own.clone(), turn)
        )
        begin += part.targets


def test_heads_have_the_names_and_sizes_of_the_tasks(parts):
    both = joint(parts)
    assert dict(both.heads) == {p.name: p.channels for p in parts}
    assert both.channels == sum(both.heads.values())
