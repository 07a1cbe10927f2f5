"""A density that shows crossings, from harmonics alone."""

from __future__ import annotations

import numpy as np
import pytest

from bidsapp.modalities.dwi.physics.csd import constrained_deconvolution, fit_response
from bidsapp.modalities.dwi.physics.fixed_response_fod import AXIAL, ORDER, RADIAL, N, fibre_density
from bidsapp.modalities.dwi.physics.gradients import GradientTable
from bidsapp.modalities.dwi.physics.harmonics import basis, fibonacci_hemisphere
from bidsapp.modalities.dwi.physics.peaks import fibre_peaks

U = fibonacci_hemisphere(200)
TO_HARMONICS = np.linalg.pinv(basis(U, 6))


def at_angle(angle, rng):
    """Two unit vectors, ``angle`` degrees apart."""
    first, other = rng.normal(size=(2, 3))
    first /= np.linalg.norm(first)
    across = np.cross(first, other)
    across /= np.linalg.norm(across)
    turn = np.deg2rad(angle)
    return first, np.cos(turn) * first + np.sin(turn) * np.cross(across, first)


def signal(directions, shares, b, isotropic=0.0, u=U):
    """Attenuation at ``u`` of tensors along ``directions``, the rest isotropic at 0.8 µm²/ms."""
    decay = sum(
        share * np.exp(-b / 1000 * (RADIAL + (AXIAL - RADIAL) * (u @ v) ** 2))
        for v, share in zip(directions, shares, strict=True)
    )
    return (1 - isotropic) * decay + isotropic * np.exp(-b / 1000 * 0.8)


def noisy(directions, shares, rng, sigma=1 / 30, n=500):
    """Harmonics (28, n) with noise as 64 directions at SNR 30 leave it."""
    clean = TO_HARMONICS @ signal(directions, shares, 1000.0)
    noise = rng.normal(size=(28, n)) * sigma * np.sqrt(4 * np.pi / 64)
    return {1000.0: clean[:, None] + noise}


CROSSINGS = [(60, (0.5, 0.5)), (60, (0.6, 0.4)), (75, (0.7, 0.3))]


@pytest.mark.parametrize(('angle', 'shares'), CROSSINGS)
def test_two_fibres_stand_apart(rng, angle, shares):
    fibres = np.stack(at_angle(angle, rng))
    density = fibre_density(noisy(fibres, shares, rng), 6)
    peaks, heights = fibre_peaks(density.astype(float), ORDER, 0.3, 25.0)
    near = np.abs(np.einsum('vnj,mj->vnm', peaks, fibres)) > np.cos(np.deg2rad(20))
    found = (near & (heights > 0)[..., None]).any(1).all(1)
    assert found.mean() > 0.85


def test_one_fibre_is_one_and_its_amount_is_its_share(rng):
    (fibre, _) = at_angle(60, rng)
    density = fibre_density(noisy([fibre], [1.0], rng), 6)
    peaks, heights = fibre_peaks(density.astype(float), ORDER, 0.3, 25.0)
    assert (heights[:, 1] == 0).mean() > 0.95
    angle = np.rad2deg(np.arccos(np.clip(np.abs(peaks[:, 0] @ fibre), 0, 1)))
    assert np.median(angle) < 3
    assert np.median(density[0]) * np.sqrt(4 * np.pi) == pytest.approx(1, abs=0.1)


def test_the_density_is_hardly_ever_negative(rng):
    density = fibre_density(noisy(np.stack(at_angle(70, rng)), (0.5, 0.5), rng), 6)
    values = basis(U, ORDER) @ density
    assert values.min() > -0.15 * values.max()


def test_two_shells_are_solved_together(rng):
    fibres = np.stack(at_angle(50, rng))
    shells = {b: (TO_HARMONICS @ signal(fibres, (0.5, 0.5), b))[:, None] for b in (1000.0, 2500.0)}
    profile = basis(np.stack([*fibres, fibres.sum(0) / np.linalg.norm(fibres.sum(0))]), ORDER)
    both = profile @ fibre_density(shells, 6)[:, 0]
    low = profile @ fibre_density({1000.0: shells[1000.0]}, 6)[:, 0]
    assert both[:2].min() - both[2] > low[:2].min() - low[2]
    assert fibre_density(shells, 6).shape == (N, 1)


def test_it_agrees_with_deconvolution_that_solves_each_voxel(rng):
    """Without noise, where both have the same response."""
    gtab = GradientTable(fibonacci_hemisphere(90), np.full(90, 1000.0))
    axes = rng.normal(size=(200, 3))
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    lone = np.stack([signal([v], [1.0], 1000.0, u=gtab.bvecs) for v in axes], 1)
    response = fit_response(lone, gtab, axes)
    pairs = [np.stack(at_angle(a, rng)) for a in (60, 75, 90) for _ in range(20)]
    seen = np.stack([signal(p, (0.5, 0.5), 1000.0, u=gtab.bvecs) for p in pairs], 1)
    theirs = constrained_deconvolution(seen, gtab, response, ORDER)
    ours = fibre_density({1000.0: np.linalg.pinv(basis(gtab.bvecs, 6)) @ seen}, 6)
    values = basis(U, ORDER)
    for a, b in zip(theirs.T, ours.T, strict=True):
        assert np.corrcoef(values @ a, values @ b)[0, 1] > 0.9
