"""Voxel axes keep their handedness; a turn moves voxels as it moves the world."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from bidsapp.physics.geometry import (
    ALL_TURNS,
    MIRRORED,
    grid_axes,
    nearest_rotation,
    turned_voxels,
    voxel_sizes,
)

OBLIQUE = Rotation.from_euler('xyz', [20, -35, 50], degrees=True).as_matrix()
AFFINES = {
    'right-handed': np.diag([2.0, 2, 3, 1]),
    'left-handed': np.diag([-2.0, 2, 3, 1]),
    'oblique': np.block(
        [[OBLIQUE @ np.diag([2.0, 2, 3]), np.array([[4.0], [5], [6]])], [np.zeros((1, 3)), 1]]
    ),
    'oblique left-handed': np.block(
        [[OBLIQUE @ np.diag([2.0, -2, 3]), np.zeros((3, 1))], [np.zeros((1, 3)), 1]]
    ),
    'permuted': np.array([[0, 0, 3.0, 0], [-2, 0, 0, 0], [0, 2, 0, 0], [0, 0, 0, 1]]),
}


@pytest.fixture(params=AFFINES.values(), ids=AFFINES.keys())
def affine(request):
    return request.param


def test_grid_axes_are_orthonormal_and_keep_handedness(affine):
    sheared = affine.copy()
    sheared[:3, 0] += 0.02 * sheared[:3, 1]
    axes = grid_axes(sheared)
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-12)
    assert np.linalg.det(axes) * np.linalg.det(sheared[:3, :3]) > 0
    assert (np.diag(axes.T @ grid_axes(affine)) > 0.99).all()
    np.testing.assert_allclose(sorted(voxel_sizes(affine)), [2, 2, 3])


@pytest.mark.parametrize('scale', [1.0, 1.1])
def test_nearest_rotation(rng, scale):
    turn = Rotation.random(random_state=rng).as_matrix()
    np.testing.assert_allclose(nearest_rotation(scale * turn), turn, atol=1e-12)
    mirror = nearest_rotation(turn @ np.diag([1, 1, -0.5]))
    assert np.linalg.det(mirror) == pytest.approx(1)


def test_all_turns_are_the_48_and_the_first_changes_nothing():
    matrices = np.array(ALL_TURNS)
    assert len(set(ALL_TURNS)) == 48
    assert (np.abs(matrices).sum(1) == 1).all()
    assert (np.abs(matrices).sum(2) == 1).all()
    assert sorted(np.linalg.det(matrices).round()) == [-1] * 24 + [1] * 24
    assert ALL_TURNS[0] == MIRRORED[0] == ((1, 0, 0), (0, 1, 0), (0, 0, 1))
    assert set(MIRRORED) <= set(ALL_TURNS)


@pytest.mark.parametrize('turn', ALL_TURNS[::5])
def test_a_voxel_goes_where_the_turn_takes_it_from_the_middle(turn):
    """And back again by the transposed turn."""
    shape = np.array([4, 5, 6])
    volume = torch.arange(2 * 4 * 5 * 6).reshape(2, 4, 5, 6)
    moved = turned_voxels(volume, turn)
    matrix = np.array(turn)
    assert moved.shape[1:] == tuple(np.abs(matrix) @ shape)
    for index in ((0, 0, 0), (3, 1, 2), (2, 4, 5)):
        there = matrix @ (np.array(index) - (shape - 1) / 2) + (np.array(moved.shape[1:]) - 1) / 2
        i, j, k = there.round().astype(int)
        assert torch.equal(moved[:, i, j, k], volume[:, *index])
    assert torch.equal(turned_voxels(moved, tuple(zip(*turn, strict=True))), volume)
