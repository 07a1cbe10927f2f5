"""Deconvolution laws, on simulated voxels of one or two fibres with Rician noise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from bidsapp.modalities.dwi.physics import csd
from bidsapp.modalities.dwi.physics.acquisition import Acquisition
from bidsapp.modalities.dwi.physics.csd import (
    best_shell,
    constrained_deconvolution,
    deconvolution_order,
    fibre_directions,
    fit_response,
    isotropic_floor,
    relative_signal,
    single_fibre_response,
    supports_deconvolution,
    white_matter,
)
from bidsapp.modalities.dwi.physics.diffusion import fit_tensor
from bidsapp.modalities.dwi.physics.gradients import GradientTable, rotated
from bidsapp.modalities.dwi.physics.harmonics import basis, fibonacci_hemisphere, legendre
from bidsapp.modalities.dwi.physics.peaks import fibre_peaks
from bidsapp.problems import Unavailable

AXIAL, RADIAL = 1.7, 0.3  # µm²/ms


def shell(n, b=1000.0):
    return GradientTable(fibonacci_hemisphere(n), np.full(n, b))


def with_b0(gtab, n_b0=2):
    return GradientTable(
        np.vstack([np.zeros((n_b0, 3)), gtab.bvecs]), np.r_[np.zeros(n_b0), gtab.bvals]
    )


def axes(rng, n):
    vectors = rng.normal(size=(n, 3))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def crossing(rng, n, angle_deg):
    first = axes(rng, n)
    across = np.cross(first, axes(rng, n))
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    angle = np.deg2rad(angle_deg)
    return first, np.cos(angle) * first + np.sin(angle) * across


def fibre(gtab, axis):
    """(N, V) attenuation of one fibre along each ``axis`` (V, 3)."""
    b = gtab.bvals[:, None] * 1e-3
    return np.exp(-b * (RADIAL + (AXIAL - RADIAL) * (gtab.bvecs @ axis.T) ** 2))


def noisy(clean, snr, rng):
    """Rician magnitude; ``snr`` is that of S0 = 1."""
    parts = rng.normal(size=(2, *clean.shape)) / snr
    return np.abs(clean + parts[0] + 1j * parts[1])


def angle(a, b):
    return np.rad2deg(np.arccos(np.clip(np.abs((a * b).sum(-1)), 0, 1)))


def recovered(directions, truths, within=20.0):
    """Share of voxels in which each truth has a peak ``within`` degrees, and the errors there."""
    there = np.square(directions).sum(-1) > 0
    errors = np.stack(
        [np.where(there, angle(directions, t[:, None]), 180).min(1) for t in truths], 1
    )
    both = (errors < within).all(1)
    return both.mean(), errors[both]


@pytest.fixture(scope='module')
def response():
    rng = np.random.default_rng(3)
    gtab, along = shell(64), axes(rng, 300)
    return fit_response(noisy(fibre(gtab, along), 30, rng), gtab, along)


def test_response_is_the_profile_of_one_fibre(rng, response):
    cosines = np.linspace(0, 1, 50)
    profile = legendre(8, cosines) @ response.zonal
    truth = np.exp(-(RADIAL + (AXIAL - RADIAL) * cosines**2))
    np.testing.assert_allclose(profile, truth, atol=0.01)
    assert (np.sign(response.zonal) == [1, -1, 1, -1, 1]).all()


@pytest.mark.parametrize(('directions', 'order'), [(64, 8), (32, 6)])
def test_density_of_one_fibre_integrates_to_one_and_points_along_it(response, directions, order):
    gtab, along = shell(directions), fibonacci_hemisphere(40)
    density = constrained_deconvolution(fibre(gtab, along), gtab, response, order)
    np.testing.assert_allclose(density[0] * np.sqrt(4 * np.pi), 1, atol=0.03)
    found, _ = fibre_peaks(density, order)
    assert angle(found[:, 0], along).max() < 1.0
    assert not found[:, 1:].any()


def test_density_is_hardly_negative(rng, response):
    gtab = shell(64)
    first, second = crossing(rng, 100, 75)
    mixed = noisy((fibre(gtab, first) + fibre(gtab, second)) / 2, 30, rng)
    values = basis(fibonacci_hemisphere(500), 8) @ constrained_deconvolution(
        mixed, gtab, response, 8
    )
    assert np.median(values.min(0) / values.max(0)) > -0.05


def test_single_fibre_is_found_within_three_degrees(rng, response):
    gtab, along = shell(64), axes(rng, 300)
    density = constrained_deconvolution(noisy(fibre(gtab, along), 30, rng), gtab, response, 8)
    found, _ = fibre_peaks(density, 8, absolute=isotropic_floor(gtab, response, 8, 1 / 30**2))
    share, errors = recovered(found, [along])
    assert share == 1
    assert np.median(errors) < 3
    assert (np.square(found).sum(-1) > 0).sum(1).mean() < 1.02


@pytest.mark.parametrize(
    ('angle_deg', 'weight', 'recall', 'error'),
    [(90, 0.5, 0.95, 4), (60, 0.5, 0.9, 6), (90, 0.6, 0.95, 4), (60, 0.6, 0.75, 6)],
)
def test_crossings_are_resolved(rng, response, angle_deg, weight, recall, error):
    gtab = shell(64)
    first, second = crossing(rng, 400, angle_deg)
    clean = weight * fibre(gtab, first) + (1 - weight) * fibre(gtab, second)
    density = constrained_deconvolution(noisy(clean, 30, rng), gtab, response, 8)
    found, _ = fibre_peaks(density, 8, absolute=isotropic_floor(gtab, response, 8, 1 / 30**2))
    share, errors = recovered(found, [first, second])
    assert share >= recall
    assert np.median(errors) < error


@pytest.mark.parametrize('diffusivity', [0.7, 0.9, 1.5, 3.0])
@pytest.mark.parametrize(('directions', 'snr'), [(64, 20), (64, 30), (32, 25)])
def test_isotropic_tissue_has_no_fibres(rng, response, diffusivity, directions, snr):
    gtab, order = shell(directions), deconvolution_order(directions)
    clean = np.full((directions, 300), np.exp(-diffusivity))
    density = constrained_deconvolution(noisy(clean, snr, rng), gtab, response, order)
    floor = isotropic_floor(gtab, response, order, 1 / snr**2)
    found, _ = fibre_peaks(density, order, absolute=floor)
    assert (np.square(found).sum((1, 2)) == 0).mean() >= 0.95


def test_turning_gradients_and_fibres_turns_peaks(rng, response):
    gtab = shell(64)
    first, second = crossing(rng, 60, 80)
    data = noisy(0.55 * fibre(gtab, first) + 0.45 * fibre(gtab, second), 40, rng)
    turn = Rotation.random(random_state=rng).as_matrix()
    before, _ = fibre_peaks(constrained_deconvolution(data, gtab, response, 8), 8)
    turned = rotated(gtab, turn)
    after, _ = fibre_peaks(constrained_deconvolution(data, turned, response, 8), 8)
    # The directions at which the density is held positive do not turn along: hence a tolerance.
    assert np.median(angle(after[:, 0], before[:, 0] @ turn.T)) < 0.5
    both = (np.square(before[:, 1]).sum(1) > 0) & (np.square(after[:, 1]).sum(1) > 0)
    assert both.mean() > 0.95


def test_batches_do_not_matter(rng, response, monkeypatch):
    gtab = shell(64)
    data = noisy(fibre(gtab, axes(rng, 50)), 20, rng)
    whole = constrained_deconvolution(data, gtab, response, 8)
    peaks = fibre_peaks(whole, 8)
    monkeypatch.setattr(csd, '_CHUNK', 7)
    # Sums in single precision differ in their last digits with the number of voxels.
    parts = constrained_deconvolution(data, gtab, response, 8)
    np.testing.assert_allclose(parts, whole, atol=1e-3 * np.abs(whole).max())
    for ours, theirs in zip(fibre_peaks(whole, 8), peaks, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-10)


def test_underdetermined_order_still_gives_finite_densities(rng, response):
    gtab = shell(28)
    data = noisy(np.full((28, 200), np.exp(-0.7)), 20, rng)
    assert np.isfinite(constrained_deconvolution(data, gtab, response, 8)).all()


def test_no_voxels_is_no_error(response):
    density = constrained_deconvolution(np.zeros((64, 0)), shell(64), response, 8)
    directions, amplitudes = fibre_peaks(density, 8)
    assert directions.shape == (0, 3, 3)
    assert amplitudes.shape == (0, 3)


def lobes(directions, weights, order=8):
    """(K, 1) a density of band-limited lobes."""
    return (basis(np.asarray(directions, float), order).T @ weights)[:, None]


def test_a_lone_peak_is_found_between_grid_points(rng):
    along = axes(rng, 200)
    found, amplitudes = fibre_peaks(basis(along, 8).T, 8)
    assert angle(found[:, 0], along).max() < 0.05
    np.testing.assert_allclose(amplitudes[:, 0], 45 / (4 * np.pi), rtol=1e-6)


def test_peaks_are_sorted_and_at_most_three(rng):
    density = lobes(np.eye(3), [0.8, 1.0, 0.6])
    directions, amplitudes = fibre_peaks(density, 8)
    assert (np.diff(amplitudes[0]) < 0).all()
    assert list(np.abs(directions[0]).argmax(1)) == [1, 0, 2]
    assert fibre_peaks(density, 8, n=2)[0].shape == (1, 2, 3)


def test_low_peaks_are_left_out():
    density = lobes(np.eye(3), [1.0, 0.7, 0.3])
    counted = (fibre_peaks(density, 8, relative=0.5)[1] > 0).sum()
    assert counted == 2
    assert (fibre_peaks(density, 8, relative=0.1)[1] > 0).sum() == 3


def test_close_peaks_are_one():
    a = np.deg2rad(50)
    density = lobes([[1, 0, 0], [np.cos(a), np.sin(a), 0]], [1.0, 0.95])
    assert (fibre_peaks(density, 8, separation_deg=25)[1] > 0).sum() == 2
    assert (fibre_peaks(density, 8, separation_deg=60)[1] > 0).sum() == 1


def test_below_the_floor_there_is_nothing():
    density = lobes(np.eye(3)[:1], [1.0])
    directions, amplitudes = fibre_peaks(density, 8, absolute=4.0)
    assert not directions.any()
    assert not amplitudes.any()
    assert fibre_peaks(density, 8, absolute=3.0)[1][0, 0] > 3


@pytest.mark.parametrize(('directions', 'order'), [(28, 6), (44, 6), (45, 8), (90, 8)])
def test_order_follows_the_number_of_directions(directions, order):
    assert deconvolution_order(directions) == order


@pytest.mark.parametrize(
    ('best', 'supported'),
    [((1000.0, 64), True), ((1000.0, 25), True), ((1000.0, 24), False), ((500.0, 64), False)],
)
def test_what_supports_deconvolution(best, supported):
    assert supports_deconvolution(Acquisition(best[1], (best,), 3.0)) is supported


def test_best_shell_has_most_directions_then_highest_b():
    parts = [shell(30, 1000), shell(30, 2000), shell(12, 3000)]
    gtab = with_b0(
        GradientTable(
            np.concatenate([p.bvecs for p in parts]), np.concatenate([p.bvals for p in parts])
        )
    )
    b, volumes = best_shell(gtab)
    assert b == 2000
    assert (gtab.bvals[volumes] == 2000).all()


def test_relative_signal_divides_by_the_mean_unweighted_volume():
    gtab = with_b0(shell(6))
    signals = np.array([[90.0, 110, 50, 50, 50, 50, 50, np.nan], [0, 0, 5, 5, 5, 5, 5, 5]])
    relative = relative_signal(signals, gtab, np.arange(2, 8))
    np.testing.assert_allclose(relative[:, 0], [0.5] * 5 + [0])
    assert not relative[:, 1].any()


@pytest.fixture
def block(rng):
    """A scan (X, Y, Z, N): single fibres along x, a crossing x and y, and isotropic tissue."""
    gtab = with_b0(shell(60))
    clean = np.empty((18, 10, 10, len(gtab)))
    clean[:6] = fibre(gtab, np.eye(3)[:1])[:, 0]
    clean[6:12] = fibre(gtab, np.eye(3)[:2]).mean(1)
    clean[12:] = np.exp(-gtab.bvals * 0.8e-3)
    return 700 * noisy(clean, 30, rng), gtab


def test_response_comes_from_voxels_of_one_fibre(block):
    data, gtab = block
    mask = np.ones(data.shape[:3], bool)
    found = single_fibre_response(data, gtab, mask, fit_tensor(data, gtab))
    profile = legendre(8, np.array([0.0, 1.0])) @ found.zonal
    np.testing.assert_allclose(profile, [np.exp(-RADIAL), np.exp(-AXIAL)], atol=0.03)
    assert found.b == 1000
    assert found.n_voxels >= 100


def test_without_single_fibres_there_is_no_response(block):
    data, gtab = block
    isotropic = data[12:]
    mask = np.ones(isotropic.shape[:3], bool)
    with pytest.raises(Unavailable, match='single fibre'):
        single_fibre_response(isotropic, gtab, mask, fit_tensor(isotropic, gtab))


def test_fibre_directions_of_a_scan(block):
    data, gtab = block
    brain = np.ones(data.shape[:3], bool)
    directions = fibre_directions(data, gtab, brain, brain).reshape(*brain.shape, 3, 3)
    count = (np.square(directions).sum(-1) > 0).sum(-1)
    assert (count[:6] == 1).mean() > 0.98
    assert (count[6:12] == 2).mean() > 0.95
    assert (count[12:] == 0).mean() > 0.95
    assert np.median(angle(directions[:6, ..., 0, :], np.array([1.0, 0, 0]))) < 2
    norms = np.linalg.norm(directions, axis=-1)
    np.testing.assert_allclose(norms[norms > 0], 1, atol=1e-5)


def test_the_density_that_fibres_are_peaks_of_can_follow_them(block):
    data, gtab = block
    brain = np.ones(data.shape[:3], bool)
    brain[6:] = False
    both = fibre_directions(data, gtab, brain, brain, with_density=True)
    assert np.array_equal(both[..., :9], fibre_directions(data, gtab, brain, brain))
    density = both[..., 9:][brain].T
    peaks, _ = fibre_peaks(density, 8, n=1)
    assert np.median(angle(peaks[:, 0], both[brain][:, :3])) < 0.1
    assert np.median(density[0]) * np.sqrt(4 * np.pi) == pytest.approx(1, abs=0.05)
    assert not both[~brain].any()


def test_fibre_directions_stay_in_white_matter(block):
    data, gtab = block
    brain = np.ones(data.shape[:3], bool)
    white = np.zeros_like(brain)
    white[:9] = True
    assert not fibre_directions(data, gtab, brain, white)[9:].any()
    assert not fibre_directions(data, gtab, brain)[12:].any()


def test_where_the_t1w_shows_no_brain_white_matter_is_found_by_anisotropy():
    """But not in the outermost voxels of the brain; the edge of the image is not its surface."""
    fa = np.full((6, 8, 8), 0.5)
    fa[:, :, 5] = 0.1
    brain, white, unseen = (np.zeros(fa.shape, bool) for _ in range(3))
    brain[:, 1:7, 1:7] = True
    white[:3, 3, 3] = True
    unseen[3:] = True
    expected = white.copy()
    expected[3:, 2:6, 2:5] = True
    assert np.array_equal(white_matter(fa, brain, white, unseen), expected)
    assert np.array_equal(white_matter(fa, brain, white), white)
    assert np.array_equal(white_matter(fa, brain), brain & (fa > 0.25))


def test_the_tensor_can_stand_in_where_no_single_fibre_is_found(block):
    data, gtab = block
    brain = np.ones(data.shape[:3], bool)
    directions = fibre_directions(data, gtab, brain, brain, deconvolve=False)
    assert directions.shape == (18, 10, 10, 3)
    isotropic = data[12:]
    with pytest.raises(Unavailable, match='single fibre'):
        fibre_directions(isotropic, gtab, brain[12:], brain[12:])


def test_few_directions_fall_back_to_the_tensor(block):
    data, gtab = block
    few = np.r_[0:14]
    brain = np.ones(data.shape[:3], bool)
    directions = fibre_directions(data[..., few], gtab[few], brain, brain)
    assert directions.shape == (18, 10, 10, 3)
    assert directions.dtype == np.float32
