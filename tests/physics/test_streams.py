"""What is drawn for one purpose tells nothing of what is drawn for another."""

from __future__ import annotations

import numpy as np
import torch

from bidsapp.physics.streams import stream


def draw(most, **of):
    """A whole number below ``most`` for each of 4000 steps of seed 0."""
    return np.array([
        int(torch.randint(most, (), generator=stream(0, step, **of))) for step in range(4000)
    ])  # fmt: skip


def test_the_same_name_is_the_same_stream_and_every_other_another():
    names = [((1, 2), ''), ((2, 1), ''), ((1, 2), 'turns'), ((1, 2), 'patches'), ((1, 2, 0), 'x')]
    drawn = [torch.rand(4, generator=stream(*n, of=of)).tolist() for n, of in names]
    assert drawn == [torch.rand(4, generator=stream(*n, of=of)).tolist() for n, of in names]
    assert len({tuple(numbers) for numbers in drawn}) == len(names)


def test_which_scan_a_step_shows_says_nothing_of_how_it_is_turned():
    """A window of 32 scans and 48 turns: of equal seeds the two agree modulo 16."""
    scan, turn = draw(32, of='patches'), draw(48, of='turns')
    table = np.zeros((16, 16))
    np.add.at(table, (scan % 16, turn % 16), 1)
    expected = len(scan) / table.size
    # Chi squared of 225 degrees of freedom: beyond 300 once in 2000.
    assert ((table - expected) ** 2 / expected).sum() < 300
