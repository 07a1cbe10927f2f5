"""The spherical mean technique against signals of fibres laid out one by one.

There is no multi-shell scan among the real data beside this checkout: all signals are simulated.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from scipy.special import erf
from scipy.stats import rice

from bidsapp.modalities.dwi.physics.gradients import GradientTable
from bidsapp.modalities.dwi.physics.harmonics import fibonacci_hemisphere
from bidsapp.modalities.dwi.physics.spherical_mean import fit_smt, mean_magnitude, without_floor
from bidsapp.problems import Unavailable

SHELLS = ((1000, 90), (2000, 90), (3000, 90))


def table(shells, rng, n_b0=18):
    bvals, bvecs = [np.zeros(n_b0)], [np.zeros((n_b0, 3))]
    for b, n in shells:
        bvals.append(np.full(n, float(b)))
        bvecs.append(fibonacci_hemisphere(n) @ Rotation.random(random_state=rng).as_matrix())
    return GradientTable(np.concatenate(bvecs), np.concatenate(bvals))


def fibres(gtab, icvf, diffusivity, axes):
    """(V, N) sticks and tensors along ``axes`` (V, F, 3), fibres alike; diffusivity in µm²/ms."""
    squares = np.einsum('ni,vfi->vfn', gtab.bvecs, axes) ** 2
    v, s = icvf[:, None, None], gtab.bvals * 1e-3 * diffusivity[:, None, None]
    signal = v * np.exp(-s * squares) + (1 - v) * np.exp(-s * (squares + (1 - v) * (1 - squares)))
    return signal.mean(1)


def unit_vectors(shape, rng):
    axes = rng.normal(size=(*shape, 3))
    return axes / np.linalg.norm(axes, axis=-1, keepdims=True)


def voxels(gtab, n, rng, n_fibres=4):
    icvf, diffusivity = rng.uniform(0.1, 0.9, n), rng.uniform(1, 2.5, n)
    signals = fibres(gtab, icvf, diffusivity, unit_vectors((n, n_fibres), rng))
    return signals[:, None, None], icvf, diffusivity


def magnitude(signals, snr, rng):
    noise = rng.normal(size=(2, *signals.shape)) / snr
    return np.hypot(signals + noise[0], noise[1])


def fitted(signals, gtab, **how):
    """(V,) icvf and (V,) diffusivity in µm²/ms."""
    fit = fit_smt(signals, gtab, np.ones(signals.shape[:3], bool), **how)
    return fit.icvf.ravel(), fit.diffusivity.ravel() * 1e3


def plain_table_lookup(signals, gtab, v, diffusivity):
    """The textbook's way: mean of each shell over mean b=0, nearest of a fine table."""
    s0 = signals[..., gtab.b0].mean(-1).ravel()
    shells = np.unique(gtab.bvals)[1:]
    means = [signals[..., gtab.bvals == b].mean(-1).ravel() / s0 for b in shells]
    v, d = (a.ravel() for a in np.meshgrid(v, diffusivity))
    entries = []
    for b in shells * 1e-3:
        stick, along = (
            np.sqrt(np.pi) * erf(np.sqrt(x)) / (2 * np.sqrt(x)) for x in (b * d, b * d * v)
        )
        entries.append(v * stick + (1 - v) * np.exp(-b * d * (1 - v)) * along)
    distance = sum((m[:, None] - e) ** 2 for m, e in zip(means, entries, strict=True))
    best = distance.argmin(1)
    return v[best], d[best]


@pytest.mark.parametrize('n_fibres', [1, 2, 5])
def test_noise_free_signals_are_explained(n_fibres, rng):
    gtab = table(SHELLS, rng)
    signals, icvf, diffusivity = voxels(gtab, 200, rng, n_fibres)
    v, d = fitted(signals, gtab)
    assert np.abs(v - icvf).max() < 0.02
    assert np.abs(v - icvf).mean() < 0.002
    assert np.abs(d - diffusivity).max() < 0.06
    assert np.abs(d - diffusivity).mean() < 0.006


def test_orientation_and_crossing_do_not_matter(rng):
    gtab = table(SHELLS, rng)
    alike = np.full(100, 0.6), np.full(100, 1.9)
    one = fibres(gtab, *alike, unit_vectors((100, 1), rng))
    three = fibres(gtab, *alike, unit_vectors((100, 3), rng))
    for signals in (one, three):
        v, d = fitted(signals[:, None, None], gtab)
        assert np.ptp(v) < 0.01
        assert np.ptp(d) < 0.04
        np.testing.assert_allclose([v.mean(), d.mean()], [0.6, 1.9], atol=0.01)


def test_turning_the_table_changes_nothing(rng):
    gtab = table(SHELLS, rng)
    signals = magnitude(voxels(gtab, 30, rng)[0], 30, rng)
    turn = Rotation.random(random_state=rng).as_matrix()
    turned = GradientTable(gtab.bvecs @ turn.T, gtab.bvals)
    np.testing.assert_allclose(fitted(signals, gtab), fitted(signals, turned), atol=1e-3)


def test_scale_of_the_signal_does_not_matter(rng):
    gtab = table(SHELLS, rng)
    signals = magnitude(voxels(gtab, 30, rng)[0], 30, rng)
    np.testing.assert_allclose(fitted(signals, gtab), fitted(signals * 777, gtab), atol=1e-3)


def test_errors_at_snr_30(rng):
    gtab = table(SHELLS, rng)
    signals, icvf, diffusivity = voxels(gtab, 1000, rng)
    noisy = magnitude(signals, 30, rng)
    v, d = fitted(noisy, gtab)
    ours = np.abs(v - icvf).mean(), np.abs(d - diffusivity).mean()
    plain_v, plain_d = plain_table_lookup(
        noisy, gtab, np.linspace(0.01, 0.99, 99), np.linspace(0.1, 3, 146)
    )
    plain = np.abs(plain_v - icvf).mean(), np.abs(plain_d - diffusivity).mean()
    assert ours[0] < 0.023
    assert ours[1] < 0.075
    assert ours[0] < 0.85 * plain[0]
    assert ours[1] < 0.85 * plain[1]


def test_uneven_directions_do_not_tilt_the_mean(rng):
    """Half of the directions lie within 40° of an axis: a plain mean would depend on the fibre."""
    bvals, bvecs = [np.zeros(5)], [np.zeros((5, 3))]
    for b in (1000.0, 2500.0):
        near = fibonacci_hemisphere(400)
        bvecs += [near[near[:, 2] > np.cos(np.deg2rad(40))][::3], fibonacci_hemisphere(32)]
        bvals.append(np.full(sum(map(len, bvecs[-2:])), b))
    gtab = GradientTable(np.concatenate(bvecs), np.concatenate(bvals))
    axes = np.eye(3)[:, None]
    v, _ = fitted(fibres(gtab, np.full(3, 0.5), np.full(3, 1.8), axes)[:, None, None], gtab)
    np.testing.assert_allclose(v, 0.5, atol=0.03)


def test_free_water_has_no_neurites_and_water_s_diffusivity(rng):
    gtab = table(SHELLS, rng)
    v, d = fitted(np.exp(-gtab.bvals * 3e-3)[None, None, None], gtab)
    assert v[0] < 0.02
    assert d[0] == pytest.approx(3, abs=0.03)


def test_known_noise_mends_the_floor_of_denoised_data(rng):
    gtab = table(SHELLS, rng)
    signals, icvf, _ = voxels(gtab, 40, rng)
    mean = np.mean([magnitude(signals, 15, rng) for _ in range(200)], axis=0)
    without, given = (np.abs(fitted(mean, gtab, sigma=s)[0] - icvf).mean() for s in (None, 1 / 15))
    assert given < without / 3


def test_mean_magnitude_is_that_of_rice_and_its_inverse_brings_it_back():
    signal = torch.linspace(0, 40, 81, dtype=torch.float64)
    mean, slope = mean_magnitude(signal, torch.full_like(signal, 2.0))
    np.testing.assert_allclose(mean, rice(signal.numpy() / 2, scale=2).mean(), rtol=1e-9)
    np.testing.assert_allclose(slope[1:-1], ((mean[2:] - mean[:-2]) / 1.0), atol=5e-3)
    # At the floor itself the mean hardly depends on the signal.
    back = without_floor(mean, torch.tensor(2.0, dtype=torch.float64))
    np.testing.assert_allclose(back[4:], signal[4:], atol=5e-3)
    assert without_floor(torch.tensor(1.0), torch.tensor(1.0)) == 0


def test_maps_stay_within_their_bounds_whatever_the_signal(rng):
    gtab = table(((1000, 20), (2000, 20)), rng, 2)
    signals = rng.exponential(size=(40, 1, 1, len(gtab)))
    signals[0], signals[1], signals[2, ..., 5] = 0, 1, np.nan
    mask = np.ones(signals.shape[:3], bool)
    mask[3] = False
    fit = fit_smt(signals, gtab, mask)
    assert fit.icvf.dtype == fit.diffusivity.dtype == np.float32
    assert fit.icvf.min() >= 0
    assert fit.icvf.max() <= 1
    assert fit.diffusivity.max() <= 3e-3 + 1e-9
    assert not fit.diffusivity[[0, 2, 3]].any()
    assert fit.diffusivity[4:].min() >= 0.1e-3 - 1e-9


def test_one_shell_is_not_enough(rng):
    gtab = table(((1000, 64),), rng)
    with pytest.raises(Unavailable, match='two shells'):
        fit_smt(np.ones((1, 1, 1, len(gtab))), gtab, np.ones((1, 1, 1), bool))
