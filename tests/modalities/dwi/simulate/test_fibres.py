from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bidsapp.modalities.dwi.simulate.fibres import catmull_rom, fibres_at, resolve
from bidsapp.simulate.anatomy import Head
from bidsapp.simulate.grids import Grid, rotation

#: Places in MNI mm where one direction is known: +x right, +y front, +z up.
LANDMARKS = [
    ((0, 2, 26), 0, 'body of the callosum'),
    ((24, -13, 12), 2, 'right internal capsule'),
    ((-24, -13, 12), 2, 'left internal capsule'),
    ((9, -14, 39), 1, 'right cingulum'),
    ((33, -56, 0), 1, 'right occipital radiation'),
]


@pytest.fixture
def unmoved(head):
    return Head(head.template, torch.eye(4), torch.zeros_like(head.displacement), head.lattice)


def small_grid(centre, axes=None):
    """3 x 3 x 3 voxels of 1 mm around ``centre``."""
    affine = torch.eye(4)
    affine[:3, :3] = torch.eye(3) if axes is None else axes
    affine[:3, 3] = torch.tensor(centre, dtype=torch.float32) - affine[:3, :3].sum(1)
    return Grid((3, 3, 3), affine)


def test_a_curve_passes_through_its_control_points(generator):
    controls = torch.rand(2, 5, 3, generator=generator)
    curve = catmull_rom(controls, 41)
    torch.testing.assert_close(curve[:, ::10], controls)


@pytest.mark.parametrize(('place', 'axis', 'name'), LANDMARKS)
def test_main_bundles_run_as_in_a_textbook(bundles, unmoved, place, axis, name):
    everywhere = torch.ones(3, 3, 3, dtype=torch.bool)
    found = fibres_at(bundles, unmoved, small_grid(place), everywhere)
    main = found.directions[0, :, 13].abs()
    assert int(main.argmax()) == axis, name
    assert main[axis] > 0.75, name


def test_directions_are_unit_vectors_and_shares_sum_to_one(bundles, head):
    affine = torch.diag(torch.tensor([8.0, 8.0, 8.0, 1.0]))
    affine[:3, 3] = -60
    grid = Grid((15, 15, 15), affine)
    found = fibres_at(bundles, head, grid, torch.ones(grid.shape, dtype=torch.bool))
    lengths = found.directions.norm(dim=1)[found.shares > 1e-3]
    torch.testing.assert_close(lengths, torch.ones_like(lengths))
    torch.testing.assert_close(found.shares.sum(0), torch.ones(15**3))
    assert (found.shares.diff(dim=0) <= 0).all()


def test_a_turned_head_has_turned_fibres(bundles, unmoved):
    turn = rotation(torch.tensor([0.0, 0.0, 30.0]))
    back = torch.eye(4)
    back[:3, :3] = turn.T
    turned = replace(unmoved, affine=back)
    place = torch.tensor([24.0, -13.0, 12.0])
    everywhere = torch.ones(3, 3, 3, dtype=torch.bool)
    before = fibres_at(bundles, unmoved, small_grid(place.tolist()), everywhere)
    after = fibres_at(bundles, turned, small_grid((turn @ place).tolist(), turn), everywhere)
    expected = torch.einsum('ij,fjv->fiv', turn, before.directions)
    torch.testing.assert_close(after.directions[0], expected[0], atol=1e-3, rtol=0)


def test_near_candidates_merge_up_to_sign_and_weak_ones_do_not_count():
    x, y, z = torch.eye(3)
    tilted = torch.nn.functional.normalize(x + 0.2 * y, dim=0)
    candidates = torch.stack([x, -tilted, y, z])[:, :, None]
    directions, shares = resolve(candidates, torch.tensor([0.35, 0.2, 0.4, 0.05])[:, None])
    torch.testing.assert_close(shares[:, 0], torch.tensor([0.55, 0.4, 0.0]))
    assert directions[0, 0].abs() > 0.99
    torch.testing.assert_close(directions[1, :, 0], y)
    assert (directions[2] == 0).all()
