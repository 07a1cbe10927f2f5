"""A brain mask of the user's own, and a call without T1w image."""

from __future__ import annotations

import json
import shutil

import nibabel as nib
import numpy as np
import pytest

from bidsapp.modalities.dwi.interfaces.masks import GivenMask

SCAN = 'sub-01/dwi/sub-01_dwi.nii.gz'
NAME = 'sub-01/dwi/sub-01_desc-brain_mask.nii.gz'
ARGV = ('participant', '--device', 'cpu', '--tasks', 'orientation')


@pytest.fixture
def drawn(quick, tmp_path):
    """A box in the middle of the head, as somebody has drawn it."""
    like = nib.load(quick / SCAN)
    mask = np.zeros(like.shape[:3], np.uint8)
    mask[tuple(slice(n // 3, 2 * n // 3) for n in mask.shape)] = 1
    (tmp_path / 'masks' / NAME).parent.mkdir(parents=True)
    nib.save(nib.Nifti1Image(mask, like.affine), tmp_path / 'masks' / NAME)
    return mask


def test_the_mask_of_the_user_is_the_one_that_is_used_and_named(quick, drawn, tmp_path, app):
    out, masks = tmp_path / 'out', tmp_path / 'masks'
    result = app(quick, out, *ARGV, '-d', f'masks={masks}')
    assert result.returncode == 0, result.stdout + result.stderr
    assert 'brain mask: sub-01_desc-brain_mask.nii.gz of -d masks' in result.stdout
    made = np.asarray(nib.load(out / NAME).dataobj)
    assert np.array_equal(made, drawn)  # nothing moved it: there is no way to correct distortion
    sidecar = json.loads((out / NAME.replace('.nii.gz', '.json')).read_text())
    assert sidecar['Sources'][1] == f'bids:masks:{NAME}'
    nib.save(nib.Nifti1Image(drawn * 0 + 1, nib.load(masks / NAME).affine), masks / NAME)
    result = app(quick, out, *ARGV, '-d', f'masks={masks}', '--dry-run')
    assert 'preprocessing again: sub-01_desc-brain_mask.nii.gz has changed' in result.stdout


@pytest.mark.parametrize(
    ('spoil', 'words'),
    [
        (lambda data, affine: (data[1:], affine), 'has the shape'),
        (lambda data, affine: (data, affine @ np.diag([1, 1, 1.1, 1])), 'mm from where'),
        (lambda data, affine: (0 * data, affine), 'is empty'),
    ],
)
def test_a_mask_that_cannot_be_meant_is_the_runs_problem(
    quick, drawn, tmp_path, app_here, spoil, words
):
    path = tmp_path / 'masks' / NAME
    nib.save(nib.Nifti1Image(*spoil(drawn, nib.load(path).affine)), path)
    result = app_here(quick, tmp_path / 'out', *ARGV, '-d', f'masks={path.parents[2]}', '--dry-run')
    assert result.returncode == 65
    assert words in result.stdout


def test_a_mask_that_is_not_there_is_made_as_usual_and_a_folder_that_is_not_there_is_said(
    quick, drawn, tmp_path, app_here
):
    masks = tmp_path / 'masks'
    (masks / NAME).unlink()
    result = app_here(quick, tmp_path / 'out', *ARGV, '-d', f'masks={masks}', '--dry-run')
    assert result.returncode == 0, result.stdout + result.stderr
    assert f'-d masks holds no {NAME}: the brain mask is made here' in result.stdout
    shutil.rmtree(masks)
    result = app_here(quick, tmp_path / 'out', *ARGV, '-d', f'masks={masks}', '--dry-run')
    assert result.returncode == 66
    assert 'is no folder' in result.stderr


def test_it_moves_with_the_run_where_susceptibility_is_corrected(tmp_path):
    mask = np.zeros((12, 20, 12), np.uint8)
    mask[3:9, 6:12, 3:9] = 1
    for name, array in (('mask', mask), ('shift', np.full(mask.shape, 3, np.float32))):
        nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / f'{name}.nii')
    step = GivenMask(mask=tmp_path / 'mask.nii', displacement=tmp_path / 'shift.nii', axis=1)
    found = nib.load(step.run(cwd=str(tmp_path)).outputs.mask).get_fdata() > 0
    low, high = np.flatnonzero(found.any((0, 2)))[[0, -1]]
    assert (low, high) in [(3, 8), (9, 14)]  # the whole of it, by three voxels along that axis
    assert np.array_equal(found.any(1), mask.any(1))


@pytest.mark.parametrize('anat', ['t1w', 'none'])
def test_whether_a_t1w_serves_is_the_users_word(quick_dataset, tmp_path, app_here, anat):
    result = app_here(
        quick_dataset, tmp_path / 'out', 'participant', '--device', 'cpu', '--anat', anat,
        '--dry-run', '--participant-label', '01',
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert ('tissue label (reference)' in result.stdout) == (anat == 't1w')
    assert ('registration to sub-01_T1w' in result.stdout) == (anat == 't1w')
    said = app_here(quick_dataset, tmp_path / 'out', 'participant', '--anat', 'T2w')
    assert said.returncode == 64
