"""Batches of an endless scanner follow from (seed, step); each patch is told of its own scan."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bidsapp.core import Head, Task
from bidsapp.simulate.material import Material, Scan, labelled, target_of
from bidsapp.simulate.stream import SimulatedStream


def task(name, truth):
    """A task of which only the truth is asked."""
    head = Head(1, 1, None, None, 'x', True, name=name)
    return Task(head, (), None, None, truth=truth, name=name)


TASKS = [task('twice', lambda known: 2 * known['value']), task('less', lambda known: known['less'])]


class Counted:
    """Scan k is of the number k, with noise in a second channel; notes what it was asked for."""

    def __init__(self, shape=(10, 9, 8)):
        self.shape, self.asked = shape, []

    def scan(self, number):
        self.asked.append(number)
        value = torch.full((1, *self.shape), float(number))
        noise = torch.randn(1, *self.shape, generator=torch.Generator().manual_seed(number))
        mask = torch.zeros(1, *self.shape, dtype=torch.bool)
        mask[:, 3:6, 3:6, 3:6] = True
        truth = {'value': value, 'less': noise - 1}
        context = {'number': torch.tensor([float(number)])}
        return Scan(torch.cat([value, noise]), mask, truth, (1.0, 2.0, 3.0), context)


def stream(scanner=None, patch=(4, 4, 4), window=3, steps=2):
    return SimulatedStream(scanner or Counted(), TASKS, patch, window, steps)


def same(one, other):
    return all(torch.equal(x, y) for x, y in zip(one[:3], other[:3], strict=True)) and all(
        torch.equal(value, other.context[name]) for name, value in one.context.items()
    )


def test_batches_depend_on_seed_and_step_only():
    running = stream()
    batches = [running.batch(3, 1, step) for step in range(9)]
    for step in (0, 4, 8):
        assert same(stream().batch(3, 1, step), batches[step])
    assert not same(batches[0], batches[1])
    assert not same(stream().batch(3, 2, 4), batches[4])


def test_every_patch_has_the_target_and_is_told_of_its_own_scan():
    running = stream()
    assert running.channels_in == 2
    for step in range(8):
        batch = running.batch(3, 0, step)
        assert batch.image.shape == (3, 2, 4, 4, 4)
        numbers = batch.context['number']
        assert numbers.shape == (3, 1)
        assert torch.equal(batch.image[:, 0].amax((1, 2, 3)), numbers[:, 0])
        assert torch.equal(batch.target[:, 0], 2 * batch.image[:, 0])
        assert torch.equal(batch.target[:, 1], batch.image[:, 1] - 1)
        assert batch.mask.flatten(1).any(1).all()


def test_a_window_of_scans_moves_on_and_each_is_made_once():
    scanner = Counted()
    running = stream(scanner, window=3, steps=2)
    for step in range(10):
        numbers = running.batch(4, 0, step).context['number']
        first = step // 2
        assert set(numbers.flatten().tolist()) <= {first, first + 1, first + 2}
    assert len(set(scanner.asked)) == len(scanner.asked)


@pytest.mark.parametrize(
    ('patch', 'shape'),
    [((None, None, 1), (10, 9, 1)), ((None, None, None), (10, 9, 8)), ((16, 4, None), (10, 4, 8))],
)
def test_whole_axes_are_whole_and_no_patch_is_larger_than_its_scan(patch, shape):
    assert stream(patch=patch).batch(2, 0, 0).mask.shape == (2, 1, *shape)


def test_targets_of_tasks_stand_in_a_row_and_one_without_truth_is_refused():
    scan = Counted().scan(4)
    sample = labelled(scan, TASKS)
    assert torch.equal(sample.target, torch.cat([2 * scan.truth['value'], scan.truth['less']]))
    assert np.array_equal(sample.affine, np.diag([1.0, 2.0, 3.0, 1.0]))
    assert sample.context is scan.context
    with pytest.raises(ValueError, match='task blind has no truth'):
        target_of(scan, [*TASKS, task('blind', None)])


def test_a_person_of_a_split_is_one_of_its_own_scans():
    scanners = {'train': Counted(), 'val': Counted()}
    made = Material(tuple(TASKS), scanners, {}, {}, scan_of=lambda person: 10 * person + 1)
    sample = made.sample('val', 3)
    assert scanners['val'].asked == [31]
    assert not scanners['train'].asked
    assert float(sample.context['number']) == 31
