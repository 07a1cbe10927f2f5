"""Where susceptibility moves signal, how bright it becomes, and the way back."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from bidsapp.physics.distortion import (
    displacement_of,
    distort,
    field_of,
    jacobian,
    phase_axis,
    unwarp,
)

SHAPE = (24, 30, 20)


@pytest.fixture
def image(rng):
    """Smooth, and dark near the edges of the grid."""
    inside = np.zeros(SHAPE)
    inside[7:-7, 7:-7, 7:-7] = rng.random(tuple(n - 14 for n in SHAPE)) + 1
    return ndimage.gaussian_filter(inside, 1.3).astype(np.float32)


@pytest.fixture
def displacement(rng):
    """A few voxels, without folds."""
    field = ndimage.gaussian_filter(rng.normal(size=SHAPE), 4)
    return (2.5 * field / np.abs(field).max()).astype(np.float32)


def test_a_field_of_3_mm_along_j_moves_signal_3_mm_to_a_larger_index():
    image = np.zeros((1, 20, 1), np.float32)
    image[0, 8] = 1
    hz = np.full(image.shape, 1.5 / 0.05)  # 1.5 voxels of 2 mm in a readout of 50 ms
    moved = distort(image, displacement_of(hz, 0.05, 'j'), 1)
    back = distort(image, displacement_of(hz, 0.05, 'j-'), 1)
    index = np.arange(20)
    assert moved[0, :, 0] @ index == pytest.approx(9.5, abs=1e-4)
    assert back[0, :, 0] @ index == pytest.approx(6.5, abs=1e-4)


def test_units_go_there_and_back(displacement):
    hz = field_of(displacement, 0.04, 'i-')
    assert hz.flat[0] == pytest.approx(-displacement.flat[0] / 0.04, rel=1e-5)
    np.testing.assert_allclose(displacement_of(hz, 0.04, 'i-'), displacement, rtol=1e-5)


@pytest.mark.parametrize('axis', [0, 1, 2])
def test_signal_is_conserved_even_in_folds(image, axis):
    wave = 1.5 * np.sin(2 * np.pi * np.arange(SHAPE[axis]) / 8)
    d = np.moveaxis(np.broadcast_to(wave, np.moveaxis(image, axis, -1).shape), -1, axis)
    assert jacobian(d, axis).min() < 0
    assert distort(image, d, axis).sum() == pytest.approx(image.sum(), rel=1e-4)


def test_signal_piles_up_where_a_fold_puts_it():
    image = np.zeros((1, 30, 1), np.float32)
    image[0, 10:20] = 1
    d = np.zeros_like(image)
    d[0, :, 0] = 14.5 - np.arange(30)  # everything arrives at one place
    assert distort(image, d, 1)[0, 14:16].sum() == pytest.approx(10, rel=1e-4)


def test_signal_that_leaves_the_grid_is_gone():
    image = np.ones((3, 10, 3), np.float32)
    assert distort(image, np.full(image.shape, 20.0), 1).sum() == 0
    half = distort(image, np.full(image.shape, -5.0), 1)
    assert half[:, :5] == pytest.approx(1, abs=1e-5)
    assert half[:, 5:] == pytest.approx(0, abs=1e-5)


def test_no_displacement_changes_nothing(image):
    still = np.zeros(SHAPE)
    np.testing.assert_allclose(distort(image, still, 1), image, atol=1e-5)
    for order in (1, 3):
        np.testing.assert_allclose(unwarp(image, still, 1, order), image, atol=1e-5)


@pytest.mark.parametrize(('order', 'allowed'), [(1, 0.05), (3, 0.02)])
@pytest.mark.parametrize('axis', [0, 1, 2])
def test_unwarping_undoes_the_distortion(image, displacement, axis, order, allowed):
    raw = distort(image, displacement, axis)
    recovered = unwarp(raw, displacement, axis, order)
    assert np.abs(raw - image).max() > 0.2 * image.max()
    assert np.abs(recovered - image).max() < allowed * image.max()


def test_what_is_spread_out_becomes_dimmer_and_bright_again():
    d = 0.5 * (np.arange(40.0) - 20)[None, :, None] * np.ones((2, 40, 2))
    image = np.zeros((2, 40, 2), np.float32)
    image[:, 15:26] = 1
    raw = distort(image, d, 1)
    assert raw[0, 20, 0] == pytest.approx(1 / 1.5, rel=0.02)
    assert jacobian(d, 1) == pytest.approx(1.5)
    assert unwarp(raw, d, 1)[0, 20, 0] == pytest.approx(1, rel=0.02)


def test_flipping_the_axis_flips_everything(image, displacement):
    raw = distort(image, displacement, 1)
    np.testing.assert_allclose(
        distort(image[:, ::-1], -displacement[:, ::-1], 1), raw[:, ::-1], atol=1e-5
    )
    np.testing.assert_allclose(
        unwarp(raw[:, ::-1], -displacement[:, ::-1], 1),
        unwarp(raw, displacement, 1)[:, ::-1],
        atol=1e-4,
    )


def test_axes_are_alike(image, displacement):
    turned = [np.moveaxis(array, 1, 2) for array in (image, displacement)]
    np.testing.assert_allclose(
        distort(*turned, 2), np.moveaxis(distort(image, displacement, 1), 1, 2), atol=1e-5
    )


def test_a_run_is_treated_volume_by_volume(image, displacement):
    run = np.stack([image, 2 * image], -1)
    for change in (unwarp, distort):
        whole = change(run, displacement, 1)
        assert whole.shape == run.shape
        assert whole.dtype == np.float32
        np.testing.assert_allclose(whole[..., 0], change(image, displacement, 1), atol=1e-6)
        np.testing.assert_allclose(whole[..., 1], 2 * whole[..., 0], atol=1e-5)


def test_what_does_not_fit_is_refused(image, displacement):
    with pytest.raises(ValueError, match='with a displacement'):
        unwarp(image[:-1], displacement, 1)
    with pytest.raises(ValueError, match='order 2'):
        unwarp(image, displacement, 1, order=2)
    with pytest.raises(ValueError, match='none of'):
        phase_axis('y')
    assert phase_axis('k-') == (2, -1)
