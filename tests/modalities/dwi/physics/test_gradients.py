"""Frames of gradient tables, shells that are never rounded, and each defect by its code."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from bidsapp.modalities.dwi.physics.acquisition import acquisition
from bidsapp.modalities.dwi.physics.gradients import (
    GradientTable,
    from_fsl,
    in_grid,
    n_unique,
    rotated,
    shells,
    tensor_design,
    to_fsl,
)
from bidsapp.modalities.dwi.physics.harmonics import fibonacci_hemisphere
from bidsapp.modalities.dwi.physics.tables import examine
from bidsapp.physics.geometry import grid_axes

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


def stored(n=12, n_b0=1):
    """(3, N) and (N,) a sound table as it stands beside an image."""
    bvecs = np.vstack([np.zeros((n_b0, 3)), fibonacci_hemisphere(n)]).T
    return bvecs, np.r_[np.zeros(n_b0), np.full(n, 1000.0)]


def test_bids_sign_rule_in_words():
    """A gradient stored as (1, 0, 0): on a right-handed RAS grid it points to -x, on LAS to -x.

    With det > 0 the first component is reversed; with voxel x running to the left and det < 0 it
    is not, and left is -x.
    """
    along_x = np.array([[1.0], [0], [0]])
    for name in ('right-handed', 'left-handed'):
        gtab = from_fsl(along_x, np.array([1000.0]), AFFINES[name])
        np.testing.assert_allclose(gtab.bvecs, [[-1, 0, 0]], atol=1e-12)
    along_y = np.array([[0.0], [1], [0]])
    for name in ('right-handed', 'left-handed'):
        gtab = from_fsl(along_y, np.array([1000.0]), AFFINES[name])
        np.testing.assert_allclose(gtab.bvecs, [[0, 1, 0]], atol=1e-12)


def test_fibre_along_world_x_comes_out_along_world_x(affine):
    """The stored table is made here from voxel axes and the written rule, not by to_fsl."""
    bvecs, bvals = stored(30)
    world = bvecs.T
    attenuation = np.exp(-bvals * 1e-3 * (0.3 + 1.4 * world[:, 0] ** 2))
    unit_axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    along_image = np.linalg.solve(unit_axes, world.T)
    if np.linalg.det(affine[:3, :3]) > 0:
        along_image[0] *= -1
    design = tensor_design(from_fsl(along_image, bvals, affine))
    xx, yy, zz, xy, xz, yz, _ = np.linalg.lstsq(design, np.log(attenuation), rcond=None)[0]
    tensor = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
    np.testing.assert_allclose(tensor, np.diag([1.7, 0.3, 0.3]), atol=1e-9)


def test_fsl_round_trip(affine):
    bvecs, bvals = stored()
    back = to_fsl(from_fsl(bvecs, bvals, affine), affine)
    np.testing.assert_allclose(back, bvecs, atol=1e-12)


def test_b0_has_a_zero_vector_and_others_unit_length(affine):
    bvecs, bvals = stored()
    bvecs[:, 0] = [0.3, 0.2, 0.1]
    bvecs[:, 1:] *= 1.02
    bvals[0] = 5
    gtab = from_fsl(bvecs, bvals, affine)
    assert not gtab.bvecs[0].any()
    np.testing.assert_allclose(np.linalg.norm(gtab.bvecs[1:], axis=1), 1)
    np.testing.assert_array_equal(gtab.bvals, bvals)


def test_in_grid_follows_the_voxel_axes(affine):
    """A gradient along the world direction of voxel axis j is the unit vector e_j in the grid."""
    gtab = GradientTable(grid_axes(affine).T, np.full(3, 1000.0))
    np.testing.assert_allclose(in_grid(gtab, affine).bvecs, np.eye(3), atol=1e-12)


def test_rotations_act_volume_by_volume(rng):
    gtab = GradientTable(fibonacci_hemisphere(5), np.full(5, 1000.0))
    turns = Rotation.random(5, random_state=rng).as_matrix()
    turned = rotated(gtab, turns)
    for before, after, turn in zip(gtab.bvecs, turned.bvecs, turns, strict=True):
        np.testing.assert_allclose(after, turn @ before)
    quarter = Rotation.from_euler('z', 90, degrees=True).as_matrix()
    x = GradientTable(np.eye(3)[:1], np.array([1000.0]))
    np.testing.assert_allclose(rotated(x, quarter).bvecs, [[0, 1, 0]], atol=1e-12)


def test_shells_keep_b400_apart_and_are_not_rounded():
    bvals = np.array([0, 400, 400, 1000, 995, 1005, 3000, 0, 2990])
    found = shells(bvals)
    np.testing.assert_allclose([b for b, _ in found], [400, 1000, 2995])
    np.testing.assert_array_equal(found[0][1], [1, 2])
    np.testing.assert_array_equal(found[2][1], [6, 8])


def test_shell_of_odd_values_keeps_its_mean():
    ((b, members),) = shells(np.array([0, 929.75, 931.25, 1.25]))
    assert b == pytest.approx(930.5)
    np.testing.assert_array_equal(members, [1, 2])


def test_no_shells_without_weighting():
    assert shells(np.array([0.0, 5, 10])) == []


def test_antipodes_and_repeats_count_once():
    directions = fibonacci_hemisphere(8)
    assert n_unique(np.vstack([directions, -directions, directions[:3]])) == 8


def test_acquisition_counts_each_shell():
    directions = fibonacci_hemisphere(12)
    gtab = GradientTable(
        np.vstack([np.zeros((2, 3)), directions, directions[:6]]),
        np.r_[0, 0, np.full(12, 1000.0), np.full(6, 400.0)],
    )
    facts = acquisition(gtab)
    assert facts.directions == 12
    assert facts.shells == ((400.0, 6), (1000.0, 12))
    assert facts.best_shell == (1000.0, 12)
    assert facts.condition < 10
    flat = GradientTable(np.eye(3)[np.arange(9) % 3], np.full(9, 1000.0))
    assert acquisition(flat).condition > 1e6


def codes(bvecs, bvals, n_volumes=None):
    found = examine(bvecs, bvals, len(bvals) if n_volumes is None else n_volumes)
    return {finding.code: finding.severity for finding in found.findings}


def test_a_sound_table_raises_no_finding():
    assert codes(*stored(12)) == {}


def test_a_transposed_table_is_turned_with_a_warning():
    bvecs, bvals = stored(12)
    found = examine(bvecs.T, bvals, 13)
    np.testing.assert_array_equal(found.bvecs, bvecs)
    assert [(f.severity, f.code) for f in found.findings] == [('warning', 'BVEC_TRANSPOSED')]


def test_a_table_of_three_volumes_is_not_turned():
    found = examine(np.arange(9.0).reshape(3, 3), np.array([0, 1000.0, 1000]), 3)
    np.testing.assert_array_equal(found.bvecs, np.arange(9).reshape(3, 3))


def spoil(name):
    """(bvecs, bvals, number of volumes) with one planted defect."""
    bvecs, bvals = stored(12, n_b0=1)
    n = len(bvals)
    match name:
        case 'BVAL_COUNT':
            bvals = bvals[:-1]
        case 'BVEC_COUNT':
            bvecs = bvecs[:, :-1]
        case 'GRADIENT_NAN':
            bvecs[1, 3] = np.nan
        case 'BVAL_NEGATIVE':
            bvals[4] = -1000
        case 'ZERO_GRADIENT':
            bvecs[:, 5] = 0
        case 'ALL_B0':
            bvals[:] = 0
        case 'NO_B0':
            bvecs, bvals, n = bvecs[:, 1:], bvals[1:], n - 1
        case 'NORM':
            bvecs[:, 2] *= 0.8
        case 'TOO_FEW_DIRECTIONS':
            bvecs, bvals, n = bvecs[:, :6], bvals[:6], 6
        case 'REPEATED_DIRECTIONS':
            bvecs[:, 6] = -bvecs[:, 7]
    return bvecs, bvals, n


@pytest.mark.parametrize(
    ('code', 'severity'),
    [
        ('BVAL_COUNT', 'error'),
        ('BVEC_COUNT', 'error'),
        ('GRADIENT_NAN', 'error'),
        ('BVAL_NEGATIVE', 'error'),
        ('ZERO_GRADIENT', 'error'),
        ('ALL_B0', 'error'),
        ('NO_B0', 'error'),
        ('NORM', 'warning'),
        ('TOO_FEW_DIRECTIONS', 'error'),
        ('REPEATED_DIRECTIONS', 'warning'),
    ],
)
def test_each_defect_is_found_by_its_code_alone(code, severity):
    assert codes(*spoil(code)) == {code: severity}


def test_six_directions_in_one_plane_are_too_few():
    phi = np.arange(8) * np.pi / 8
    bvecs = np.stack([np.cos(phi), np.sin(phi), 0 * phi])
    bvecs, bvals = np.hstack([np.zeros((3, 1)), bvecs]), np.r_[0, np.full(8, 1000.0)]
    assert codes(bvecs, bvals) == {'TOO_FEW_DIRECTIONS': 'error'}


def test_b_of_exactly_the_threshold_counts_as_b0():
    bvecs, bvals = stored(12)
    bvals[0] = 50
    assert codes(bvecs, bvals) == {}
    found = examine(bvecs, bvals, 13)
    assert found.b0_threshold == 50
    assert from_fsl(found.bvecs, found.bvals, np.eye(4), 50).b0.sum() == 1


@pytest.mark.parametrize('b', [50.5, 65, 100])
def test_the_lowest_shell_serves_as_b0_where_none_is_below(b):
    bvecs, bvals = stored(12, n_b0=2)
    bvals[:2] = b - 0.25, b
    assert codes(bvecs, bvals) == {'B0_LOWEST_SHELL': 'warning'}
    found = examine(bvecs, bvals, 14)
    table = from_fsl(found.bvecs, found.bvals, np.eye(4), found.b0_threshold)
    assert found.b0_threshold == b
    assert table.b0.tolist() == [True, True] + [False] * 12
    assert [(b, len(i)) for b, i in table.shells()] == [(1000, 12)]
    assert table[table.b0].b0.all()
    assert in_grid(table, np.eye(4)).b0.sum() == 2


def test_no_lowest_shell_above_100_serves_and_the_option_that_would_help_is_named():
    bvecs, bvals = stored(12)
    bvals[0] = 101
    found = examine(bvecs, bvals, 13)
    assert [f.code for f in found.findings] == ['NO_B0']
    assert '--b0-threshold' in found.errors[0]
    assert not examine(bvecs, bvals, 13, b0_threshold=101).errors


def test_a_low_shell_beside_b0_stays_weighted():
    bvecs, bvals = stored(12)
    bvals[1:4] = 60
    found = examine(bvecs, bvals, 13)
    assert (found.bvals > found.b0_threshold).sum() == 12


@pytest.mark.parametrize('known', [True, False])
def test_the_b_of_what_serves_as_b0_is_in_the_design(known, affine):
    """Without its direction exact for a ball, with it for any tensor."""
    bvecs, bvals = stored(30, n_b0=1)
    bvals[0] = 100
    bvecs[:, 0] = [0.6, 0.8, 0] if known else 0
    table = from_fsl(bvecs, bvals, affine, 100)
    spread = np.diag([1.7, 0.4, 0.2]) if known else 3 * np.eye(3)
    adc = np.einsum('ni,ij,nj->n', table.bvecs, spread, table.bvecs)
    if not known:
        adc[0] = 3
    signal = np.exp(-table.bvals * 1e-3 * adc)
    found = np.linalg.lstsq(tensor_design(table), np.log(signal), rcond=None)[0]
    np.testing.assert_allclose(found[[0, 1, 2, 6]], [*np.diag(spread), 0], atol=1e-9)


def test_vectors_that_are_no_numbers_are_zero_at_b0_and_an_error_elsewhere():
    bvecs, bvals = stored(12, n_b0=2)
    bvecs[:, :2] = np.nan
    assert codes(bvecs, bvals) == {}
    assert not examine(bvecs, bvals, 14).bvecs[:, :2].any()
    bvecs[:, 5] = np.nan
    assert codes(bvecs, bvals) == {'GRADIENT_NAN': 'error'}


def test_averages_at_the_end_are_left_out_and_said():
    bvecs, bvals = stored(12)
    bvecs = np.hstack([bvecs, np.zeros((3, 2))])
    bvals = np.r_[bvals, 1000, 1000]
    found = examine(bvecs, bvals, 15)
    assert [(f.severity, f.code) for f in found.findings] == [('warning', 'TRACE_IMAGE')]
    np.testing.assert_array_equal(found.kept, np.arange(13))
    assert found.bvecs.shape == (3, 13)
    assert len(found.bvals) == 13


def test_averages_alone_are_no_scan():
    bvals = np.array([0, 1000.0, 1000])
    assert codes(np.zeros((3, 3)), bvals) == {'ZERO_GRADIENT': 'error'}
