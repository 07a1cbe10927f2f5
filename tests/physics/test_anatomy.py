from __future__ import annotations

import tempfile

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from bidsapp.physics import alignment, anatomy, brain
from bidsapp.physics.template import template_maps
from bidsapp.problems import Unavailable

GRID = np.diag([4.0, 4.0, 4.0, 1.0])
GRID[:3, 3] = [-94, -110, -78]
SHAPE = (48, 56, 40)
T1W_GRID = np.diag([2.5, 2.5, 2.5, 1.0])
T1W_GRID[:3, 3] = [-98, -112, -90]
T1W_SHAPE = (80, 90, 74)


def parts(shape, affine, matrix=None):
    """(GM, WM, CSF, scalp) of a lopsided head, seen at ``matrix`` times each world point."""
    voxels = np.moveaxis(np.indices(shape), 0, -1)
    world = alignment.apply(affine, voxels)
    x, y, z = np.moveaxis(world if matrix is None else alignment.apply(matrix, world), -1, 0)
    bumps = 1 + 0.12 * np.sin(x / 11 + 1) * np.cos(y / 13) + 0.1 * np.sin(z / 10 + y / 17)
    radius = np.sqrt((x / 66) ** 2 + (y / 82) ** 2 + (z / 60) ** 2)
    csf = (np.sqrt(((x - 6) / 14) ** 2 + ((y + 5) / 32) ** 2 + ((z - 8) / 12) ** 2) < 1) | (
        (radius < 1) & (radius > 0.96)
    )
    white = (radius * bumps < 0.8) & ~csf
    grey = (radius <= 0.96) & ~white & ~csf
    return grey, white, csf, (radius > 1.1) & (radius < 1.2)


def images(matrix, affine=T1W_GRID, shape=T1W_SHAPE, seed=0):
    """(T1w on ``affine``, b0 on GRID); ``matrix`` takes world dMRI to world T1w."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, 3, shape), rng.normal(0, 3, SHAPE)
    t1w = sum(p * v for p, v in zip(parts(shape, affine), (60, 100, 20, 140), strict=True))
    b0 = sum(p * v for p, v in zip(parts(SHAPE, GRID, matrix), (60, 45, 160, 15), strict=True))
    return np.abs(t1w + noise[0]), np.abs(b0 + noise[1])


@pytest.fixture
def few_starts(monkeypatch):
    monkeypatch.setattr(alignment, 'N_STARTS', 5)


def rigid(shift, degrees=(0, 0, 0)):
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec(np.deg2rad(degrees)).as_matrix()
    matrix[:3, 3] = shift
    return matrix


@pytest.mark.parametrize(
    'truth', [rigid([5, 0, 0]), rigid([-2, 3, 4], [6, 0, 0]), rigid([0, -3, 2], [0, -3, 5])]
)
def test_a_known_motion_is_found_with_its_sign(truth, few_starts):
    t1w, b0 = images(truth)
    mask = sum(parts(SHAPE, GRID, truth)[:3]) > 0
    found = alignment.register_t1w(t1w, T1W_GRID, b0, GRID, mask, np.random.default_rng(0))
    points = alignment.apply(GRID, np.argwhere(mask))
    error = alignment.apply(found.matrix, points) - alignment.apply(truth, points)
    assert np.linalg.norm(error, axis=1).max() < 1.5
    assert found.n_agreeing > found.n_starts / 2
    assert found.agreement_mm < 1


def test_a_t1w_moved_5_mm_to_the_right_is_plus_5_mm_along_x(few_starts):
    t1w, b0 = images(np.eye(4))
    moved = T1W_GRID.copy()
    moved[0, 3] += 5
    mask = sum(parts(SHAPE, GRID)[:3]) > 0
    found = alignment.register_t1w(t1w, moved, b0, GRID, mask, np.random.default_rng(0))
    centre = alignment.apply(GRID, np.argwhere(mask).mean(0))
    assert alignment.apply(found.matrix, centre) - centre == pytest.approx([5, 0, 0], abs=0.7)


def test_registration_is_the_same_for_the_same_seed(few_starts):
    t1w, b0 = images(rigid([2, 0, 0]))
    mask = sum(parts(SHAPE, GRID)[:3]) > 0
    one, two = (
        alignment.register_t1w(t1w, T1W_GRID, b0, GRID, mask, np.random.default_rng(7))
        for _ in range(2)
    )
    assert np.array_equal(one.matrix, two.matrix)


def test_a_t1w_of_part_of_the_head_finds_its_place(few_starts):
    """Not quite its right half, so that most of what the dMRI shows lies beyond it."""
    truth = rigid([2, -1, 1], [0, 2, 0])
    t1w, b0 = images(truth)
    moved = T1W_GRID.copy()
    moved[:3, 3] += T1W_GRID[:3, :3] @ [44, 0, 0]
    mask = sum(parts(SHAPE, GRID, truth)[:3]) > 0
    found = alignment.register_t1w(t1w[44:], moved, b0, GRID, mask, np.random.default_rng(0))
    centre = np.array([40.0, 0, 0])
    assert alignment.apply(found.matrix, centre) == pytest.approx(
        alignment.apply(truth, centre), abs=2
    )


def test_a_t1w_that_lies_elsewhere_is_refused_in_words(few_starts):
    t1w, b0 = images(np.eye(4))
    far = T1W_GRID.copy()
    far[:3, 3] += [400, -300, 200]
    mask = sum(parts(SHAPE, GRID)[:3]) > 0
    with pytest.raises(Unavailable, match='0% of the head in the dMRI'):
        alignment.register_t1w(t1w, far, b0, GRID, mask, np.random.default_rng(0))


def test_images_that_share_nothing_do_not_agree(rng, few_starts):
    _, b0 = images(np.eye(4))
    mask = sum(parts(SHAPE, GRID)[:3]) > 0
    found = alignment.register_t1w(rng.uniform(0, 100, SHAPE), GRID, b0, GRID, mask, rng)
    assert found.n_agreeing < found.n_starts / 2


def test_ants_sees_the_same_world_with_two_axes_turned():
    affine = np.array([[0, 0, 3.0, 5], [-2, 0, 0, 6], [0, 4, 0, 7], [0, 0, 0, 1]])
    image = brain.to_ants(np.zeros((4, 5, 6)), affine)
    inside = image.direction @ np.diag(image.spacing) @ [1, 2, 3] + image.origin
    assert inside * [-1, -1, 1] == pytest.approx(alignment.apply(affine, np.array([1, 2, 3])))


def test_a_coarser_grid_keeps_the_field_of_view_and_the_amount():
    image = np.zeros((24, 24, 24))
    image[8:16, 9:15, 10:13] = 1
    shape, grid = alignment.coarser(image.shape, GRID, 12.0)
    assert shape == (8, 8, 8)
    low, high = np.full(3, -0.5), np.array(shape) - 0.5
    assert alignment.apply(grid, low) == pytest.approx(alignment.apply(GRID, low))
    assert alignment.apply(grid, high) == pytest.approx(alignment.apply(GRID, np.full(3, 23.5)))
    small = alignment.resampled(image, GRID, shape, grid)
    assert small.sum() * 27 == pytest.approx(image.sum(), rel=0.1)


def test_fractions_on_a_coarser_grid_are_averages_and_sum_to_one():
    fine = np.zeros((3, 40, 40, 40))
    stripes = np.indices((40, 40, 40))[0] % 2 == 0  # finer than the dMRI voxel: must average out
    fine[0], fine[1] = stripes, ~stripes
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    grid = np.diag([4.0, 4.0, 4.0, 1.0])
    mask = np.zeros((10, 10, 10), bool)
    mask[2:8, 2:8, 2:8] = True
    out, covered = anatomy.to_run_grid(fine, affine, np.eye(4), mask.shape, grid, mask)
    labelled = out.sum(0) > 0  # at the surface white matter is not believed
    assert labelled[3:7, 3:7, 3:7].all()
    assert out.sum(0)[labelled] == pytest.approx(1)
    assert not out[:, ~mask].any()
    assert np.abs(out[0][labelled] - 0.5).max() < 0.02
    assert covered == 1
    assert 'fluid' in anatomy.doubts(out, covered)[0]  # half grey, half white, none at all


def test_where_no_tissue_was_found_there_is_no_label():
    mask = np.ones((5, 5, 5), bool)
    nothing = np.zeros((3, 5, 5, 5))
    out, covered = anatomy.to_run_grid(nothing, GRID, np.eye(4), mask.shape, GRID, mask)
    assert not out.any()
    assert not anatomy.dseg(out).any()
    assert covered == 0
    assert 'covers 0%' in anatomy.doubts(out, covered)[0]


@pytest.mark.parametrize(('brain_mm', 'labelled'), [(22, 6), (21, 5), (19, 5), (17, 4)])
def test_a_voxel_of_which_half_is_not_seen_has_no_label(brain_mm, labelled):
    """The T1w's brain ends ``brain_mm`` along x; voxels of the dMRI are 4 mm."""
    affine, grid = np.diag([1.0, 1, 1, 1]), np.diag([4.0, 4, 4, 1])
    affine[:3, 3], grid[:3, 3] = 0.5, 2  # both grids begin at 0
    fine = np.zeros((3, 32, 32, 32))
    fine[0, :brain_mm] = 1
    mask = np.ones((8, 8, 8), bool)
    out, covered = anatomy.to_run_grid(fine, affine, np.eye(4), mask.shape, grid, mask)
    assert (anatomy.dseg(out)[:labelled] == 1).all()
    assert not out[:, labelled:].any()
    assert covered == labelled / 8
    assert out.sum(0)[:labelled] == pytest.approx(1)


def test_beyond_the_field_of_view_of_the_t1w_there_is_no_label():
    fine, shift = np.zeros((3, 24, 32, 32)), np.eye(4)
    fine[1] = 1
    affine, grid = np.diag([1.0, 1, 1, 1]), np.diag([4.0, 4, 4, 1])
    affine[:3, 3], grid[:3, 3] = 0.5, 2
    shift[0, 3] = -8  # the T1w shows 8 to 32 mm of the run
    mask = np.ones((8, 8, 8), bool)
    out, covered = anatomy.to_run_grid(fine, affine, shift, mask.shape, grid, mask)
    assert (anatomy.dseg(out)[2:] == 2).all()
    assert not out[:, :2].any()
    assert covered == 0.75


@pytest.mark.parametrize(('tissue', 'kept'), [(0, True), (1, False), (2, True)])
def test_white_matter_at_the_surface_is_not_believed_and_the_edge_of_the_image_is_none(
    tissue, kept
):
    """Scalp and dura beside the brain are as bright in a T1w as white matter."""
    mask = np.zeros((9, 9, 9), bool)
    mask[2:7, 2:7, :] = True  # through the whole slab
    fine = np.zeros((3, *mask.shape))
    fine[tissue] = mask
    out, covered = anatomy.to_run_grid(fine, GRID, np.eye(4), mask.shape, GRID, mask)
    found = out.sum(0) > 0
    assert covered == 1
    assert found[3:6, 3:6].all()
    rim = mask.copy()
    rim[3:6, 3:6] = False
    assert found[rim].all() if kept else not found[rim].any()


def test_a_usual_brain_raises_no_doubt():
    fractions = np.broadcast_to(np.array([0.5, 0.4, 0.1])[:, None, None, None], (3, 4, 4, 4))
    assert not anatomy.doubts(fractions, 0.97)
    assert '94%' in anatomy.doubts(fractions, 0.94)[0]


def test_how_much_is_labelled_is_said_before_any_other_doubt():
    white_alone = np.zeros((3, 4, 4, 4))
    white_alone[1] = 1
    assert 'covers 60%' in anatomy.doubts(white_alone, 0.6)[0]


def test_tissue_is_found_under_a_receive_field():
    from scipy import ndimage

    truth = np.stack(parts(SHAPE, GRID)[:3])
    t1w, _ = images(np.eye(4), GRID, SHAPE)
    coil = np.exp(0.6 * (np.indices(SHAPE)[2] / SHAPE[2] - 0.5))
    mask = truth.any(0)
    priors = np.stack([ndimage.gaussian_filter(p.astype(float), 1.0) for p in truth])
    found = anatomy.tissue(t1w * coil, mask, GRID, priors)
    assert found.sum(0)[mask] == pytest.approx(1)
    assert not found[:, ~mask].any()
    right = (found.argmax(0) == truth.argmax(0))[mask].mean()
    assert right > 0.95


def test_tissue_is_the_same_again(rng):
    """In voxels that could be either, what is drawn decides: not by the clock."""
    from scipy import ndimage

    truth = np.stack(parts(SHAPE, GRID)[:3])
    t1w, _ = images(np.eye(4), GRID, SHAPE)
    noisy = np.abs(t1w + rng.normal(0, 20, SHAPE))
    vague = np.stack([ndimage.gaussian_filter(p.astype(float), 3.0) for p in truth])
    first, again = (anatomy.tissue(noisy, truth.any(0), GRID, vague) for _ in range(2))
    assert np.array_equal(first, again)


def test_priors_follow_the_head_and_leave_no_files(rng, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
    move = rigid([6, -8, 5], [4, 0, 0])
    template = parts(SHAPE, GRID)
    t1w = sum(p * v for p, v in zip(parts(SHAPE, GRID, move), (60, 100, 20, 140), strict=True))
    skullless = sum(p * v for p, v in zip(template[:3], (60, 100, 20), strict=True))
    truth = np.stack(parts(SHAPE, GRID, move)[:3])
    maps = np.stack(template[:3]).astype(float)
    priors = anatomy.template_priors(
        t1w.astype(float), GRID, truth.any(0), skullless.astype(float), maps, GRID, rng
    )
    assert not list(tmp_path.iterdir())
    assert tempfile.tempdir == str(tmp_path)
    mask = truth.any(0) & (priors.sum(0) > 0.5)
    assert mask.sum() > 0.9 * truth.any(0).sum()
    assert (priors.argmax(0) == truth.argmax(0))[mask].mean() > 0.85
    made = anatomy.t1w_brain(t1w.astype(float), GRID, truth.any(0), GRID, np.eye(4), priors)
    assert 2 * (made & truth.any(0)).sum() / (made.sum() + truth.any(0).sum()) > 0.93
    assert not (made & parts(SHAPE, GRID, move)[3]).any()


def prisma(multivendor):
    """A real head: T1w and dMRI as they are stored, the mean b = 0 image, the brain."""
    folder = multivendor / 'sub-prisma'
    t1w = nib.load(folder / 'anat' / 'sub-prisma_T1w.nii.gz')
    dwi = nib.load(folder / 'dwi' / 'sub-prisma_dir-AP_dwi.nii.gz')
    data = np.asarray(dwi.dataobj, np.float32)
    weighted = np.loadtxt(folder / 'dwi' / 'sub-prisma_dir-AP_dwi.bval') >= 50
    b0 = data[..., ~weighted].mean(-1)
    return t1w, dwi, b0, brain.brain_mask(b0, data[..., weighted].mean(-1), dwi.affine)


def test_real_starts_agree_between_t1w_and_dmri(multivendor):
    t1w, dwi, b0, mask = prisma(multivendor)
    head = anatomy.correct_t1w(np.asarray(t1w.dataobj, np.float32), t1w.affine)
    found = alignment.register_t1w(head, t1w.affine, b0, dwi.affine, mask, np.random.default_rng(0))
    assert found.n_agreeing >= 10
    assert found.agreement_mm < 1.5
    turn = Rotation.from_matrix(found.matrix[:3, :3]).magnitude()
    assert np.rad2deg(turn) < 5  # the same session: the head hardly moved


def test_of_a_real_head_only_what_the_t1w_shows_is_labelled(multivendor):
    """The T1w loses the right quarter of its field of view, as in a head that lies on its side."""
    t1w, dwi, _, mask = prisma(multivendor)
    shape, grid = alignment.coarser(t1w.shape, t1w.affine, 2.5)
    head = alignment.resampled(t1w.get_fdata(), t1w.affine, shape, grid)
    axis = int(np.abs(grid[0, :3]).argmax())
    places = np.moveaxis(np.indices(shape), 0, -1)
    right = alignment.apply(grid, places)[..., 0]
    keep = np.flatnonzero(right.mean(tuple({0, 1, 2} - {axis})) < 35)
    cut, moved = np.take(head, keep, axis), grid.copy()
    moved[:3, 3] += grid[:3, axis] * keep[0]
    maps = template_maps(3.0)
    out, covered = anatomy.tissue_on_run(
        anatomy.correct_t1w(cut, moved), moved, np.eye(4), mask, dwi.affine, maps,
        np.random.default_rng(0),
    )  # fmt: skip
    labels = anatomy.dseg(out)
    x = alignment.apply(dwi.affine, np.moveaxis(np.indices(mask.shape), 0, -1))[..., 0]
    assert not labels[mask & (x > 42)].any()
    assert (labels[mask & (x < 25)] > 0).mean() > 0.93
    assert 0.75 < covered < 0.95
    assert 'has no tissue label' in anatomy.doubts(out, covered)[0]
