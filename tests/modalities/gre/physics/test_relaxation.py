"""R2* comes back, also at the noise floor."""

from __future__ import annotations

import numpy as np
import pytest

from bidsapp.modalities.gre.physics import relaxation

TIMES = (0.004, 0.010, 0.016, 0.022, 0.028)
SHAPE = (20, 20, 20)
INSIDE = np.ones(SHAPE, bool)


def magnitude(rate, times, sigma, rng):
    signal = 100 * np.exp(-np.array(times)[:, None, None, None] * rate) * np.ones((1, *SHAPE))
    noise = rng.normal(0, 1, (2, *signal.shape)) * sigma if sigma else np.zeros((2, 1))
    return np.hypot(signal + noise[0], noise[1])


@pytest.mark.parametrize('times', [TIMES, TIMES[:2], (0.003, 0.005, 0.02)])
@pytest.mark.parametrize('rate', [3.0, 25.0, 120.0])
def test_it_is_exact_without_noise(times, rate, rng):
    found = relaxation.r2star(magnitude(rate, times, 0, rng), times, INSIDE, 0.0)
    assert found == pytest.approx(rate, rel=1e-6)
    assert relaxation.t2star(found) == pytest.approx(1 / rate, rel=1e-6)


@pytest.mark.parametrize('rate', [15.0, 40.0, 90.0])
def test_within_5_per_cent_at_snr_30(rate, rng):
    found = relaxation.r2star(magnitude(rate, TIMES, 100 / 30, rng), TIMES, INSIDE, 100 / 30)
    assert np.mean(found) == pytest.approx(rate, rel=0.05)


def test_the_noise_floor_does_not_slow_the_decay(rng):
    """At 150/s the last echo is noise, which a line of logarithms takes for signal."""
    noisy = magnitude(150.0, TIMES, 5.0, rng)
    found = relaxation.r2star(noisy, TIMES, INSIDE, 5.0)
    naive = -np.polyfit(TIMES, np.log(noisy.reshape(5, -1)), 1)[0]
    assert np.median(naive) < 125
    assert np.median(found) == pytest.approx(150, rel=0.05)


def test_outside_the_mask_there_is_none(rng):
    mask = INSIDE.copy()
    mask[:10] = False
    found = relaxation.r2star(magnitude(30.0, TIMES, 1, rng), TIMES, mask, 1.0)
    assert not found[:10].any()
    assert not relaxation.t2star(found)[:10].any()


def test_one_echo_has_no_decay(rng):
    with pytest.raises(ValueError, match='two echoes'):
        relaxation.r2star(magnitude(30.0, (0.01,), 1, rng), (0.01,), INSIDE, 1.0)
