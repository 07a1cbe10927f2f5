"""The noise of a scan is found, also where neighbours share it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from bidsapp.modalities.dwi.physics.gradients import GradientTable
from bidsapp.modalities.dwi.physics.harmonics import fibonacci_hemisphere
from bidsapp.modalities.dwi.physics.noise import (
    angular_noise,
    fine_variance,
    map_noise,
    noise_variance,
)

AXIS = np.array([2.0, -1, 2]) / 3


def table(n):
    """One volume at b=0, then ``n`` directions at b = 1000."""
    bvecs = np.vstack([np.zeros((1, 3)), fibonacci_hemisphere(n)])
    return GradientTable(bvecs, np.r_[0.0, np.full(n, 1000.0)])


@pytest.mark.parametrize('sigma', [0.02, 0.05])
def test_noise_variance_recovers_a_known_sigma(rng, sigma):
    gtab = table(30)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, 30),) * 3, indexing='ij')
    fraction = 0.5 + 0.4 * np.sin(2 * x) * np.cos(y + z)
    weighted = gtab[~gtab.b0]
    fibre = np.exp(-(0.3 + 1.4 * (weighted.bvecs @ AXIS) ** 2))[:, None, None, None]
    clean = fraction * fibre + (1 - fraction) * 0.4
    mask = x**2 + y**2 + z**2 < 0.9
    estimate = noise_variance(clean + sigma * rng.normal(size=clean.shape), mask, weighted)
    assert np.sqrt(estimate) == pytest.approx(sigma, rel=0.1)


def _brain_like(rng, gtab, sides=(24, 24, 24)):
    """Fibres of smoothly varying direction and share in grey matter."""
    axes, amount = (gaussian_filter(rng.normal(size=(n, *sides)), (0, 4, 4, 4)) for n in (3, 1))
    axes /= np.linalg.norm(axes, axis=0)
    share = (amount[0].ravel().argsort().argsort() / amount.size).reshape(sides)
    weighted = gtab[~gtab.b0]
    fibre = np.exp(-weighted.bvals[0] / 1000 * 0.3) * np.exp(
        -weighted.bvals[0] / 1000 * 1.4 * np.einsum('nk,kxyz->nxyz', weighted.bvecs, axes) ** 2
    )
    return share * fibre + (1 - share) * np.exp(-weighted.bvals[0] / 1000 * 0.8)


@pytest.mark.parametrize('n', [12, 30, 60])
@pytest.mark.parametrize('shared', [False, True])
def test_q_space_tells_how_strong_noise_is_that_neighbours_share(rng, n, shared):
    """Where interpolation has spread it over neighbours, the finest detail in space misses half."""
    sigma = 0.05
    gtab = table(n)
    noise = rng.normal(size=(n, 24, 24, 24))
    if shared:
        for axis in (1, 2, 3):
            noise = noise + np.roll(noise, 1, axis)
        noise /= noise.std()
    seen = _brain_like(rng, gtab) + sigma * noise
    mask = np.ones((24, 24, 24), bool)
    weighted = gtab[~gtab.b0]
    found = np.sqrt(angular_noise(seen, mask, weighted, n_b0=100))
    assert found == pytest.approx(sigma, rel=0.25)
    if shared:
        assert np.sqrt(noise_variance(seen, mask, weighted)) < 0.6 * sigma


def test_noise_of_few_directions_is_read_from_space_alone(rng):
    gtab = table(6)
    seen = _brain_like(rng, gtab) + 0.03 * rng.normal(size=(6, 24, 24, 24))
    mask, weighted = np.ones((24, 24, 24), bool), gtab[~gtab.b0]
    found = map_noise(seen, mask, weighted, np.ones((1, 24, 24, 24)))
    assert found >= noise_variance(seen, mask, weighted)
    assert np.sqrt(found) == pytest.approx(0.03, rel=0.3)


def test_noise_that_neighbours_share_is_seen_from_few_directions_and_several_at_zero(rng):
    """A finer grid than was acquired: of that noise the finest detail holds less than a half."""
    gtab = table(6)
    noise = rng.normal(size=(9, 24, 24, 24))
    for axis in (1, 2):
        noise = 0.25 * np.roll(noise, 1, axis) + 0.5 * noise + 0.25 * np.roll(noise, -1, axis)
    noise *= 0.05 / noise.std()
    seen = _brain_like(rng, gtab) + noise[:6]
    at_zero = 1 + noise[6:] + np.array([-0.1, 0, 0.1])[:, None, None, None]  # a scanner that drifts
    at_zero[:, 8:12] += rng.normal(size=(3, 4, 24, 24))  # fluid that pulsates
    mask, weighted = np.ones((24, 24, 24), bool), gtab[~gtab.b0]
    assert np.sqrt(noise_variance(seen, mask, weighted)) < 0.025
    assert np.sqrt(map_noise(seen, mask, weighted, at_zero)) == pytest.approx(0.05, rel=0.3)


def test_second_differences_see_noise_that_slices_share_within_but_not_between_them(rng):
    """Interpolation within slices: the plane alone would say a third of the deviation."""
    mask = np.ones((20, 20, 20), bool)
    white = 0.03 * rng.normal(size=(8, 20, 20, 20))
    assert fine_variance(white, mask) ** 0.5 == pytest.approx(0.03, rel=0.03)
    shared = gaussian_filter(white, (0, 1, 1, 0))
    shared *= 0.03 / shared.std()
    assert 0.015 < fine_variance(shared, mask) ** 0.5 < 0.03
    assert noise_variance(shared, mask, table(8)[1:]) ** 0.5 < 0.012
