"""The numbers of the alarm are 1 where all is as it should be, and more where it is not."""

from __future__ import annotations

import math

import pytest
import torch

from bidsapp.modalities.kspace.physics import left_out, sampling, sense
from bidsapp.modalities.kspace.physics.fourier import ALONG_PHASE, hybrid
from tests.modalities.kspace.phantom import noise_of, scan_of

SHAPE, SIGMA = (24, 40), 0.02


def middle_of(mask):
    found = torch.zeros(mask.shape, dtype=torch.bool)
    found[sampling.middle_block(mask)] = True
    return found


@pytest.fixture
def scan(generator):
    _, maps, kspace = scan_of(8, SHAPE, SIGMA, generator)
    mask = sampling.random_lines(SHAPE[1], 2, 8, generator)
    return maps, mask, hybrid(kspace) * mask


def ratio(maps, mask, y):
    op = sense.sense(maps, mask, ALONG_PHASE)
    return left_out.residual(op, y, SIGMA, 8 * SHAPE[0] * int(mask.sum()), 1)


@pytest.mark.parametrize('shape', [(40,), (20, 24)])
def test_a_fifth_of_the_outer_samples_is_left_out_and_none_of_the_middle(shape, generator):
    if len(shape) == 1:
        mask = sampling.random_lines(40, 2, 8, generator)
    else:
        mask = sampling.poisson_disc(shape, 3, 6, generator)
    middle = middle_of(mask)
    shown, left = left_out.split(mask, middle, generator)
    assert torch.equal(shown + left, mask)
    assert not left[middle].any()
    outer = int(mask.sum() - middle.sum())
    assert int(left.sum()) == round(outer / 5)
    _, again = left_out.split(mask, middle, generator)
    assert not torch.equal(left, again)
    one, other = left_out.halves(mask, middle, generator)
    assert torch.equal(one + other, mask + mask * middle)
    assert abs(int(one.sum() - other.sum())) <= 1


def test_what_is_predicted_without_a_flaw_is_off_by_its_noise(generator):
    _, _, clean = scan_of(8, SHAPE, 0.0, generator)
    clean = hybrid(clean)
    left = torch.zeros(SHAPE[1])
    left[[2, 9, 30]] = 1
    noisy = clean + SIGMA * noise_of(clean.shape, generator)
    # Outside the middle 2 % of the signal is little beside the noise.
    assert left_out.left_out_error(clean, noisy, left, SIGMA) == pytest.approx(1, abs=0.05)
    assert left_out.left_out_error(0.5 * clean, noisy, left, SIGMA) > 1.2


def test_two_per_cent_of_a_strong_line_is_as_good_as_can_be_asked(generator):
    y = noise_of((4, 10, 12), generator)
    left = torch.ones(12)
    assert left_out.left_out_error(0.98 * y, y, left, 1e-6) == pytest.approx(1, abs=1e-2)
    assert math.isnan(left_out.left_out_error(y, y, torch.zeros(12), 1.0))


def test_the_better_method_predicts_better(scan, generator):
    maps, mask, y = scan
    shown, left = left_out.split(mask, middle_of(mask), generator)
    op, whole = (sense.sense(maps, m, ALONG_PHASE) for m in (shown, torch.ones_like(mask)))
    linear = sense.cg_sense(op, y * shown, 1e-3, 1)
    best = sense.total_variation(op, y * shown, 0.5 * SIGMA, linear)
    errors = [left_out.left_out_error(whole(x), y, left, SIGMA) for x in (best, linear, op.H(y))]
    assert 1 < errors[0] < 0.6 * min(errors[1:])


def test_least_squares_leave_the_noise_and_no_more(scan):
    assert ratio(*scan) == pytest.approx(1, abs=0.05)


def test_maps_of_another_head_leave_more_than_noise(scan):
    maps, mask, y = scan
    assert ratio(maps.roll(3, -1), mask, y) > 2


def test_where_anything_can_be_fitted_nothing_is_said(scan):
    maps, mask, y = scan
    op = sense.sense(maps[:1], mask, ALONG_PHASE)
    assert left_out.residual(op, y[:1], SIGMA, SHAPE[0] * int(mask.sum()), 1) is None
