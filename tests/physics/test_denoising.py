"""MP-PCA on signals of known rank with noise of known strength."""

from __future__ import annotations

import numpy as np
import pytest

from bidsapp.physics import denoising
from bidsapp.physics.denoising import MIN_VOLUMES, denoise
from bidsapp.problems import Unavailable

GRID, N_VOLUMES, SIGMA = (15, 14, 12), 40, 0.05


def low_rank(rng, grid=GRID, n=N_VOLUMES, rank=3):
    """Smooth maps times different signals: ``rank`` in every patch; mean about 1."""
    axes = np.meshgrid(*(np.linspace(0, 3, length) for length in grid), indexing='ij')
    waves = [np.cos(rng.normal(size=3) @ np.reshape(axes, (3, -1))) for _ in range(rank)]
    signals = rng.uniform(0, 0.5, (rank, n))
    signals[0] += 1
    return ((2 + np.array(waves).T) @ signals / 3).reshape(*grid, n).astype(np.float32)


def rmse(a, b):
    return float(np.sqrt(np.mean((a.astype(float) - b) ** 2)))


@pytest.fixture
def truth(rng):
    return low_rank(rng)


@pytest.fixture
def noisy(truth, rng):
    return (truth + SIGMA * rng.normal(size=truth.shape)).astype(np.float32)


def test_strength_of_pure_noise_is_found(rng):
    noise = rng.normal(scale=7.0, size=(*GRID, N_VOLUMES))
    result = denoise(noise)
    assert result.sigma.mean() == pytest.approx(7, rel=0.01)
    assert result.sigma.std() < 0.3
    assert rmse(result.data, 0) < 0.3 * 7


@pytest.mark.parametrize('rank', [1, 3, 6])
def test_strength_of_noise_is_found_beside_signal(rng, rank):
    truth = low_rank(rng, rank=rank)
    result = denoise(truth + SIGMA * rng.normal(size=truth.shape))
    assert result.sigma.mean() == pytest.approx(SIGMA, rel=0.02)


def test_degrees_of_freedom_of_strong_signals_are_not_counted_as_noise(rng):
    """12 signals in 40 volumes, all strong: not counting theirs, σ would come out 5 % low.

    Any patch of 125 voxels keeps (125 - 12) × (40 - 12) degrees of freedom to tell noise by.
    """
    truth = 10 * rng.normal(size=(*GRID, 12)) @ rng.normal(size=(12, N_VOLUMES))
    result = denoise(truth + rng.normal(size=truth.shape))
    assert result.sigma.mean() == pytest.approx(1, rel=0.01)
    kept = (12 * (125 + N_VOLUMES) - 12**2) / (125 * N_VOLUMES)
    assert rmse(result.data, truth) < np.sqrt(kept)


def test_error_falls_to_what_the_rank_leaves(truth, noisy):
    """A patch (125 × 40) of rank 3 keeps 3 (125 + 40) of its 5000 degrees of freedom: 0.31 σ.

    The mean over several patches is nearer still.
    """
    result = denoise(noisy)
    assert rmse(result.data, truth) < 0.31 * rmse(noisy, truth)
    assert abs((result.data - truth).mean()) < 0.01 * SIGMA


def test_what_is_removed_is_noise(truth, noisy):
    """It has the strength of the noise and nothing in common with the signal."""
    removed = noisy - denoise(noisy).data
    assert removed.std() == pytest.approx(SIGMA, rel=0.06)
    assert abs(np.corrcoef(removed.ravel(), truth.ravel())[0, 1]) < 0.01


def test_noise_that_differs_from_place_to_place(truth, rng):
    sigma = np.linspace(0.03, 0.09, GRID[0])[:, None, None]
    result = denoise(truth + sigma[..., None] * rng.normal(size=truth.shape))
    inner = slice(3, -3)
    assert np.abs(result.sigma / sigma - 1)[inner].max() < 0.2


@pytest.mark.parametrize('scale', [1.0, 1000.0])
def test_data_of_low_rank_stay_as_they_are(truth, scale):
    result = denoise(scale * truth)
    assert np.abs(result.data - scale * truth).max() < 1e-5 * scale
    assert result.sigma.max() < 1e-5 * scale


def test_faint_noise_is_not_lost_under_rounding(truth, rng):
    """At a signal 10 000 times the noise."""
    noisy = truth + 1e-4 * rng.normal(size=truth.shape)
    assert denoise(noisy).sigma.mean() == pytest.approx(1e-4, rel=0.05)


@pytest.mark.parametrize('factor', [1e-3, 250.0])
def test_the_unit_of_the_signal_does_not_matter(noisy, factor):
    result, scaled = denoise(noisy), denoise(factor * noisy)
    assert np.allclose(scaled.data, factor * result.data, rtol=0, atol=1e-5 * factor)
    assert np.allclose(scaled.sigma, factor * result.sigma, rtol=1e-4)


@pytest.mark.parametrize('axis', [0, 1, 2, 3])
def test_a_mirrored_run_gives_the_mirrored_result(noisy, axis):
    """Along the volumes it is another order of them, which does not matter either."""
    result, mirrored = denoise(noisy), denoise(np.flip(noisy, axis))
    assert np.allclose(mirrored.data, np.flip(result.data, axis), rtol=0, atol=1e-5)
    turned = np.flip(result.sigma, axis) if axis < 3 else result.sigma
    assert np.allclose(mirrored.sigma, turned, rtol=1e-4)


def test_voxels_outside_the_mask_stay_as_they_were(noisy):
    mask = np.zeros(GRID, bool)
    mask[4:9, 5:9, 3:8] = True
    result, everywhere = denoise(noisy, mask), denoise(noisy)
    assert np.array_equal(result.data[~mask], noisy[~mask])
    assert not result.sigma[~mask].any()
    # Every patch that covers the mask is there, so inside nothing depends on the mask.
    assert np.allclose(result.data[mask], everywhere.data[mask], rtol=0, atol=1e-6)
    assert np.allclose(result.sigma[mask], everywhere.sigma[mask])


def test_an_empty_mask_changes_nothing(noisy):
    result = denoise(noisy, np.zeros(GRID, bool))
    assert np.array_equal(result.data, noisy)
    assert not result.sigma.any()


def test_an_empty_background_stays_empty_and_does_not_count(truth, noisy):
    """Zeros are no measurement of the noise: beside them it is as strong as elsewhere."""
    noisy[:7] = 0
    result = denoise(noisy)
    assert not result.data[:7].any()
    assert not result.sigma[:7].any()
    assert result.sigma[7:10].mean() == pytest.approx(SIGMA, rel=0.03)
    assert rmse(result.data[7:], truth[7:]) < 0.35 * SIGMA


def test_too_few_voxels_with_signal_stay_as_they_were(rng):
    data = np.zeros((*GRID, N_VOLUMES), np.float32)
    data[3:5, 3:5, 3:5] = rng.uniform(1, 2, (2, 2, 2, N_VOLUMES))
    result = denoise(data)
    assert np.array_equal(result.data, data)
    assert not result.sigma.any()


def test_values_that_are_not_finite_stay_where_they_are(truth, noisy):
    noisy[5, 5, 5, 3], noisy[9, 2, 4] = np.nan, np.inf
    result = denoise(noisy)
    finite = np.isfinite(noisy).all(-1)
    assert np.array_equal(result.data[~finite], noisy[~finite], equal_nan=True)
    assert not result.sigma[~finite].any()
    assert rmse(result.data[finite], truth[finite]) < 0.31 * SIGMA


def test_constant_and_repeated_volumes(noisy):
    for data in (np.full_like(noisy, 3), np.repeat(noisy[..., :1], N_VOLUMES, -1)):
        result = denoise(data)
        assert np.abs(result.data - data).max() < 1e-5
        assert np.isfinite(result.sigma).all()
    assert not denoise(np.zeros_like(noisy)).data.any()


@pytest.mark.parametrize(
    'grid', [(14, 13, 4), (24, 24, 1), (30, 3, 2), (100, 1, 1), (4, 4, 3), (3, 3, 2), (1, 1, 1)]
)
def test_thin_and_tiny_grids(rng, grid):
    truth = low_rank(rng, grid, rank=1)
    noisy = (truth + SIGMA * rng.normal(size=truth.shape)).astype(np.float32)
    result = denoise(noisy)
    if np.prod(grid) < MIN_VOLUMES:
        assert np.array_equal(result.data, noisy)
    else:
        assert rmse(result.data, truth) < 0.5 * SIGMA
        assert result.sigma.mean() == pytest.approx(SIGMA, rel=0.1)


@pytest.mark.parametrize(
    ('grid', 'n', 'window'),
    [
        ([100, 100, 60], 27, (3, 3, 3)),
        ([100, 100, 60], 65, (5, 5, 5)),
        ([100, 100, 60], 126, (7, 7, 7)),
        ([100, 100, 4], 65, (5, 5, 4)),
        ([100, 100, 1], 65, (9, 9, 1)),
        ([3, 2, 2], 65, (3, 2, 2)),
    ],
)
def test_the_window_is_the_smallest_with_a_voxel_for_each_volume(grid, n, window):
    assert denoising._window(grid, n) == window


def test_too_few_volumes_are_refused(rng):
    with pytest.raises(Unavailable, match=f'14 volumes; at least {MIN_VOLUMES}'):
        denoise(low_rank(rng, n=MIN_VOLUMES - 1))
    assert denoise(low_rank(rng, n=MIN_VOLUMES)).data.shape == (*GRID, MIN_VOLUMES)


def test_chunks_do_not_show_and_progress_ends_with_all_patches(noisy, monkeypatch):
    result = denoise(noisy)
    monkeypatch.setattr(denoising, '_CHUNK', 7 * 125 * N_VOLUMES)
    said = []
    chunked = denoise(noisy, progress=lambda done, of: said.append((done, of)))
    assert np.allclose(chunked.data, result.data, rtol=0, atol=1e-6)
    assert np.allclose(chunked.sigma, result.sigma)
    assert len(said) > 5
    assert said[-1][0] == said[-1][1]
    assert sorted(said) == said


def test_any_type_and_memory_order_is_taken_and_left_alone(noisy):
    counts = np.asfortranarray(np.rint(1000 * noisy).astype(np.int16))
    counts.flags.writeable = False
    result = denoise(counts)
    assert result.data.dtype == result.sigma.dtype == np.float32
    assert np.allclose(result.data, denoise(counts.astype(np.float32)).data)
    assert np.array_equal(counts, np.rint(1000 * noisy))
