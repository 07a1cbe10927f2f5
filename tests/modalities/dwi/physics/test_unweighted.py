"""S0 is that of b = 0 whatever b the volumes have that serve for it."""

from __future__ import annotations

import numpy as np
import pytest

from bidsapp.modalities.dwi.physics.gradients import GradientTable
from bidsapp.modalities.dwi.physics.harmonics import fibonacci_hemisphere
from bidsapp.modalities.dwi.physics.noddi import fit_noddi
from bidsapp.modalities.dwi.physics.qspace import interpolation
from bidsapp.modalities.dwi.physics.spherical_mean import fit_smt
from bidsapp.modalities.dwi.physics.unweighted import signal_at_zero


def table(low, known=True):
    """Four volumes of b = ``low`` that count as b = 0, in known directions or none; two shells."""
    first = fibonacci_hemisphere(4) * (known and low > 0)
    bvecs = np.concatenate([first, fibonacci_hemisphere(30), fibonacci_hemisphere(40)])
    return GradientTable(bvecs, np.repeat([low, 1000.0, 2500], [4, 30, 40]), max(low, 50.0))


def balls(gtab, diffusivities):
    return 7 * np.exp(-np.outer(diffusivities, gtab.bvals))


@pytest.mark.parametrize('low', [0.0, 30, 65, 100])
def test_a_ball_comes_out_exactly(low):
    gtab = table(low)
    s0 = signal_at_zero(balls(gtab, [0.3e-3, 0.8e-3, 2.2e-3, 3e-3]), gtab)
    np.testing.assert_allclose(s0, 7, rtol=1e-9)


def test_fibres_come_out_within_a_hundredth():
    gtab = table(100)
    squares = gtab.bvecs[:, 0] ** 2
    signals = np.exp(-gtab.bvals * (0.3e-3 + 1.4e-3 * squares))[None]
    assert signals[:, gtab.b0].mean() < 0.95
    np.testing.assert_allclose(signal_at_zero(signals, gtab), 1, rtol=0.02)


def test_noise_and_emptiness_give_numbers():
    gtab = table(65)
    signals = np.stack([np.zeros(74), np.ones(74), np.linspace(0, 5, 74)])
    assert np.isfinite(signal_at_zero(signals, gtab)).all()


@pytest.mark.parametrize('low', [0.0, 65, 100])
@pytest.mark.parametrize('known', [True, False])
def test_neurites_do_not_depend_on_the_b_of_what_serves_for_b0(low, known):
    gtab, icvf = table(low, known), 0.6
    axis = np.array([0.36, 0.48, 0.8])
    squares = (table(low).bvecs @ axis) ** 2
    sticks = np.exp(-gtab.bvals * 1.7e-3 * squares)
    hindered = np.exp(-gtab.bvals * 1.7e-3 * ((1 - icvf) + icvf * squares))
    signals = (icvf * sticks + (1 - icvf) * hindered).reshape(1, 1, 1, -1)
    brain, plain = np.ones((1, 1, 1), bool), table(0.0)
    of_plain = np.concatenate([np.ones(4), signals[0, 0, 0, 4:]]).reshape(1, 1, 1, -1)
    for fit, bound in ((fit_noddi, 0.01), (fit_smt, 0.03)):
        found = fit(signals, gtab, brain, sigma=1e-5).icvf
        assert found == pytest.approx(fit(of_plain, plain, brain, sigma=1e-5).icvf, abs=bound)


def test_attenuation_agrees_with_the_prior_at_any_b_of_b0():
    """What a map predicts of one shell from the other is the same with S0 led to b = 0."""
    found = []
    for low in (0.0, 100.0):
        gtab = table(low)
        signals = balls(gtab, [0.8e-3])
        relative = signals[:, ~gtab.b0] / signal_at_zero(signals, gtab)[:, None]
        weighted = gtab[~gtab.b0]
        mapping = interpolation(weighted[:30], weighted[30:], 1e-4)
        found.append(mapping(relative[:, :30].T))
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)
