"""A right table lets paths run on; each way of turning it is noticed, named and undone."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from bidsapp.modalities.dwi.physics.gradient_check import check_table, finding, in_words, turns
from bidsapp.modalities.dwi.physics.gradients import GradientTable, from_fsl, to_fsl
from bidsapp.modalities.dwi.physics.harmonics import fibonacci_hemisphere
from bidsapp.modalities.dwi.physics.tables import examine
from bidsapp.problems import BadData

PLANTS = {
    'flip the sign of row 1 (x) of the bvec file': np.diag([-1, 1, 1]),
    'flip the sign of row 2 (y) of the bvec file': np.diag([1, -1, 1]),
    'flip the sign of row 3 (z) of the bvec file': np.diag([1, 1, -1]),
    'swap rows 1 and 2 of the bvec file': np.eye(3, dtype=int)[[1, 0, 2]],
    'swap rows 1 and 3 of the bvec file': np.eye(3, dtype=int)[[2, 1, 0]],
    'swap rows 2 and 3 of the bvec file': np.eye(3, dtype=int)[[0, 2, 1]],
}
RUNS = [
    'sub-achieva_dwi', 'sub-ds114_dwi', 'sub-galan_acq-all20d_dwi', 'sub-galan_acq-ortho_dwi',
    'sub-prisma_dir-AP_dwi', 'sub-prisma_dir-PA_dwi', 'sub-uih_dir-AP_dwi', 'sub-uih_dir-PA_dwi',
]  # fmt: skip
SIZE = np.array([3.0, 3.0, 3.5])
TILT = Rotation.from_euler('xyz', [10, -8, 15], degrees=True).as_matrix()


def table(n):
    """World-axes table of one b=0 and ``n`` directions of b=1000."""
    return GradientTable(np.vstack([np.zeros((1, 3)), fibonacci_hemisphere(n)]),
                         np.r_[0, np.full(n, 1000.0)])  # fmt: skip


def grid(handedness):
    """Affine (4, 4) of an oblique grid, and world positions (X, Y, Z, 3) of its voxels in mm."""
    affine = np.eye(4)
    affine[:3, :3] = TILT @ np.diag(SIZE * [handedness, 1, 1])
    shape = (40, 44, 34)
    affine[:3, 3] = -affine[:3, :3] @ (np.array(shape) - 1) / 2
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing='ij'), -1)
    return affine, index @ affine[:3, :3].T + affine[:3, 3]


def rings(handedness, gtab, rng, snr=20.0):
    """A ball of fibres that run in rings, tubes in grey matter, around an oblique line."""
    affine, where = grid(handedness)
    axis = np.array([1, 2, 3]) / np.sqrt(14)
    away = where - np.array([30.0, -25, 20])
    across = np.cross(axis, away)
    radius = np.linalg.norm(across, axis=-1, keepdims=True)
    tube = np.sin(2 * np.pi * radius / 18) * np.cos(2 * np.pi * away @ axis / 22)[..., None] > 0
    along = (across / np.maximum(radius, 1e-6)) @ gtab.bvecs.T
    decay = gtab.bvals * 1e-3 * np.where(tube, 0.3 + 1.4 * along**2, 0.8)
    inside = np.linalg.norm(where, axis=-1, keepdims=True) < 55
    return affine, noisy(1000 * inside * np.exp(-decay), 1000 / snr, rng)


def noisy(signal, sigma, rng):
    """Magnitude of complex noise upon ``signal``."""
    real, imaginary = sigma * rng.standard_normal((2, *signal.shape))
    return np.hypot(signal + real, imaginary).astype(np.float32)


def planted(gtab, affine, turn):
    """The table as it is read when the rows of the bvec file were turned."""
    return from_fsl(turn @ to_fsl(gtab, affine), gtab.bvals, affine)


@pytest.mark.parametrize(('handedness', 'first'), [(1, 0), (-1, 1)])
def test_every_turn_is_found_and_its_mend_gives_back_the_table(rng, handedness, first):
    """Half of the turns on a right-handed grid, the others on a left-handed one."""
    gtab = table(20)
    affine, data = rings(handedness, gtab, rng)
    for turn in turns()[first::2]:
        given = to_fsl(planted(gtab, affine, turn), affine)
        result = check_table(data, from_fsl(given, gtab.bvals, affine), affine)
        assert result.decided
        assert result.passed == (turn == np.eye(3)).all()
        product = result.turn @ turn
        assert (product == np.eye(3)).all() or (product == -np.eye(3)).all()
        assert result.best >= result.coherence > 0
        assert (finding(result) is None) == result.passed


def test_the_error_says_what_was_found_and_what_to_do(rng):
    gtab = table(20)
    affine, data = rings(1, gtab, rng)
    error = finding(check_table(data, planted(gtab, affine, np.diag([1, -1, 1])), affine))
    assert error is not None
    assert (error.severity, error.code) == ('error', 'TABLE_AGAINST_DATA')
    assert 'flip the sign of row 2 (y) of the bvec file' in error.message
    assert 'not changed' in error.message


def test_turns_are_all_signed_permutations_up_to_sign():
    found = turns()
    assert (found[0] == np.eye(3)).all()
    assert len({tuple(np.ravel(sign * turn)) for turn in found for sign in (1, -1)}) == 48
    assert (np.einsum('nij,nkj->nik', found, found) == np.eye(3)).all()


@pytest.mark.parametrize(('words', 'turn'), PLANTS.items(), ids=PLANTS)
def test_single_flips_and_swaps_in_words(words, turn):
    assert in_words(turn) == words


def test_words_of_combinations_follow_the_order_of_the_steps():
    """Rows first change places; the flip is that of the new row."""
    assert in_words(np.array([[0, 1, 0], [1, 0, 0], [0, 0, -1]])) == (
        'swap rows 1 and 2 of the bvec file, then flip the sign of row 3 (z)'
    )
    assert in_words(np.array([[0, 1, 0], [0, 0, -1], [1, 0, 0]])) == (
        'put the rows of the bvec file into the order 2, 3, 1, then flip the sign of row 2 (y)'
    )


def test_image_and_table_turned_together_change_nothing(rng):
    """Voxel axes are names: the same scan stored along other axes gets the same answer."""
    gtab = table(20)
    affine, data = rings(1, gtab, rng)
    before = check_table(data, gtab, affine)
    flip = np.diag([1.0, -1, 1, 1])
    flip[1, 3] = data.shape[1] - 1
    order = np.eye(4)[[2, 0, 1, 3]]
    for stored, frame in (
        (data[:, ::-1], affine @ flip),
        (data.transpose(1, 2, 0, 3), affine @ order),
    ):
        after = check_table(stored, gtab, frame)
        assert after.passed
        assert after.decided
        assert after.coherence == pytest.approx(before.coherence, rel=0.02)
        assert after.margin == pytest.approx(before.margin, rel=0.05)


def test_a_mask_may_be_given(rng):
    gtab = table(20)
    affine, data = rings(1, gtab, rng)
    _, where = grid(1)
    half = (np.linalg.norm(where, axis=-1) < 55) & (where[..., 0] < 10)
    assert check_table(data, gtab, affine, half).decided
    nothing = check_table(data, gtab, affine, np.zeros(half.shape, bool))
    assert nothing.passed
    assert not nothing.decided


def test_small_voxels_are_averaged_and_the_table_still_found(rng):
    gtab = table(12)
    affine, data = rings(-1, gtab, rng)
    fine = data.repeat(2, 0).repeat(2, 1)
    affine[:3, :2] /= 2
    affine[:3, :3] *= 0.7
    result = check_table(fine, planted(gtab, affine, np.diag([-1, 1, 1])), affine)
    assert result.correction == 'flip the sign of row 1 (x) of the bvec file'


@pytest.mark.parametrize('n', [6, 12, 30])
@pytest.mark.parametrize('kind', ['noise', 'phantom', 'correlated noise', 'empty'])
def test_scans_without_fibres_pass_undecided(rng, kind, n):
    gtab = table(n)
    affine, where = grid(1)
    inside = (np.linalg.norm(where, axis=-1, keepdims=True) < 50) & (kind != 'noise')
    data = noisy(1000 * inside * np.exp(-1.1e-3 * gtab.bvals), 70, rng)
    if kind == 'correlated noise':
        data = (data + np.roll(data, 1, 0) + np.roll(data, 1, 1)) / 3
    result = check_table(data * (kind != 'empty'), gtab, affine)
    assert result.passed
    assert not result.decided
    assert result.correction is None
    assert finding(result) is None
    assert 'could not be tested' in result.statement


def test_voxels_that_are_not_numbers_do_no_harm(rng):
    gtab = table(20)
    affine, data = rings(1, gtab, rng)
    data[20, 20, 15:20] = np.nan
    assert check_table(data, gtab, affine).decided


def test_a_table_that_determines_no_tensor_is_refused():
    with pytest.raises(BadData, match='do not determine'):
        check_table(np.ones((4, 4, 4, 6), np.float32), table(5), np.eye(4))


@pytest.mark.parametrize('run', RUNS)
def test_real_runs_pass_as_stored_and_every_plant_is_found(multivendor, run):
    stem = multivendor / run.split('_')[0] / 'dwi' / run
    image = nib.load(f'{stem}.nii.gz')
    data = np.asarray(image.dataobj, np.float32)
    stored = np.loadtxt(f'{stem}.bvec'), np.loadtxt(f'{stem}.bval')
    found = examine(*stored, data.shape[3])
    bvecs, bvals = found.bvecs, found.bvals
    result = check_table(data, from_fsl(bvecs, bvals, image.affine), image.affine)
    assert result.passed
    assert result.decided
    assert result.margin > 1.2  # the threshold is 1.1: a wide gap
    for words, turn in PLANTS.items():
        result = check_table(data, from_fsl(turn @ bvecs, bvals, image.affine), image.affine)
        assert not result.passed
        assert result.correction == words
