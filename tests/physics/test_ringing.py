from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.special import j1

from bidsapp.physics.ringing import (
    interpolated,
    may_unring,
    saddle_filter,
    shift_kernels,
    slice_axes,
    unring,
)
from bidsapp.problems import BadData

#: centre and semi-axes as fractions of the field of view, and intensity
ELLIPSES = (
    (0.01, -0.02, 0.40, 0.43, 800.0),
    (0.01, -0.02, 0.34, 0.37, -500.0),
    (-0.12, 0.05, 0.06, 0.13, 400.0),
    (0.14, -0.03, 0.09, 0.09, -200.0),
)


def acquired(shape):
    """The ellipses' exact Fourier transform on the ``shape`` lowest frequencies, reconstructed."""
    x, y = (np.fft.fftfreq(n, 1 / n) for n in shape)
    x, y = x[:, None], y[None]
    k = np.zeros(shape, complex)
    for p, q, a, b, value in ELLIPSES:
        radius = np.maximum(np.hypot(a * x, b * y), 1e-9)
        k += value * a * b * j1(2 * np.pi * radius) / radius * np.exp(-2j * np.pi * (p * x + q * y))
    centre = [np.exp(1j * np.pi * f * (1 / n - 1)) for f, n in zip((x, y), shape, strict=True)]
    return np.float32(np.fft.ifft2(k * centre[0] * centre[1]).real * np.prod(shape))


def truth(shape, finer=16):
    """The mean of the ellipses over each voxel, and the distance to the nearest edge in voxels."""
    fine = np.zeros([finer * n for n in shape])
    x, y = ((np.arange(n) + 0.5) / n - 0.5 for n in fine.shape)
    for p, q, a, b, value in ELLIPSES:
        fine[((x[:, None] - p) / a) ** 2 + ((y[None] - q) / b) ** 2 < 1] += value
    blocks = fine.reshape(shape[0], finer, shape[1], finer)
    pure = blocks.max((1, 3)) == blocks.min((1, 3))
    return blocks.mean((1, 3)), ndimage.distance_transform_edt(pure)


def brainlike(rng, shape=(40, 37, 3, 4)):
    image = acquired(shape[:2])[..., None, None] * rng.uniform(0.5, 1, shape[2:])
    return np.float32(image + rng.normal(0, 5, shape))


def agree(one, other, scale):
    """Up to rounding; where two shifts are nearly as good, it may decide between them."""
    apart = np.abs(one - other) > 1e-4 * scale
    return apart.mean() < 2e-3 and np.abs(one - other).max() < 0.1 * scale


SIZES = [(96, 96), (97, 95), (80, 81)]


@pytest.mark.parametrize('shape', SIZES)
def test_ringing_away_from_edges_loses_most_of_its_energy(shape):
    ringing = acquired(shape)
    clean = unring(ringing[..., None])[..., 0]
    expected, distance = truth(shape)
    away = distance > 2
    before, after = (np.square(image - expected)[away].sum() for image in (ringing, clean))
    assert after < before / 10


@pytest.mark.parametrize('shape', SIZES)
def test_edges_stay_where_they_are_and_sharp(shape):
    ringing = acquired(shape)
    clean = unring(ringing[..., None])[..., 0]
    expected, distance = truth(shape)
    edge = distance <= 1
    before, after = (np.square(image - expected)[edge].sum() for image in (ringing, clean))
    assert after < before
    steepest = [np.abs(np.diff(image, axis=0)).max() for image in (expected, clean)]
    assert steepest[1] > 0.8 * steepest[0]


def test_a_smooth_image_stays():
    x, y = np.indices((64, 60)) - 30
    blob = 100 * np.exp(-(x**2 + y**2) / (2 * 6**2))
    assert np.abs(unring(blob[..., None])[..., 0] - blob).max() < 0.01 * 100


@pytest.mark.parametrize('value', [0.0, 123.456, -7e5])
def test_a_constant_image_stays_to_the_last_bit(value):
    flat = np.full((20, 21, 2, 3), value, np.float32)
    assert np.array_equal(unring(flat), flat)


def test_contrast_and_offset_of_the_image_do_not_matter(rng):
    image = brainlike(rng)
    assert agree(unring(3 * image + 500), 3 * unring(image) + 500, 3 * 800)


def test_flips_and_transposition_commute_with_it(rng):
    image = brainlike(rng)
    clean = unring(image)
    assert agree(unring(image[::-1]), clean[::-1], 800)
    assert agree(unring(image[:, ::-1]), clean[:, ::-1], 800)
    assert agree(unring(image.swapaxes(0, 1)), clean.swapaxes(0, 1), 800)


@pytest.mark.parametrize(('axes', 'order'), [((0, 2), (0, 2, 1, 3)), ((1, 2), (2, 0, 1, 3))])
def test_slices_may_lie_along_any_array_axis(rng, axes, order):
    image = brainlike(rng)
    assert np.array_equal(unring(image.transpose(order), axes), unring(image).transpose(order))


def test_volumes_and_slices_do_not_know_of_each_other(rng):
    image = brainlike(rng)
    clean = unring(image)
    assert agree(unring(image[..., 2]), clean[..., 2], 800)
    assert agree(unring(image[:, :, 1:2]), clean[:, :, 1:2], 800)


def test_more_slices_than_fit_into_memory_at_a_time(rng, monkeypatch):
    image = brainlike(rng)
    clean = unring(image)
    monkeypatch.setattr('bidsapp.physics.ringing.SLICES', 3)
    monkeypatch.setattr('bidsapp.physics.ringing.LINES_CPU', 7)
    assert agree(unring(image), clean, 800)


def test_outside_the_mask_nothing_changes_and_inside_it_changes_nothing(rng):
    image = brainlike(rng)
    mask = np.zeros(image.shape[:3], bool)
    mask[8:30, 12:20, 1:] = True
    clean, masked = unring(image), unring(image, mask=mask)
    assert np.array_equal(masked[~mask], image[~mask])
    assert not np.array_equal(masked[mask], image[mask])
    assert agree(masked[mask], clean[mask], 800)
    assert np.array_equal(unring(image, mask=np.zeros_like(mask)), image)


@pytest.mark.parametrize('order', ['C', 'F'])
def test_the_input_is_kept_whatever_its_type_and_layout(rng, order):
    image = np.array(brainlike(rng), float, order=order)
    before = image.copy()
    clean = unring(image)
    assert clean.dtype == np.float32
    assert clean.shape == image.shape
    assert np.array_equal(image, before)
    assert np.array_equal(clean, unring(np.ascontiguousarray(image, np.float32)))
    assert np.array_equal(unring(image[..., 0]), unring(image[:, :, :, :1])[..., 0])


def test_the_number_of_threads_is_as_it_was(rng):
    before = torch.get_num_threads()
    unring(brainlike(rng))
    assert torch.get_num_threads() == before


def test_arrays_that_do_not_fit_are_refused():
    image = np.zeros((8, 8, 2, 3))
    with pytest.raises(ValueError, match='mask'):
        unring(image, mask=np.ones((8, 8, 3), bool))
    with pytest.raises(ValueError, match='do not fit'):
        unring(image[0, 0])
    with pytest.raises(ValueError, match='axes'):
        unring(image, axes=(1, 1))
    with pytest.raises(ValueError, match='axes'):
        unring(image, axes=(0, 3))


@pytest.mark.parametrize('n', [16, 17])
def test_kernels_move_every_wave_by_every_shift(n):
    shifts, weights, kernels = shift_kernels(n)
    assert sorted(shifts) == pytest.approx(np.linspace(-0.5, 0.5, 41))
    assert all(abs(a) <= abs(b) for a, b in pairwise(shifts))
    x = np.arange(n)
    for cycles in range((n + 1) // 2):
        wave = np.cos(2 * np.pi * cycles * x / n + 0.3)
        convolved = np.fft.ifft(np.fft.fft(weights @ kernels) * np.fft.fft(wave)).real
        moved = np.cos(2 * np.pi * cycles * (x + shifts[:, None]) / n + 0.3)
        assert np.abs(convolved - moved).max() < 1e-5


@pytest.mark.parametrize('shape', [(8, 10), (7, 9), (8, 9)])
def test_the_two_parts_of_kspace_make_up_the_whole(shape):
    rows, columns = shape
    along = saddle_filter(rows, columns)
    across = saddle_filter(columns, rows).T
    half = rows // 2 + 1
    assert along[:half] + across[:, : columns // 2 + 1] == pytest.approx(
        np.ones((half, along.shape[1]))
    )
    assert along[1:half, 0].min() > 0.5 > along[0, 1:].max()


FULLY = {'PartialFourier': 1}


@pytest.mark.parametrize(
    ('metadata', 'reason'),
    [
        (FULLY, None),
        ({'PartialFourier': 0.995}, None),
        ({**FULLY, 'AcquisitionMatrixPE': 96, 'ReconMatrixPE': 96}, None),
        ({**FULLY, 'AcquisitionMatrixPE': 96}, None),
        ({}, 'do not say'),
        ({'PartialFourier': None}, 'do not say'),
        ({'PartialFourier': 0.75}, 'partially.*0.75'),
        ({'PartialFourier': 0.875}, 'partially'),
        ({'PartialFourier': 75}, 'no fraction'),
        ({'PartialFourier': '6/8'}, 'no fraction'),
        ({'PartialFourier': float('nan')}, 'partially'),
        ({**FULLY, 'PartialFourierEnabled': 'YES'}, 'partially'),
        ({'PartialFourierEnabled': 'YES'}, 'partially'),
        ({**FULLY, 'AcquisitionMatrixPE': 110, 'ReconMatrixPE': 128}, '110 .* 128'),
        ({**FULLY, 'Interpolation2D': True}, 'interpolated'),
        ({**FULLY, 'Interpolation2D': False}, None),
    ],
)
def test_metadata_decide_whether_it_may_be_done(metadata, reason):
    said = may_unring(metadata)
    if reason is None:
        assert said is None
    else:
        assert said is not None
        assert re.search(reason, said)


@pytest.mark.parametrize(
    ('metadata', 'finer'),
    [
        ({}, False),
        ({'Interpolation2D': 1}, True),
        ({'Interpolation3D': 'YES'}, True),
        ({'Interpolation2D': 0, 'Interpolation3D': 'No'}, False),
        ({'AcquisitionMatrixPE': 110, 'ReconMatrixPE': 128, 'PartialFourier': 0.75}, True),
        ({'AcquisitionMatrixPE': 72, 'ReconMatrixPE': 72}, False),
        ({'ReconMatrixPE': 72}, False),
    ],
)
def test_an_interpolated_image_is_told_whatever_else_is_said(metadata, finer):
    assert (interpolated(metadata) is not None) is finer


@pytest.mark.parametrize(
    ('direction', 'axes'),
    [(None, (0, 1)), ('k', (0, 1)), ('k-', (0, 1)), ('j', (0, 2)), ('i-', (1, 2))],
)
def test_slices_are_what_their_direction_leaves(direction, axes):
    metadata = {} if direction is None else {'SliceEncodingDirection': direction}
    assert slice_axes(metadata) == axes


def test_a_slice_direction_that_is_none_is_refused():
    with pytest.raises(BadData, match='SliceEncodingDirection'):
        slice_axes({'SliceEncodingDirection': 'z'})
