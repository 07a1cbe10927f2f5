"""Motion correction of a head whose displacements are known and computed, not interpolated."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from bidsapp.modalities.dwi.physics.gradients import GradientTable
from bidsapp.modalities.dwi.physics.harmonics import fibonacci_hemisphere
from bidsapp.modalities.dwi.physics.motion import (
    Motion,
    apply_motion,
    confounds,
    correct_motion,
    estimate_motion,
    framewise_displacement,
    head_motion,
)
from bidsapp.modalities.dwi.physics.outliers import none
from bidsapp.modalities.dwi.physics.volumes import unusable
from bidsapp.physics.resampling import Warp, stretches
from bidsapp.problems import BadData

#: Centre in mm, radii in mm, fibre direction, (axial, radial) diffusivity µm²/ms, S0.
TISSUES = (
    ((0, 0, 0), (42, 48, 38), (1, 0, 0), (0.9, 0.8), 0.8),  # cortex
    ((0, 2, 2), (35, 41, 31), None, (1.4, 0.5), 0.65),  # white matter, fibres every way
    ((12, 16, 6), (14, 16, 10), (0.5, 0.8, 0.2), (1.7, 0.3), 0.6),
    ((-14, -8, 8), (12, 20, 12), (0, 1, 0), (1.7, 0.3), 0.65),
    ((4, 0, -14), (22, 8, 8), (1, 0, 0), (1.7, 0.25), 0.6),
    ((-8, 12, 2), (5, 14, 7), (0, 0, 1), (3.0, 3.0), 1.6),  # ventricles
    ((9, 8, 4), (5, 12, 7), (0, 0, 1), (3.0, 3.0), 1.6),
)
SKULL_CSF = ((0, 0, 0), (45, 51, 41), (0, 0, 1), (3.0, 3.0), 1.5)


#: Wave vectors in rad/mm: ripples of about 25 mm that make the surfaces folded, as a cortex is.
FOLDS = np.array([(2, 1, 0), (-1, 2, 1), (0, -1, 2), (2, -1, 1), (1, 1, -2), (-1, 1, 2)]) * 0.11


def folds(points):
    """(…,) mm by which a surface bulges at ``points``."""
    return 1.2 * np.sin(points @ FOLDS.T + np.arange(6)).sum(-1)


def inside(points, centre, radii, bulge, width=1.2):
    """1 in an ellipsoid with bulges, 0 outside, with an edge of some ``width`` mm."""
    offset = (points - np.array(centre)) / np.array(radii)
    distance = (np.linalg.norm(offset, axis=-1) - 1) * min(radii)
    return 1 / (1 + np.exp(np.clip((distance + bulge) / width, -50, 50)))


def head(points, g, b):
    """Signal at ``points`` (…, 3) mm in the head's own frame, for one gradient in that frame."""
    signal, bulge = np.zeros(points.shape[:-1]), folds(points)
    swirl = np.sin(points @ FOLDS[:3].T / 2 + np.arange(3))
    for centre, radii, fibre, (axial, radial), s0 in (SKULL_CSF, *TISSUES):
        along = swirl if fibre is None else np.array(fibre)
        along = along / (np.linalg.norm(along, axis=-1, keepdims=True) + 1e-9)
        tissue = s0 * np.exp(-b * 1e-3 * (radial + (axial - radial) * (along @ g) ** 2))
        share = inside(points, centre, radii, bulge)
        signal = signal * (1 - share) + share * tissue
    return signal


@dataclass
class Run:
    data: np.ndarray
    affine: np.ndarray
    gtab: GradientTable
    mask: np.ndarray
    warp: Warp
    parameters: np.ndarray


def grid_points(affine, shape):
    index = np.moveaxis(np.indices(shape), 0, -1)
    return index @ affine[:3, :3].T + affine[:3, 3]


RAS = np.diag([3.0, 3.0, 3.0, 1.0])
RAS[:3, 3] = -57


def table(n_b0=2, n=30, b=1000.0, full_sphere=False):
    vectors = fibonacci_hemisphere(n)
    if full_sphere:
        vectors = vectors * np.where(np.arange(n) % 2, 1, -1)[:, None]
    vectors = np.vstack([np.zeros((n_b0, 3)), vectors])
    return GradientTable(vectors, np.r_[np.zeros(n_b0), np.full(n, b)])


def scan(rng, parameters, gtab, affine=RAS, shape=(39, 39, 39), snr=25.0, axis='j'):
    """The head measured with each volume displaced by ``parameters`` about the world's origin."""
    warp = Warp(np.zeros(3), stretches(affine, axis))
    points = grid_points(affine, shape)
    data = np.empty((*shape, len(gtab)), np.float32)
    rotations, volume = warp.rotations(parameters), np.linalg.det(warp.distortions(parameters))
    for n, matrix in enumerate(np.linalg.inv(warp.matrices(parameters))):
        rest = points @ matrix[:3, :3].T + matrix[:3, 3]
        signal = head(rest, rotations[n].T @ gtab.bvecs[n], gtab.bvals[n]) / volume[n]
        noise = rng.normal(scale=0.7 / snr, size=(2, *shape))
        data[..., n] = 500 * np.hypot(signal + noise[0], noise[1])
    mask = inside(points, *SKULL_CSF[:2], folds(points)) > 0.5
    return Run(data, affine, gtab, mask, warp, parameters)


def moved(rng, gtab):
    """Head motion (1 mm, 1°) and eddy currents that follow the gradient; the first b0 rests."""
    parameters = np.zeros((len(gtab), 9))
    parameters[:, :3] = rng.normal(size=(len(gtab), 3))
    parameters[:, 3:6] = np.deg2rad(rng.normal(size=(len(gtab), 3)))
    parameters[:, 6:] = gtab.bvecs @ rng.normal(scale=0.015, size=(3, 3))
    parameters[:, 1] += gtab.bvecs @ rng.normal(scale=1.0, size=3)
    parameters[0] = 0
    return parameters


def errors(run, result):
    """Per volume: median displacement error in the brain (mm) and rotation error (degrees)."""
    points = grid_points(run.affine, run.mask.shape)[run.mask]
    mine = Warp(points.mean(0), run.warp.generators)
    true, found = run.warp.matrices(run.parameters), mine.matrices(result.parameters)
    apart = (found - true)[:, :3, :3] @ points.T + (found - true)[:, :3, 3:]
    turn = run.warp.rotations(run.parameters).swapaxes(1, 2) @ mine.rotations(result.parameters)
    angle = np.rad2deg(Rotation.from_matrix(turn).magnitude())
    return np.median(np.linalg.norm(apart, axis=1), axis=1), angle


@pytest.fixture(scope='module')
def run():
    rng = np.random.default_rng(3)
    gtab = table()
    return scan(rng, moved(rng, gtab), gtab)


@pytest.fixture(scope='module')
def corrected(run):
    return correct_motion(run.data, run.affine, run.gtab, run.mask, 'j')


def test_displacement_is_found_to_a_third_of_a_millimetre(run, corrected):
    before = np.zeros_like(run.parameters)
    distance, angle = errors(run, corrected)
    assert np.median(errors(run, replace(corrected, parameters=before))[0]) > 1
    assert np.median(distance) < 1 / 3
    assert distance.max() < 0.4
    assert np.median(angle) < 0.3
    assert angle.max() < 0.5


def test_eddy_currents_are_found(run, corrected):
    error = corrected.parameters[:, 6:] - run.parameters[:, 6:]
    assert run.parameters[:, 6:].std() > 0.005
    assert np.sqrt((error**2).mean()) < 0.004


def test_first_b0_is_the_space_and_b0_volumes_move_rigidly(run, corrected):
    assert not corrected.parameters[0].any()
    np.testing.assert_array_equal(corrected.data[..., 0], run.data[..., 0])
    assert not corrected.parameters[1, 6:].any()


def test_volumes_agree_as_if_the_head_had_rested(run, corrected):
    rest = scan(np.random.default_rng(4), np.zeros_like(run.parameters), run.gtab)
    weighted = ~run.gtab.b0
    still = estimate_motion(rest.data, rest.affine, rest.gtab, run.mask, 'j', None, rounds=1)
    floor = still.residual_before[weighted].mean()
    assert (corrected.residual_after < corrected.residual_before)[weighted].all()
    assert corrected.residual_before[weighted].mean() > 1.3 * floor
    assert corrected.residual_after[weighted].mean() < 1.1 * floor


def test_a_stretched_image_regains_its_brightness(run, corrected):
    still = np.zeros_like(run.parameters)
    rest = scan(np.random.default_rng(4), still, corrected.gtab, snr=1e6)
    core = ndimage.binary_erosion(run.mask, iterations=4)
    ratio = corrected.data[core].mean(0) / rest.data[core].mean(0)
    assert run.parameters[:, 6].std() > 0.004
    assert ratio.std() < 0.002


def test_a_head_that_rests_is_left_alone(rng):
    gtab = table(n=15)
    run = scan(rng, np.zeros((len(gtab), 9)), gtab)
    result = correct_motion(run.data, run.affine, gtab, run.mask, 'j')
    assert errors(run, result)[0].max() < 0.1


def test_three_millimetres_to_the_right_are_plus_three_and_gradients_turn_back(rng):
    gtab = table(n=15)
    parameters = np.zeros((len(gtab), 9))
    parameters[8, 0] = 3.0
    parameters[12, 5] = np.deg2rad(8)
    run = scan(rng, parameters, gtab)
    result = correct_motion(run.data, run.affine, gtab, run.mask, 'j')
    assert abs(result.parameters[8, 0] - 3) < 0.25
    assert abs(np.rad2deg(result.parameters[12, 5]) - 8) < 0.4
    # The head turned from x towards y: to the head, the gradient turned from y towards x.
    felt = Rotation.from_rotvec([0, 0, -np.deg2rad(8)]).apply(gtab.bvecs[12])
    assert np.rad2deg(np.arccos(result.gtab.bvecs[12] @ felt)) < 0.4
    jump = result.framewise_displacement[[8, 9, 12, 13]]
    np.testing.assert_allclose(jump, np.r_[3, 3, [np.deg2rad(8) * 50] * 2], atol=0.7)


def test_weighted_volumes_that_all_moved_are_brought_to_the_b0(rng):
    gtab = table(n=15, full_sphere=True)
    parameters = np.zeros((len(gtab), 9))
    parameters[2:, :6] = (4, -1, 3.5, 0.02, -0.03, 0.02)  # less would not be told from an error
    parameters[2:, :3] += rng.normal(scale=0.3, size=(15, 3))
    run = scan(rng, parameters, gtab)
    distance, _ = errors(run, correct_motion(run.data, run.affine, gtab, run.mask, 'j'))
    assert distance.max() < 0.4


def test_motion_is_corrected_beside_an_empty_volume(rng):
    """An empty volume is left out before; what is left of the run is corrected as ever."""
    gtab = table(n=15)
    parameters = np.zeros((len(gtab), 9))
    parameters[6:, 0] = 1.2  # mm, for the rest of the run
    run = scan(rng, parameters, gtab)
    run.data[..., 10] = 0
    assert set(unusable(run.data, gtab)) == {10}
    stay = np.setdiff1d(np.arange(len(gtab)), 10)
    kept = replace(run, data=run.data[..., stay], gtab=gtab[stay], parameters=parameters[stay])
    result = correct_motion(kept.data, run.affine, kept.gtab, run.mask, 'j', rounds=2)
    assert errors(kept, result)[0].max() < 0.4
    assert (result.parameters[6:, 0] > 0.8).all()


@pytest.mark.parametrize('name', ['left-handed', 'oblique, axes swapped'])
def test_the_grid_does_not_matter(run, corrected, name):
    data, affine, mask, axis = run.data, run.affine.copy(), run.mask, 'j'
    turn = np.eye(3)
    if name == 'left-handed':
        data, mask = data[::-1], mask[::-1]
        affine[:3, 3] += affine[:3, 0] * (len(mask) - 1)
        affine[:3, 0] *= -1
    else:
        data, mask, axis = data.transpose(1, 2, 0, 3), mask.transpose(1, 2, 0), 'i-'
        turn = Rotation.from_rotvec([0.2, -0.1, 0.3]).as_matrix()
        affine = affine[:, [1, 2, 0, 3]]
        affine[:3] = turn @ affine[:3]
    gtab = GradientTable(run.gtab.bvecs @ turn.T, run.gtab.bvals)
    result = correct_motion(data, affine, gtab, mask, axis)
    translation, rotation = result.parameters[:, :3] @ turn, result.parameters[:, 3:6] @ turn
    np.testing.assert_allclose(translation, corrected.parameters[:, :3], atol=0.1)
    np.testing.assert_allclose(rotation, corrected.parameters[:, 3:6], atol=3e-3)
    np.testing.assert_allclose(result.gtab.bvecs @ turn, corrected.gtab.bvecs, atol=5e-3)


def test_without_a_phase_encoding_axis_the_result_is_nearly_as_good(run):
    result = correct_motion(run.data, run.affine, run.gtab, run.mask, None)
    points = grid_points(run.affine, run.mask.shape)[run.mask]
    mine = Warp(points.mean(0), stretches(run.affine, None)).matrices(result.parameters)
    apart = mine - run.warp.matrices(run.parameters)
    distance = np.linalg.norm(apart[:, :3, :3] @ points.T + apart[:, :3, 3:], axis=1)
    assert np.median(distance) < 0.35


def test_six_directions_and_one_b0_are_improved(rng):
    gtab = table(n_b0=1, n=6)
    run = scan(rng, moved(rng, gtab), gtab)
    result = correct_motion(run.data, run.affine, gtab, run.mask, 'j')
    distance, _ = errors(run, result)
    before, _ = errors(run, replace(result, parameters=np.zeros_like(run.parameters)))
    assert np.median(distance[1:]) < 0.5 * np.median(before[1:])
    assert (result.residual_after <= result.residual_before).all()


def test_framewise_displacement_counts_a_radian_as_fifty_millimetres():
    parameters = np.zeros((3, 9))
    parameters[1] = (1, -2, 0, 0.01, 0, 0, 9, 9, 9)
    np.testing.assert_allclose(framewise_displacement(parameters), [0, 3.5, 3.5])


def test_a_shift_that_follows_the_gradient_along_the_phase_axis_is_no_motion(rng):
    """Eddy currents shift the image; a head that nods or drifts does not know the gradient."""
    gtab = table(n=40, full_sphere=True)
    parameters = np.zeros((len(gtab), 9))
    parameters[:, 1] = gtab.bvecs @ (1.5, -2.0, 1.0)
    warp = Warp(np.zeros(3), stretches(RAS, 'j'))
    left = head_motion(parameters, warp, gtab)
    assert np.abs(left).max() < 0.1 * np.abs(parameters).max()
    across = np.roll(parameters, 1, axis=1)  # along z: no eddy current does that
    np.testing.assert_array_equal(head_motion(across, warp, gtab), across[:, :6])
    drift = np.zeros_like(parameters)
    drift[:, 1] = np.linspace(0, 3, len(gtab))
    assert np.abs(head_motion(drift, warp, gtab) - drift[:, :6]).max() < 1.2


def given(parameters, gtab, affine=RAS, axis='j', centre=(0.0, 0.0, 0.0)):
    """Motion that is known, of a run without outliers."""
    n = len(parameters)
    warp = Warp(np.array(centre), stretches(affine, axis))
    unknown = np.zeros(n)
    steps = framewise_displacement(parameters)
    return Motion(parameters, warp, gtab, steps, unknown, unknown, none(n, 2))


def soft_blob(places):
    """A Gaussian of 2.5 voxels at the middle of 24³ voxels; ``places`` (…, 3) indices."""
    return 100 * np.exp(-((places - 11.5) ** 2).sum(-1) / (2 * 2.5**2))


def test_motion_and_susceptibility_are_one_interpolation():
    shape = (24, 24, 24)
    affine = np.diag([2.0, 2.5, 3.0, 1.0])
    parameters = np.zeros((1, 9))
    parameters[0] = (2, -1, 1.5, 0.05, -0.04, 0.08, 0.03, 0.02, -0.01)
    motion = given(parameters, table(1, 0), affine, centre=(23.0, 28.75, 34.5))
    index = np.moveaxis(np.indices(shape), 0, -1).astype(float)
    shift = (1.5 * np.sin(index[..., 1] / 6) * np.cos(index[..., 0] / 7)).astype(np.float32)
    places = index + shift[..., None] * [0, 1, 0]
    matrix = np.linalg.inv(affine) @ motion.warp.matrices(parameters)[0] @ affine
    places = places @ matrix[:3, :3].T + matrix[:3, 3]
    volume = 1 + np.gradient(shift, axis=1)
    expected = soft_blob(places) * volume * np.linalg.det(motion.warp.distortions(parameters)[0])
    raw = soft_blob(index)[..., None].astype(np.float32)
    found = apply_motion(raw, affine, motion, shift, 1)
    assert np.abs(found[..., 0] - raw[..., 0]).max() > 20
    assert np.abs(found[..., 0] - expected).max() < 0.2
    with pytest.raises(ValueError, match='axis'):
        apply_motion(raw, affine, motion, shift)


def test_a_stretch_conserves_signal_and_a_volume_at_rest_is_copied(rng):
    parameters = np.zeros((2, 9))
    parameters[1, 6] = 0.08
    motion = given(parameters, table(1, 1), np.eye(4), centre=(11.5,) * 3)
    index = np.moveaxis(np.indices((24, 24, 24)), 0, -1).astype(float)
    raw = np.stack([rng.normal(size=(24, 24, 24)), soft_blob(index)], -1).astype(np.float32)
    found = apply_motion(raw, np.eye(4), motion)
    np.testing.assert_array_equal(found[..., 0], raw[..., 0])
    np.testing.assert_allclose(found[..., 1].sum(), raw[..., 1].sum(), rtol=2e-3)
    assert abs(found[..., 1].max() / raw[..., 1].max() - 1.08) < 0.01


def test_confounds_are_columns_in_mm_and_rad():
    parameters = np.zeros((3, 9))
    parameters[1, :6] = (1, 2, 3, 0.1, 0.2, 0.3)
    columns = confounds(given(parameters, table(1, 2)))
    assert {len(column) for column in columns.values()} == {3}
    assert (columns['trans_z'][1], columns['rot_x'][1]) == (3, 0.1)
    assert np.isnan(columns['framewise_displacement'][0])
    np.testing.assert_allclose(columns['framewise_displacement'][1:], 6 + 50 * 0.6)
    assert not columns['outlier_slices'].any()


def test_a_run_without_b0_and_an_empty_mask_are_refused(run):
    with pytest.raises(BadData, match='b = 0'):
        correct_motion(run.data[..., 2:], run.affine, run.gtab[2:], run.mask, 'j')
    with pytest.raises(BadData, match='mask is empty'):
        correct_motion(run.data, run.affine, run.gtab, run.mask & False, 'j')
    with pytest.raises(ValueError, match='phase encoding'):
        correct_motion(run.data, run.affine, run.gtab, run.mask, 'AP')
