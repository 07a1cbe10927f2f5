"""Slices that dropped out: which are found, what they are replaced by, and what is left alone."""

from __future__ import annotations

import numpy as np
import pytest

from bidsapp.modalities.dwi.physics.gradients import GradientTable
from bidsapp.modalities.dwi.physics.harmonics import fibonacci_hemisphere
from bidsapp.modalities.dwi.physics.motion import apply_motion, estimate_motion
from bidsapp.modalities.dwi.physics.outliers import Outliers, low_slices

SHAPE, EDGE = (30, 32, 24), 5.0


def head(rng, n=24):
    """A ball of tissue with fibres along x in one half and along y in the other, in noise."""
    affine = np.diag([EDGE, EDGE, EDGE, 1.0])
    gtab = GradientTable(
        np.vstack([np.zeros((2, 3)), fibonacci_hemisphere(n)]), np.r_[0, 0, np.full(n, 1000.0)]
    )
    x, y, z = np.moveaxis((np.moveaxis(np.indices(SHAPE), 0, -1) - np.array(SHAPE) / 2), -1, 0)
    mask = (x / 12) ** 2 + (y / 13) ** 2 + (z / 10) ** 2 < 1
    ventricle = (x / 3) ** 2 + ((y - 2) / 5) ** 2 + (z / 3) ** 2 < 1
    signal = np.empty((*SHAPE, len(gtab)), np.float32)
    for v, (g, b) in enumerate(zip(gtab.bvecs, gtab.bvals, strict=True)):
        along = np.where(x > 0, g[0], g[1]) ** 2
        tissue = np.exp(-b * 1e-3 * (0.5 + 0.8 * along))
        signal[..., v] = np.where(ventricle, 2 * np.exp(-b * 3e-3), tissue) * mask
    noise = rng.normal(scale=1 / 20, size=(2, *signal.shape))
    data = 400 * np.hypot(signal + noise[0], noise[1])
    return data.astype(np.float32), affine, gtab, mask


@pytest.fixture(scope='module')
def planted():
    rng = np.random.default_rng(5)
    clean, affine, gtab, mask = head(rng)
    held = np.flatnonzero(mask.sum((0, 1)) * EDGE**2 > 2000)
    places = rng.choice(len(gtab) * len(held), 12, replace=False)
    slices = {(int(p // len(held)), int(held[p % len(held)])) for p in places}
    slices.add((1, 12))  # a b = 0 volume, too
    data = clean.copy()
    for n, position in slices:
        data[:, :, position, n] *= rng.uniform(0.1, 0.6)
    return clean, data, affine, gtab, mask, slices


@pytest.fixture(scope='module')
def motion(planted):
    _, data, affine, gtab, mask, _ = planted
    return estimate_motion(data, affine, gtab, mask, 'j')


def test_dropped_slices_are_found_and_replaced_as_they_were(planted, motion):
    clean, data, _, _, mask, slices = planted
    found = {(int(n), int(position)) for n, position in motion.outliers.slices}
    assert found == slices
    assert motion.outliers.counts.sum() == len(slices)
    assert (motion.outliers.drops > 0.3).all()
    assert motion.residual_after.mean() < 0.7 * motion.residual_before.mean()
    for n, position in slices:
        brain = mask[:, :, position]
        mended = motion.outliers.replaced(data[..., n], n)[:, :, position][brain]
        true = clean[:, :, position, n][brain]
        lost = data[:, :, position, n][brain]
        assert abs(mended.mean() / true.mean() - 1) < 0.1
        assert np.square(mended - true).mean() < 0.2 * np.square(lost - true).mean()


def test_the_applied_run_holds_the_replacement(planted, motion):
    clean, data, affine, gtab, mask, slices = planted
    mended = apply_motion(data, affine, motion)
    n, position = next(iter(slices))
    brain = mask[:, :, position]
    ratio = mended[:, :, position, n][brain].mean() / clean[:, :, position, n][brain].mean()
    assert abs(ratio - 1) < 0.06
    whole = np.setdiff1d(np.arange(len(gtab)), [v for v, _ in slices])
    if not motion.parameters.any():
        np.testing.assert_array_equal(mended[..., whole], data[..., whole])


def test_nothing_is_replaced_in_a_clean_run(planted):
    clean, _, affine, gtab, mask, _ = planted
    motion = estimate_motion(clean, affine, gtab, mask, 'j')
    assert not len(motion.outliers.slices)
    assert not motion.outliers.counts.any()


def test_slices_lie_along_the_axis_that_is_named(planted):
    _, data, affine, gtab, mask, slices = planted
    turned = affine[:, [2, 0, 1, 3]]
    motion = estimate_motion(
        data.transpose(2, 0, 1, 3), turned, gtab, mask.transpose(2, 0, 1), 'k', slice_axis=0
    )
    assert {(int(n), int(z)) for n, z in motion.outliers.slices} == slices
    assert motion.outliers.axis == 0


def test_a_slice_must_be_low_for_its_shell_and_for_its_place(rng):
    changes = rng.normal(scale=0.01, size=(20, 12))
    changes[:, 0] = rng.normal(scale=0.3, size=20)  # the lowest slice never fits
    changes[:, 11] = np.nan
    changes[3, 5], changes[4, 6], changes[5, 7] = -0.3, -0.12, 0.5
    low = low_slices(changes, [np.arange(20)])
    assert np.argwhere(low).tolist() == [[3, 5]]


def test_replacing_leaves_the_raw_run_alone():
    volume = np.ones((3, 4, 5), np.float32)
    plane = (slice(0, 3), slice(1, 4))
    outliers = Outliers(
        np.array([[2, 4]]), np.array([0.5]), (np.full((3, 3), 7, np.float32),), plane, 2, 3
    )
    np.testing.assert_array_equal(outliers.replaced(volume, 0), volume)
    mended = outliers.replaced(volume, 2)
    assert (mended == 7).sum() == 9
    assert (mended[:, 1:4, 4] == 7).all()
    assert (volume == 1).all()
    assert outliers.counts.tolist() == [0, 0, 1]
