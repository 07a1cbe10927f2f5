"""Susceptibility-weighted images: what is paramagnetic is dark, by the law of its phase."""

from __future__ import annotations

import numpy as np
import pytest

from bidsapp.modalities.gre.physics import swi

SHAPE = (12, 12, 20)
AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])
TIME = 0.020  # s


@pytest.fixture
def plain():
    """(magnitude of one echo, mask) without contrast."""
    return np.ones((1, *SHAPE)), np.ones(SHAPE, bool)


@pytest.mark.parametrize('phase', [0.25, 0.5, 0.75])
def test_a_paramagnetic_voxel_is_darker_by_the_fourth_power_of_what_its_phase_leaves(plain, phase):
    """Phase as a share of π: f Hz at TE is 2 f TE of it."""
    magnitude, mask = plain
    local = np.zeros(SHAPE)
    local[3, 4, 5], local[6, 4, 5] = phase / (2 * TIME), -phase / (2 * TIME)
    image = swi.weighted(magnitude, local, [TIME], mask)
    assert image[3, 4, 5] == pytest.approx((1 - phase) ** 4)
    assert image[6, 4, 5] == 1  # diamagnetic
    assert image[0, 0, 0] == 1


def test_beyond_half_a_turn_nothing_is_bright_again(plain):
    magnitude, mask = plain
    local = np.full(SHAPE, 3 / (2 * TIME))
    assert not swi.weighted(magnitude, local, [TIME], mask).any()


def test_echoes_are_averaged_each_with_its_own_phase():
    magnitude = np.stack([np.full(SHAPE, 2.0), np.full(SHAPE, 1.0)])
    local = np.full(SHAPE, 12.5)
    image = swi.weighted(magnitude, local, [TIME, 2 * TIME], np.ones(SHAPE, bool))
    assert image[0, 0, 0] == pytest.approx((2 * 0.5**4 + 0) / 2)


def test_a_vein_is_seen_through_a_slab_and_no_farther(plain):
    _, mask = plain
    mask[:, :, -1] = False
    image = np.where(mask, 1.0, 0.0)
    image[5, 5, 10] = 0.2
    lowest = swi.projected(image, mask, AFFINE)
    seen = np.flatnonzero(lowest[5, 5] == 0.2)
    assert list(seen) == list(range(7, 14))  # 14 mm in slices of 2 mm
    assert lowest[4, 5, 10] == 1
    assert lowest[:, :, -1].max() == 0
    assert (lowest[:, :, -2] == 1).all()  # what lies outside darkens nothing


def test_the_slab_lies_across_the_axial_direction():
    """A sagittal acquisition: its third voxel axis points to the right."""
    affine = np.eye(4)[[2, 1, 0, 3]]
    image = np.ones((20, 12, 12))
    image[10, 5, 5] = 0
    lowest = swi.projected(image, np.ones(image.shape, bool), affine)
    assert (lowest[:, 5, 5] == 0).sum() == 14
    assert (lowest[10, 5] == 0).sum() == 1
