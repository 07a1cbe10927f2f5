"""The tensor in the log domain: exact for one Gaussian, from as few directions as there may be."""

from __future__ import annotations

import numpy as np
import pytest

from bidsapp.modalities.dwi.physics.gradients import GradientTable
from bidsapp.modalities.dwi.physics.harmonics import basis, fibonacci_hemisphere
from bidsapp.modalities.dwi.physics.log_tensor import (
    ANISOTROPY,
    MEAN,
    SPREAD,
    N,
    tensor_channels,
)
from bidsapp.modalities.dwi.physics.qspace import canonical_map, of_signal


def table(n, b=1000.0):
    return GradientTable(
        np.vstack([np.zeros(3), fibonacci_hemisphere(n)]), np.r_[0.0, np.full(n, b)]
    )


def attenuation(gtab, axis, along=1.7, across=0.3):
    cosine = gtab.bvecs[~gtab.b0] @ axis
    return np.exp(-1e-3 * gtab.bvals[~gtab.b0] * (across + (along - across) * cosine**2))[:, None]


def peak(coefficients, n=4000):
    points = fibonacci_hemisphere(n)
    order = 2 if len(coefficients) == N else 6
    return points[(basis(points, order)[:, : len(coefficients)] @ coefficients).argmax()]


def angle(a, b):
    return np.degrees(np.arccos(min(1.0, abs(a @ b))))


AXIS = np.array([0.48, 0.6, 0.64])


@pytest.mark.parametrize('n', [6, 12, 30])
def test_one_gaussian_is_found_from_any_number_of_directions(n):
    gtab = table(n)
    found = tensor_channels(attenuation(gtab, AXIS), gtab, 1e-5)[:, 0].astype(float)
    diffusivity = found * np.r_[SPREAD * np.sqrt(4 * np.pi), np.full(5, ANISOTROPY)]
    diffusivity[0] += MEAN * np.sqrt(4 * np.pi)
    seen = basis(np.vstack([AXIS, [0.8, -0.64, 0.0]]), 2) @ diffusivity
    assert seen == pytest.approx([1.7, 0.3], abs=0.03)


def test_from_six_directions_it_has_the_axis_that_the_signals_harmonics_miss():
    gtab = table(6)
    errors = []
    for axis in fibonacci_hemisphere(40):
        seen = attenuation(gtab, axis)
        tensor = tensor_channels(seen, gtab, 1e-4)[:, 0].astype(float)
        linear = canonical_map(gtab, 1e-4).matrices[0](seen)
        signal = of_signal(linear, 1000.0)[1:6, 0]
        pair = (np.r_[0.0, tensor[1:]], -np.r_[0.0, signal])
        errors.append([angle(peak(one), axis) for one in pair])
    ours, harmonics = np.median(errors, axis=0)
    assert ours < 2
    assert ours < 0.5 * harmonics


def test_noise_draws_towards_the_usual_and_no_signal_is_no_infinity():
    gtab = table(6)
    seen = np.zeros((6, 1))
    for variance in (1e-5, 0.05):
        found = tensor_channels(seen, gtab, variance)
        assert np.isfinite(found).all()
        assert np.abs(found).max() <= 5
    strong = tensor_channels(attenuation(gtab, AXIS), gtab, 0.25)
    assert np.abs(strong).max() < np.abs(tensor_channels(attenuation(gtab, AXIS), gtab, 1e-4)).max()


def test_volumes_beyond_the_gaussian_range_have_no_part_where_others_do():
    low, high = table(12), table(30, 3000.0)
    both = GradientTable(np.vstack([low.bvecs, high.bvecs[1:]]), np.r_[low.bvals, high.bvals[1:]])
    seen = attenuation(low, AXIS)
    more = np.vstack([seen, np.full((30, 1), 0.9)])
    assert np.array_equal(tensor_channels(more, both, 1e-3), tensor_channels(seen, low, 1e-3))
