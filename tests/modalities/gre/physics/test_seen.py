"""What a network sees of a field is what the inversion of maps knows of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from bidsapp.modalities.gre.physics import maps
from bidsapp.modalities.gre.physics.dipole import dipole
from bidsapp.modalities.gre.physics.seen import CHANNELS, seen

SHAPE, VOXEL, B = (20, 22, 19), (1.0, 1.0, 1.5), (0.0, 0.28, 0.96)


@pytest.fixture
def scene():
    chi = np.zeros(SHAPE)
    chi[7:11, 8:12, 7:11] = 0.1
    mask = np.zeros(SHAPE, bool)
    mask[1:-1, 1:-1, 1:-1] = True
    field = dipole(SHAPE, VOXEL, B)(torch.from_numpy(chi)).numpy()
    return chi, field, np.full(SHAPE, 1e-3), mask


def test_the_start_is_the_map_by_total_variation(scene):
    _, field, noise, mask = scene
    whole = np.ones_like(mask)
    image, context = seen(field, noise, whole, VOXEL, B)
    affine = np.diag([*VOXEL, 1.0])
    chi = maps.susceptibility(field, noise, whole, affine, 'tv', b=B)
    assert context['doubt'] == context['noise']  # χ explains all of it
    start = image[CHANNELS.index('start')].numpy()
    assert np.allclose(start - start.mean(), chi, atol=1e-5)
    assert context['noise'].item() == pytest.approx(1e-3)


def test_what_is_not_known_is_zero(scene):
    _, field, noise, mask = scene
    image, _ = seen(np.where(mask, field, 9.0), noise, mask, VOXEL, B, radius=2.0)
    known = image[CHANNELS.index('known')] > 0
    assert 0 < known.sum() < mask.sum()
    for name in ('field', 'left', 'weights'):
        assert not image[CHANNELS.index(name)][~known].any()


def test_a_field_of_another_size_has_the_start_of_that_size(scene):
    _, field, noise, mask = scene
    (one, context), (other, larger) = (
        seen(q * field, q * noise, mask, VOXEL, B) for q in (1.0, 3.0)
    )
    assert larger['scale'] == pytest.approx(3 * context['scale'].item(), rel=0.1)
    assert torch.allclose(other[3], 3 * one[3], atol=1e-5)


def test_what_no_susceptibility_explains_is_doubt(rng):
    """And total variation, which would follow it, gets the λ of so much noise."""
    shape = (36, 38, 35)
    mask = np.zeros(shape, bool)
    mask[3:-3, 3:-3, 3:-3] = True
    chi = 0.1 * mask * (ndimage.gaussian_filter(rng.normal(size=shape), 2.0) > 0)
    field = dipole(shape, VOXEL, B)(torch.from_numpy(chi)).numpy()
    strange = mask * ndimage.gaussian_filter(rng.normal(size=shape), 1.5)
    strange *= field[mask].std() / strange[mask].std()
    (one, sure), (_, little), (other, much) = (
        seen(field + q * strange, np.full(shape, 1e-3), mask, VOXEL, B) for q in (0, 0.3, 1.0)
    )
    assert sure['doubt'] == sure['noise'] == much['noise']
    assert 3 * sure['doubt'] < little['doubt'] < 0.5 * much['doubt']
    assert other[CHANNELS.index('left')].std() > 2 * one[CHANNELS.index('left')].std()
