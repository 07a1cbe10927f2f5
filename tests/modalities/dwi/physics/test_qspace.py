"""The map from any table to fixed channels: exact, linear, equivariant, sure of its variance."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from bidsapp.modalities.dwi.physics.gradients import GradientTable, rotated
from bidsapp.modalities.dwi.physics.harmonics import (
    basis,
    degrees,
    fibonacci_hemisphere,
    n_coefficients,
)
from bidsapp.modalities.dwi.physics.qspace import (
    DENSITY_CHANNELS,
    N_CHANNELS,
    N_SH,
    ORDER,
    SLOT_CHANNELS,
    canonical_channels,
    canonical_map,
    covariance,
    filled_slots,
    interpolation,
    leave_one_out,
    prior_deviation,
    sh64_channels,
    slot_of,
)
from bidsapp.modalities.dwi.physics.turns import turned_channels
from bidsapp.physics.geometry import ALL_TURNS, turned_voxels

#: mm.
VOXEL = np.array([1.5, 2.0, 3.0])


def table(*shells, n_b0=0, seed=0):
    """n_b0 volumes at b=0, then each (b, directions), every shell turned by itself."""
    bvecs, bvals = [np.zeros((n_b0, 3))], [np.zeros(n_b0)]
    for index, (b, n) in enumerate(shells):
        turn = Rotation.random(random_state=seed + index).as_matrix()
        bvecs.append(fibonacci_hemisphere(n) @ turn.T)
        bvals.append(np.full(n, float(b)))
    return GradientTable(np.concatenate(bvecs), np.concatenate(bvals))


def attenuation(gtab, axis, fraction=0.6):
    """(N,) one fibre along ``axis`` and isotropic tissue."""
    b = gtab.bvals * 1e-3
    fibre = np.exp(-b * (0.3 + 1.4 * (gtab.bvecs @ axis) ** 2))
    return fraction * fibre + (1 - fraction) * np.exp(-b * 0.9)


AXIS = np.array([2.0, -1, 2]) / 3


def test_interpolation_to_other_directions_without_noise():
    source, target = table((1000, 64)), table((1000, 40), seed=9)
    mapped = interpolation(source, target, 1e-8)(attenuation(source, AXIS))
    np.testing.assert_allclose(mapped, attenuation(target, AXIS), atol=2e-3)


def test_interpolation_returns_what_it_was_given_without_noise():
    source = table((1000, 30), (2000, 30))
    given = attenuation(source, AXIS)
    np.testing.assert_allclose(interpolation(source, source, 1e-9)(given), given, atol=1e-3)


def test_interpolation_to_a_shell_in_between():
    source, target = table((1000, 30), (2000, 30)), table((1500, 20), seed=5)
    mapped = interpolation(source, target, 1e-6)(attenuation(source, AXIS))
    np.testing.assert_allclose(mapped, attenuation(target, AXIS), atol=0.02)


def test_interpolation_is_rotation_equivariant(rng):
    source, target = table((1000, 20), (2500, 15)), table((1000, 12), seed=4)
    turn = Rotation.random(random_state=rng).as_matrix()
    straight = interpolation(source, target, 1e-3)
    turned = interpolation(rotated(source, turn), rotated(target, turn), 1e-3)
    np.testing.assert_allclose(turned.matrix, straight.matrix, atol=1e-8)
    np.testing.assert_allclose(turned.variance, straight.variance, atol=1e-8)


def test_antipodal_gradients_are_the_same():
    source, target = table((1000, 20)), table((1000, 12), seed=4)
    flipped = GradientTable(-source.bvecs, source.bvals)
    np.testing.assert_allclose(
        interpolation(flipped, target, 1e-3).matrix, interpolation(source, target, 1e-3).matrix
    )


def test_interpolation_is_affine_in_the_signal(rng):
    source, target = table((1000, 20)), table((1000, 12), seed=4)
    mapping = interpolation(source, target, 1e-3)
    first, second = rng.uniform(size=(2, 20, 3, 4))
    mixed = mapping(0.3 * first + 0.7 * second)
    np.testing.assert_allclose(mixed, 0.3 * mapping(first) + 0.7 * mapping(second), atol=1e-12)
    assert mixed.shape == (12, 3, 4)


def test_expected_signal_maps_to_expected_signal():
    source, target = table((1000, 20), (3000, 10)), table((2000, 12), seed=4)
    mean_s, mean_t = covariance(source, source)[0], covariance(target, target)[0]
    np.testing.assert_allclose(interpolation(source, target, 1e-2)(mean_s), mean_t)


@pytest.mark.parametrize('n_b0', [1, 5])
def test_leave_one_out_is_a_refit_without_that_volume(rng, n_b0):
    source = table((1000, 12), (2000, 8))
    given = attenuation(source, AXIS) + 0.03 * rng.normal(size=20)
    whole = leave_one_out(source, 1e-3, n_b0)
    np.testing.assert_allclose(np.diag(whole.matrix), 0, atol=1e-10)
    for i in range(len(source)):
        rest = np.arange(len(source)) != i
        # A measurement is predicted, and it shares the noise of S0 with the others.
        mean, k = covariance(source, source)
        full = k + 1e-3 * (np.eye(20) + 1 / n_b0) + 1e-8 * np.eye(20)
        weights = np.linalg.solve(full[np.ix_(rest, rest)], full[rest, i])
        expected = mean[i] + weights @ (given - mean)[rest]
        assert whole(given)[i] == pytest.approx(expected, abs=1e-8)
        variance = full[i, i] - weights @ full[rest, i]
        assert whole.variance[i] == pytest.approx(variance, rel=1e-6)


def test_leave_one_out_variance_is_that_of_its_errors(rng):
    """On signals drawn from the prior itself, with its own noise."""
    source, sigma2 = table((1000, 20)), 1e-3
    mean, k = covariance(source, source)
    full = k + sigma2 * (np.eye(20) + 1) + 1e-8 * np.eye(20)
    drawn = mean[:, None] + np.linalg.cholesky(full) @ rng.normal(size=(20, 4000))
    mapping = leave_one_out(source, sigma2)
    errors = np.square(mapping(drawn) - drawn).mean(1)
    np.testing.assert_allclose(errors, mapping.variance, rtol=0.15)


def test_predictive_variance_grows_with_noise_and_falls_with_directions():
    target = table((1000, 12), seed=4)
    by_noise = [interpolation(table((1000, 20)), target, s).variance for s in (1e-4, 1e-3, 1e-2)]
    assert (np.diff(by_noise, axis=0) > 0).all()
    by_directions = [interpolation(table((1000, n)), target, 1e-3).variance for n in (6, 20, 60)]
    assert (np.diff(np.mean(by_directions, axis=1)) < 0).all()
    prior = np.diag(covariance(target, target)[1])
    assert (by_noise[-1] < prior).all()
    assert (by_noise[0] > 0).all()


def test_covariance_is_a_covariance():
    gtab = table((700, 15), (1000, 20), (3000, 20))
    _, k = covariance(gtab, gtab)
    np.testing.assert_allclose(k, k.T, atol=1e-12)
    assert np.linalg.eigvalsh(k).min() > -1e-10


@pytest.mark.parametrize(
    ('b', 'slot'), [(300, 0), (700, 0), (1299, 0), (1300, 1), (2000, 1), (2300, 2), (5000, 2)]
)
def test_slot_of(b, slot):
    assert slot_of(b) == slot


def test_filled_slots_take_the_shell_with_most_volumes():
    gtab = table((750, 10), (1000, 30), (2000, 20), n_b0=2)
    assert filled_slots(gtab) == {0: 1000.0, 1: 2000.0}
    assert filled_slots(table((800, 20), (1200, 20), n_b0=1)) == {0: 1200.0}


def channels_of(gtab, axis, variance=1e-3):
    """(N_CHANNELS,) of one voxel among a few."""
    signal = attenuation(gtab[~gtab.b0], axis)
    grid = np.broadcast_to(signal[:, None, None, None], (len(signal), 2, 2, 2))
    s0 = np.linspace(1, 2, 8).reshape(2, 2, 2)
    mask = np.ones((2, 2, 2), bool)
    return canonical_channels(grid, s0, mask, gtab, variance, VOXEL)[:, 0, 0, 0]


def standardised(gtab, channels, slot):
    """Coefficients of the attenuation's deviation from its prior mean."""
    first, b = slot * SLOT_CHANNELS, filled_slots(gtab)[slot]
    return channels[first : first + N_SH] * prior_deviation(b)[degrees(ORDER) // 2]


def test_rotated_object_and_table_give_rotated_harmonics(rng):
    gtab = table((1000, 30), (2000, 20), n_b0=1)
    turn = Rotation.random(random_state=rng).as_matrix()
    before = channels_of(gtab, AXIS)
    after = channels_of(rotated(gtab, turn), turn @ AXIS)
    directions = fibonacci_hemisphere(80)
    for slot in (0, 1):
        straight = basis(directions, ORDER) @ standardised(gtab, before, slot)
        turned = basis(directions @ turn.T, ORDER) @ standardised(gtab, after, slot)
        assert np.ptp(straight) > 0.2
        np.testing.assert_allclose(turned, straight, atol=5e-3)
        rest = slice(slot * SLOT_CHANNELS + N_SH, (slot + 1) * SLOT_CHANNELS)
        np.testing.assert_allclose(after[rest], before[rest], atol=1e-3)


def test_two_tables_see_the_same_tissue():
    """60 and 45 directions of other frames give nearly the same harmonics."""
    one, other = table((1000, 60), n_b0=1), table((1000, 45), n_b0=1, seed=7)
    first, second = (standardised(t, channels_of(t, AXIS, 1e-6), 0) for t in (one, other))
    np.testing.assert_allclose(first, second, atol=0.02)


def test_unfilled_slots_are_zero_and_filled_ones_say_so():
    channels = channels_of(table((2000, 30), n_b0=1), AXIS)
    assert channels.shape == (N_CHANNELS,)
    assert not channels[:SLOT_CHANNELS].any()
    assert not channels[2 * SLOT_CHANNELS : 3 * SLOT_CHANNELS].any()
    filled, deviation, log_b = channels[SLOT_CHANNELS + N_SH : 2 * SLOT_CHANNELS]
    assert filled == 1
    assert 0 < deviation < 1
    assert log_b == pytest.approx(np.log(2))


def test_channels_are_zero_outside_the_mask(rng):
    gtab = table((1000, 12), n_b0=1)
    mask = rng.random((4, 5, 6)) < 0.5
    channels = canonical_channels(
        rng.uniform(size=(12, 4, 5, 6)), rng.uniform(1, 2, (4, 5, 6)), mask, gtab, 1e-3, VOXEL
    )
    assert not channels[:, ~mask].any()
    assert channels.dtype == np.float32


def test_unit_of_s0_does_not_matter(rng):
    gtab, mask = table((1000, 12), n_b0=1), np.ones((3, 3, 3), bool)
    signal, s0 = rng.uniform(size=(12, 3, 3, 3)), rng.uniform(1, 2, (3, 3, 3))
    one = canonical_channels(signal, s0, mask, gtab, 1e-3, VOXEL)
    other = canonical_channels(signal, 1000 * s0, mask, gtab, 1e-3, VOXEL)
    np.testing.assert_allclose(other, one, atol=1e-5)


def test_fewer_directions_are_less_sure():
    deviations = [canonical_map(table((1000, n), n_b0=1), 1e-3).deviation[0] for n in (6, 15, 60)]
    assert (np.diff(deviations) < 0).all()


def test_sh64_is_exact_for_a_band_limited_signal(rng):
    gtab = table((1000, 90))
    coefficients = rng.normal(size=n_coefficients(8)) * 0.03
    coefficients[0] = 0.5 * np.sqrt(4 * np.pi)
    resampled = sh64_channels(basis(gtab.bvecs, 8) @ coefficients, gtab)
    expected = np.clip(basis(fibonacci_hemisphere(64), 8) @ coefficients, 0, 1)
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(resampled, expected, atol=1e-10)


def _scan(bvecs, axes_of_fibres):
    """Attenuation (N, X, Y, Z) at b=1000 of one fibre a voxel."""
    cosine = np.einsum('nk,kxyz->nxyz', bvecs, axes_of_fibres)
    return np.exp(-(0.3 + 1.4 * cosine**2))


@pytest.mark.parametrize('turn', ALL_TURNS[1::7])
def test_turning_the_channels_is_turning_the_head(turn, rng):
    """The canonical input of a turned head, seen with turned gradients, is the turned input."""
    matrix = np.array(turn)
    fibres = rng.normal(size=(3, 4, 5, 6))
    fibres /= np.linalg.norm(fibres, axis=0)
    bvecs = fibonacci_hemisphere(40)
    bvals = np.r_[0.0, np.full(40, 1000.0)]

    def channels(vectors, table, voxel_mm):
        shape = vectors.shape[1:]
        gtab = GradientTable(np.vstack([np.zeros((1, 3)), table]), bvals)
        mask = np.ones(shape, bool)
        scan = _scan(table, vectors)
        return canonical_channels(scan, np.ones(shape), mask, gtab, 1e-3, voxel_mm)

    turned_fibres = np.einsum(
        'ij,jxyz->ixyz', matrix, turned_voxels(torch.from_numpy(fibres), turn).numpy()
    )
    # The voxels turn with the head: their edges lie along other axes.
    expected = channels(turned_fibres, bvecs @ matrix.T, np.abs(matrix) @ VOXEL)
    image = torch.from_numpy(channels(fibres, bvecs, VOXEL))
    found = turned_channels(image, turn).numpy()
    density = np.arange(N_CHANNELS) >= DENSITY_CHANNELS.start
    np.testing.assert_allclose(found[~density], expected[~density], atol=2e-3)
    # Its constraint stands at fixed directions; one fibre has a peak of 3.6.
    np.testing.assert_allclose(found[density], expected[density], atol=0.06)
    assert expected[density].std() > 0.1


def test_there_are_48_turns_and_they_are_orthogonal():
    assert len(set(ALL_TURNS)) == 48
    for turn in ALL_TURNS:
        assert np.array_equal(np.array(turn) @ np.array(turn).T, np.eye(3))
