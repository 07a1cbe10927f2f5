from __future__ import annotations

import pytest
import torch

from bidsapp.simulate.grids import (
    Grid,
    blurred,
    jacobian,
    moved,
    rigid,
    rotation,
    sample,
    smooth_field,
)


@pytest.fixture
def oblique_grid():
    affine = torch.eye(4)
    affine[:3, :3] = rotation(torch.tensor([10.0, -20.0, 5.0])) @ torch.diag(
        torch.tensor([-2.0, 3.0, 2.5])
    )
    affine[:3, 3] = torch.tensor([30.0, -20.0, 10.0])
    return Grid((8, 6, 10), affine)


def test_sampling_at_the_voxels_changes_nothing(oblique_grid, generator):
    volume = torch.rand(2, 8, 6, 10, generator=generator)
    torch.testing.assert_close(sample(volume, oblique_grid, oblique_grid.points()), volume)


def test_blocks_of_the_refined_grid_are_the_voxels(oblique_grid):
    fine = oblique_grid.refined(2)
    assert fine.spacing == pytest.approx([1.0, 1.5, 1.25], rel=1e-5)
    centres = torch.nn.functional.avg_pool3d(fine.points()[None], 2)[0]
    torch.testing.assert_close(centres, oblique_grid.points(), atol=1e-4, rtol=0)


def test_jacobian_of_a_linear_map_is_its_matrix(oblique_grid):
    matrix = torch.tensor([[1.0, 0.2, 0.0], [0.0, 0.9, -0.1], [0.3, 0.0, 1.1]])
    mapped = torch.tensordot(matrix, oblique_grid.points(), dims=1)
    found = jacobian(mapped, oblique_grid)
    torch.testing.assert_close(found, matrix.expand_as(found), atol=1e-4, rtol=0)


def test_a_smooth_field_has_unit_variance_and_the_stated_correlation(generator):
    axes = [torch.arange(0.0, 100, 5)] * 3
    field = smooth_field(axes, 10.0, 60, generator)
    assert float(field.var()) == pytest.approx(1, abs=0.1)
    assert float(field[:, 0, 0].square().mean()) == pytest.approx(1, abs=0.2)  # at the edge too
    at_20_mm = (field[:, 4:] * field[:, :-4]).mean()
    assert float(at_20_mm) == pytest.approx(2.718281828**-1, abs=0.08)


def test_positive_rotation_about_z_takes_x_to_y():
    turn = rigid(torch.tensor([0.0, 0, 90]), torch.tensor([0.0, 0, 3]), torch.tensor([1.0, 0, 0]))
    out = moved(turn, torch.tensor([[2.0], [0.0], [0.0]]))
    torch.testing.assert_close(out, torch.tensor([[1.0], [1.0], [3.0]]))


def test_a_blur_keeps_the_sum_and_what_is_flat():
    volume = torch.randn(2, 6, 7, 8, generator=torch.Generator().manual_seed(0))
    soft = blurred(volume, (0.2, 0.0, 0.1))
    assert torch.allclose(soft.sum((1, 2, 3)), volume.sum((1, 2, 3)), atol=1e-3)
    assert soft.var() < volume.var()
    flat = torch.full((1, 4, 4, 4), 0.7)
    assert torch.allclose(blurred(flat, (0.2, 0.2, 0.2)), flat)
