"""The spherical-mean-value property, and what is built on it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bidsapp.modalities.gre.physics import background
from bidsapp.modalities.gre.physics.dipole import convolved, dipole, enlarged
from bidsapp.modalities.gre.physics.inversion import total_variation
from bidsapp.physics.operators import Padded

SHAPE, VOXEL, B0 = (44, 46, 34), (1.0, 1.0, 1.3), (0.1, -0.3, 0.9)


@pytest.fixture(scope='module')
def scene():
    """A ball-like brain with sources of its own, and strong ones outside; amid zeros."""
    x, y, z = (np.indices(SHAPE) - np.array(SHAPE)[:, None, None, None] / 2) * np.array(VOXEL)[
        :, None, None, None
    ]
    mask = (x / 17) ** 2 + (y / 18) ** 2 + (z / 17) ** 2 < 1
    inner = torch.zeros(SHAPE, dtype=torch.float64)
    for place, value in (((22, 22, 17), 0.15), ((17, 26, 20), -0.1), ((26, 18, 13), 0.1)):
        at = tuple(slice(n - 2, n + 3) for n in place)
        inner[at] = value
    outer = torch.as_tensor(np.where((x / 19) ** 2 + (y / 20) ** 2 + (z / 19) ** 2 > 1, 2.0, 0.0))
    outer[:, 30:] += 1.0 * (outer[:, 30:] > 0)
    field = dipole(SHAPE, VOXEL, B0, exact=True)
    local, far = field(inner), field(outer)
    frame = Padded(SHAPE, enlarged(SHAPE, 1.3))
    return {
        'chi': inner, 'local': local, 'far': far - far[mask].mean(), 'frame': frame,
        'mask': torch.as_tensor(mask),
    }  # fmt: skip


@pytest.mark.parametrize('radius', [3.0, 5.0, 8.0])
def test_a_field_from_outside_is_its_own_mean_over_a_ball(scene, radius):
    frame, mask = scene['frame'], scene['mask']
    s = background.spherical_mean(frame.padded, VOXEL, radius)
    inside = torch.as_tensor(background.reach(mask.numpy(), VOXEL, radius))
    left = frame.H(convolved(frame(scene['far'] * mask), s))
    assert inside.any()
    assert left[inside].abs().max() < 0.02 * scene['far'][inside].std()
    own = frame.H(convolved(frame(scene['local'] * mask), s))
    assert own[inside].std() > 0.3 * scene['local'][inside].std()


def test_a_constant_and_a_slope_are_background():
    s = background.spherical_mean((24, 25, 26), (1, 1, 2), 4.0)
    assert s[0, 0, 0] == 0
    assert float(s.max()) < 1.3
    ramp = torch.arange(24.0, dtype=torch.float64)[:, None, None].expand(24, 25, 26)
    assert convolved(ramp, s)[6:-6].abs().max() < 1e-10


def test_balls_that_touch_the_edge_of_the_grid_are_not_within_it():
    mask = np.ones((20, 20, 20), bool)
    assert background.reach(mask, (1, 1, 1), 5.0)[10, 10, 5]
    assert not background.reach(mask, (1, 1, 1), 5.0)[10, 10, 4]
    assert background.depth(mask, (1, 1, 2))[10, 10, 0] == 2


@pytest.mark.parametrize('method', [background.vsharp, background.resharp])
def test_the_local_field_is_what_is_left(scene, method):
    frame, mask = scene['frame'], scene['mask']
    total = frame((scene['local'] + scene['far']) * mask)
    found, known = (frame.H(x.double()) for x in method(total, frame(mask.double()) > 0, VOXEL))
    inside = known > 0
    assert not (inside & ~mask).any()
    assert inside.sum() > 0.25 * mask.sum()
    wanted = scene['local'] - scene['local'][inside].mean()
    error = (found - found[inside].mean() - wanted)[inside].norm() / wanted[inside].norm()
    before = (scene['far'] - scene['far'][inside].mean())[inside].norm() / wanted[inside].norm()
    assert before > 3
    assert error < 0.45
    assert not found[~inside].any()


def test_what_stands_outside_the_mask_does_not_matter(scene):
    frame, mask = scene['frame'], frame_mask(scene)
    total = frame(scene['local'])
    for method in (background.vsharp, background.resharp):
        wild = torch.where(mask, total, 1e3)
        assert torch.equal(method(total, mask, VOXEL)[0], method(wild, mask, VOXEL)[0])


def frame_mask(scene):
    return scene['frame'](scene['mask'].double()) > 0


def test_a_mask_too_thin_for_any_ball_knows_nothing():
    mask = torch.zeros((12, 12, 12), dtype=torch.bool)
    mask[6, 3:9, 3:9] = True
    field, known = background.vsharp(torch.ones((12, 12, 12)), mask, (1, 1, 1))
    assert not known.any()
    assert not field.any()


def test_one_inversion_behind_the_filter_on_both_sides(scene):
    """Single-step: from the total field to χ, with no deconvolution between."""
    from bidsapp.modalities.gre.physics.dipole import kspace

    frame, mask = scene['frame'], frame_mask(scene)
    s = background.spherical_mean(frame.padded, VOXEL, 5.0)
    known = torch.as_tensor(background.reach(mask.numpy(), VOXEL, 5.0))
    total = frame((scene['local'] + scene['far']) * scene['mask'])
    d = kspace(frame.padded, VOXEL, B0)
    chi = total_variation(
        known * convolved(total, s), d * s, known.double(), VOXEL, 2e-5, iterations=30
    ).chi
    found = frame.H(chi)
    for place, value in (((22, 22, 17), 0.15), ((17, 26, 20), -0.1), ((26, 18, 13), 0.1)):
        beside = float(found[place[0], place[1] - 6 : place[1] - 4, place[2]].mean())
        assert float(found[place]) - beside == pytest.approx(value, abs=0.04)
