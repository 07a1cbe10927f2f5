"""What is believed of a phase, and what χ says of its sign."""

from __future__ import annotations

import numpy as np
import pytest

from bidsapp.modalities.gre.physics import quality
from bidsapp.modalities.gre.physics.echoes import Field

SHAPE, AFFINE = (30, 30, 30), np.diag([1.0, 1, 1, 1])


def field(noise, residual):
    return Field(np.zeros(SHAPE), noise, residual, np.zeros((3, *SHAPE)), 1.0)


@pytest.fixture
def mask():
    mask = np.zeros(SHAPE, bool)
    mask[3:27, 3:27, 3:27] = True
    return mask


def test_bone_and_what_dephases_are_left_out(mask):
    noise, residual = np.ones(SHAPE), np.ones(SHAPE)
    noise[3:7] = 20.0  # bone
    residual[:, :, 22:] = 8.0  # above the sinuses
    found = quality.reliable_mask(field(noise, residual), mask, AFFINE)
    assert found[9:27, 3:27, 3:20].all()
    assert not found[:6].any()
    assert not found[:, :, 24:].any()


def test_a_vein_within_is_kept(mask):
    noise, residual = np.ones(SHAPE), np.ones(SHAPE)
    noise[15, 10:20, 15] = 50.0
    assert (quality.reliable_mask(field(noise, residual), mask, AFFINE) == mask).all()


def test_nothing_beyond_the_mask_and_nothing_of_nothing(mask):
    one = field(np.ones(SHAPE), np.ones(SHAPE))
    assert not (quality.reliable_mask(one, mask, AFFINE) & ~mask).any()
    assert not quality.reliable_mask(one, np.zeros(SHAPE, bool), AFFINE).any()


@pytest.fixture
def iron(mask, rng):
    """(χ, R2*) of tissue with a nucleus."""
    chi, r2star = rng.normal(0, 0.01, SHAPE), rng.normal(18, 2, SHAPE)
    chi[10:18, 10:18, 10:18] += 0.12
    r2star[10:18, 10:18, 10:18] += 20
    return chi, r2star


def test_iron_is_paramagnetic(iron, mask):
    chi, r2star = iron
    assert quality.phase_sign(chi, r2star, mask, AFFINE).verdict == 'as expected'
    turned = quality.phase_sign(-chi, r2star, mask, AFFINE)
    assert turned.verdict == 'turned'
    assert turned.contrast == pytest.approx(-0.12, abs=0.02)


def test_where_nothing_shows_nothing_is_told(iron, mask, rng):
    _, r2star = iron
    noise = rng.normal(0, 0.01, SHAPE)
    assert quality.phase_sign(noise, r2star, mask, AFFINE).verdict == 'cannot tell'
    few = np.zeros(SHAPE, bool)
    few[:5, :5, :5] = True
    assert quality.phase_sign(*iron, few, AFFINE).verdict == 'cannot tell'
