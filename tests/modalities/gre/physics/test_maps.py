"""Maps on a scan's own grid: cut, inverted, put back."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bidsapp.modalities.gre.physics import maps
from bidsapp.modalities.gre.physics.dipole import b0_direction, dipole

SHAPE = (38, 40, 36)


def affine_of(tilt):
    turn = np.deg2rad(tilt)
    affine = np.eye(4)
    affine[:3, :3] = [[-1, 0, 0], [0, np.cos(turn), -np.sin(turn)], [0, np.sin(turn), np.cos(turn)]]
    affine[:3, :3] *= [1.0, 1.0, 1.2]
    return affine


def scene(tilt):
    """χ, its local field, a field from outside, the mask."""
    affine = affine_of(tilt)
    x, y, z = (np.indices(SHAPE) - np.array(SHAPE)[:, None, None, None] / 2) * 1.1
    mask = x**2 / 225 + y**2 / 256 + z**2 / 225 < 1
    chi = np.zeros(SHAPE)
    chi[17:22, 19:24, 16:20], chi[14:17, 12:16, 18:22] = 0.15, -0.1
    field = dipole(SHAPE, (1, 1, 1.2), b0_direction(affine).tolist(), exact=True)
    outside = torch.as_tensor(np.where(x**2 + y**2 + z**2 > 19.5**2, 1.0 + (y > 5), 0.0))
    local, far = field(torch.as_tensor(chi)).numpy(), field(outside).numpy()
    return chi, local, far, mask, affine


def contrast(chi):
    return chi[17:22, 19:24, 16:20].mean() - chi[14:17, 12:16, 18:22].mean()


@pytest.mark.parametrize('tilt', [0, 28])
@pytest.mark.parametrize('method', ['tkd', 'tikhonov', 'tv'])
def test_from_a_local_field(tilt, method):
    chi, local, _, mask, affine = scene(tilt)
    noise = np.full(SHAPE, 5e-4)
    found = maps.susceptibility(local, noise, mask, affine, method)
    lowest = {'tkd': 0.15, 'tikhonov': 0.15, 'tv': 0.22}[method]
    assert lowest < contrast(found) < 0.27  # of 0.25
    assert found.shape == SHAPE
    assert not found[~mask].any()
    assert found[mask].mean() == pytest.approx(0, abs=1e-6)
    wrong = maps.susceptibility(local, noise, mask, affine_of(tilt + 60), method)
    assert np.linalg.norm((wrong - chi)[mask]) > 1.2 * np.linalg.norm((found - chi)[mask])


def test_from_a_total_field_in_one_step_and_in_two():
    _, local, far, mask, affine = scene(10)
    noise = np.full(SHAPE, 5e-4)
    assert far[mask].std() > 3 * local[mask].std()
    once = maps.susceptibility(local + far, noise, mask, affine, 'single-step', radius=4.0)
    found, known = maps.local_field(local + far, mask, affine)
    twice = maps.susceptibility(found, noise, known, affine)
    for chi in (once, twice):
        assert contrast(chi) == pytest.approx(0.25, abs=0.07)


def test_a_constant_of_the_field_is_nothing():
    _, local, far, mask, affine = scene(10)
    noise = np.full(SHAPE, 5e-4)
    one, other = (
        maps.susceptibility(local + far + c, noise, mask, affine, 'single-step') for c in (0, 3.0)
    )
    assert other == pytest.approx(one, abs=2e-4)


def test_a_frame_gives_back_what_it_got(rng):
    mask = np.zeros(SHAPE, bool)
    mask[5:20, 7:30, 9:11] = True
    array = np.where(mask, rng.normal(size=SHAPE), 0).astype(np.float32)
    frame = maps.Frame.of(mask, affine_of(0))
    assert np.array_equal(frame.back(frame.into(array)), array)
    assert frame.voxel_mm == pytest.approx((1, 1, 1.2))


def test_weights_are_1_at_the_median_and_limited(rng):
    mask = np.ones(SHAPE, bool)
    mask[:5] = False
    weights, typical = maps.weights_of(rng.uniform(0.1, 3, SHAPE), mask)
    assert typical == pytest.approx(1.55, abs=0.05)
    assert not weights[:5].any()
    assert weights.max() == maps.HEAVIEST
    assert np.median(weights[mask]) == pytest.approx(1)
