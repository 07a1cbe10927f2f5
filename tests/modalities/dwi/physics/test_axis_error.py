"""What is stated of an axis is how far it lies from the truth."""

from __future__ import annotations

import numpy as np
import pytest

from bidsapp.modalities.dwi.physics.axis_error import (
    WITHIN_68,
    WITHIN_95,
    axis_error,
    sine_square,
)
from bidsapp.modalities.dwi.physics.diffusion import TensorMaps, fit_tensor
from bidsapp.modalities.dwi.physics.gradients import GradientTable
from bidsapp.modalities.dwi.physics.harmonics import fibonacci_hemisphere

SHAPE = (14, 14, 14)
INSIDE = np.ones(SHAPE, bool)
N = INSIDE.size


def scheme(n=30, b=1000.0):
    bvecs = np.vstack([np.zeros((2, 3)), fibonacci_hemisphere(n)])
    return GradientTable(bvecs, np.r_[0.0, 0.0, np.full(n, b)])


def prolate(fa, md=0.8):
    """µm²/ms."""
    a = np.sqrt(3 * fa**2 / (9 - 6 * fa**2))
    return md * np.array([1 + 2 * a, 1 - a, 1 - a])


def clean(evals, gtab, rng):
    """(N, V) S/S0 of tensors in random orientations, and their frames."""
    frames = np.linalg.qr(rng.normal(size=(N, 3, 3)))[0]
    along = np.square(np.einsum('nk,vkj->nvj', gtab.bvecs, frames)) @ np.asarray(evals)
    return np.exp(-1e-3 * gtab.bvals[:, None] * along), frames


def noisy(signal, snr, rng):
    return np.hypot(*(rng.normal(size=(2, *signal.shape)) / snr + [signal, 0 * signal]))


def stated(signal, gtab, snr, left=None):
    """Axes and stated root mean square angles, degrees."""
    maps = fit_tensor(signal, gtab)
    left = np.zeros_like(signal) if left is None else left
    s0 = signal[gtab.b0].mean(0)
    square = axis_error(maps, signal, left, s0, gtab, INSIDE, 1 / snr)
    return maps.direction, np.rad2deg(np.arcsin(np.sqrt(square)))


def angle(a, b):
    return np.rad2deg(np.arccos(np.clip(np.abs((a * b).sum(-1)), 0, 1)))


@pytest.mark.parametrize(
    ('fa', 'snr', 'n'),
    [(0.2, 20, 30), (0.2, 30, 12), (0.35, 20, 30), (0.35, 30, 12), (0.5, 12, 30), (0.5, 20, 12),
     (0.5, 30, 6), (0.7, 12, 12), (0.7, 20, 30), (0.7, 20, 6), (0.7, 30, 60)],
)  # fmt: skip
def test_intervals_of_a_single_fibre_cover_what_they_say(fa, snr, n, rng):
    gtab = scheme(n)
    signal, frames = clean(prolate(fa), gtab, rng)
    axes, degrees = stated(noisy(signal, snr, rng), gtab, snr)
    error = angle(axes, frames[..., 0])
    assert 0.63 <= (error <= WITHIN_68 * degrees).mean() <= 0.73
    assert 0.92 <= (error <= WITHIN_95 * degrees).mean() <= 0.97
    assert np.sqrt(np.square(degrees).mean()) == pytest.approx(
        np.sqrt(np.square(error).mean()), rel=0.2
    )


@pytest.mark.parametrize('share', [0.3, 0.6])
def test_volumes_drawn_to_a_prediction_err_less_and_say_so(share, rng):
    """Bayes' posterior mean, the prediction's error as white as the noise."""
    gtab, snr = scheme(30), 20
    signal, frames = clean(prolate(0.6), gtab, rng)
    seen = signal + rng.normal(size=signal.shape) / snr
    wrong = np.sqrt(share / (1 - share)) / snr
    predicted = signal + wrong * rng.normal(size=signal.shape)
    restored = predicted + share * (seen - predicted)
    restored[gtab.b0] = seen[gtab.b0]
    axes, degrees = stated(restored, gtab, snr, seen - restored)
    error = angle(axes, frames[..., 0])
    assert 0.63 <= (error <= WITHIN_68 * degrees).mean() <= 0.73
    assert 0.92 <= (error <= WITHIN_95 * degrees).mean() <= 0.97


def test_nothing_is_known_of_an_isotropic_voxel(rng):
    signal, _ = clean([0.8, 0.8, 0.8], scheme(), rng)
    _, degrees = stated(noisy(signal, 20, rng), scheme(), 20)
    assert np.median(degrees) == pytest.approx(54.7, abs=0.1)
    assert degrees.mean() > 52


def test_of_two_axes_alike_neither_is_known(rng):
    signal, frames = clean([1.1, 1.1, 0.3], scheme(), rng)
    axes, degrees = stated(noisy(signal, 20, rng), scheme(), 20)
    assert np.median(degrees) == pytest.approx(45, abs=2)
    error = np.deg2rad(angle(axes, frames[..., 0]))
    stated_square = np.square(np.sin(np.deg2rad(degrees))).mean()
    assert stated_square == pytest.approx(np.square(np.sin(error)).mean(), rel=0.1)


def test_a_head_that_is_turned_has_the_same_uncertainty(rng):
    gtab = scheme(20)
    signal, _ = clean(prolate(0.5), gtab, rng)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    seen = noisy(signal, 20, rng)
    left = rng.normal(size=seen.shape) / 40
    _, before = stated(seen, gtab, 20, left)
    _, after = stated(seen, GradientTable(gtab.bvecs @ turn.T, gtab.bvals), 20, left)
    np.testing.assert_allclose(after, before, rtol=1e-6)


def test_the_unit_of_the_signal_does_not_count(rng):
    gtab = scheme(12)
    signal, _ = clean(prolate(0.5), gtab, rng)
    seen = noisy(signal, 20, rng)
    _, one = stated(seen, gtab, 20)
    _, other = stated(500 * seen, gtab, 20 / 500)
    np.testing.assert_allclose(other, one, rtol=1e-6)


def test_gradients_in_another_order_are_noticed(rng):
    """Shuffled, of which a tensor cannot be made: what it leaves of the data is more than noise."""
    gtab, snr = scheme(60), 30
    signal, _ = clean(prolate(0.7), gtab, rng)
    seen = noisy(signal, snr, rng)
    order = np.r_[0, 1, 2 + rng.permutation(60)]
    _, right = stated(seen, gtab, snr)
    _, wrong = stated(seen, GradientTable(gtab.bvecs[order], gtab.bvals), snr)
    assert np.median(wrong) > 40 > 10 > np.median(right)


def test_a_voxel_without_a_tensor_does_not_know(rng):
    gtab = scheme(12)
    signal, _ = clean(prolate(0.5), gtab, rng)
    signal[:, 5] = 0
    maps = fit_tensor(signal, gtab)
    empty = TensorMaps(np.where(np.arange(N)[:, None] == 5, 0, maps.evals), maps.evecs)
    s0 = signal[gtab.b0].mean(0)
    square = axis_error(empty, signal, 0 * signal, s0, gtab, INSIDE, 0.05)
    assert square[5] == pytest.approx(2 / 3)
    assert (np.delete(square, 5) < 0.1).all()


def test_far_above_the_noise_the_tilt_is_the_first_order_one_and_at_zero_there_is_none():
    for kappa in (10.0, 100.0, 1e6):
        expected = 2 * (1 / (4 * kappa**2))
        assert sine_square(np.full((1, 2), kappa))[0] == pytest.approx(expected, rel=0.02)
    assert sine_square(np.zeros((1, 2)))[0] == pytest.approx(2 / 3)
    assert sine_square(np.array([[0.0, 1e9]]))[0] == pytest.approx(1 / 2)
