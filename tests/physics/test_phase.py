"""Unwrapping in pieces; scales and smooth fields are tested beside field maps."""

from __future__ import annotations

import numpy as np
import pytest

from bidsapp.physics.phase import TURN, unwrap, wrapped


@pytest.fixture
def smooth():
    x, y, z = np.indices((24, 26, 20)) / 10.0
    return 9 * np.sin(x) + 5 * y - 3 * z * y


def test_pieces_that_do_not_touch_are_each_unwrapped_and_fit_each_other(smooth):
    mask = np.ones(smooth.shape, bool)
    mask[10] = mask[:, 18] = False  # four pieces
    turns = (unwrap(wrapped(smooth), mask) - smooth)[mask] / TURN
    assert np.ptp(turns) < 1e-9
    assert turns[0] == pytest.approx(round(turns[0]), abs=1e-9)


def test_a_single_voxel_far_away_is_a_piece(smooth):
    mask = np.zeros(smooth.shape, bool)
    mask[2:12, 2:12, 2:12] = mask[20, 20, 15] = True
    found = unwrap(wrapped(smooth), mask)
    assert np.ptp((found - smooth)[2:12, 2:12, 2:12] / TURN) < 1e-9
    assert not found[~mask].any()


def test_an_empty_mask_holds_no_phase(smooth):
    assert not unwrap(smooth, np.zeros(smooth.shape, bool)).any()


def test_whole_turns_are_all_that_is_added(smooth, rng):
    phase = rng.uniform(-np.pi, np.pi, smooth.shape)
    mask = rng.random(smooth.shape) < 0.3  # sand: hundreds of pieces
    turns = (unwrap(phase, mask) - phase)[mask] / TURN
    assert turns == pytest.approx(np.rint(turns), abs=1e-9)
