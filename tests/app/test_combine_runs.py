"""Halves of a scheme, the head elsewhere and the gain another in the second, become one run."""

from __future__ import annotations

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from bidsapp.physics.alignment import motion_matrix

ARGV = ('participant', '--device', 'cpu', '--tasks', 'orientation')
STEM = 'sub-01/dwi/sub-01'
#: mm, and degrees about the left-right axis; and what the second half is brighter by.
SHIFT, TURN, GAIN = (2.0, -1.5, 1.0), 2.0, 1.3


def halves(root):
    """Write run-1 and run-2 in the place of the one run of ``root``; the second is moved."""
    source = f'{STEM}_dwi'
    image = nib.load(root / f'{source}.nii.gz')
    data = np.asarray(image.dataobj, np.float32)
    bvals, bvecs = (np.loadtxt(root / f'{source}.{kind}') for kind in ('bval', 'bvec'))
    weighted = np.flatnonzero(bvals > 50)
    b0 = np.flatnonzero(bvals <= 50)
    angle = np.radians(TURN) * 80
    centre = (image.affine @ [*(np.array(data.shape[:3]) / 2), 1])[:3]
    move = motion_matrix(np.array([*SHIFT, angle, 0, 0]), centre)
    back = np.linalg.inv(image.affine) @ np.linalg.inv(move) @ image.affine
    for number in (1, 2):
        keep = np.sort(np.r_[b0, weighted[number - 1 :: 2]])
        own, table = data[..., keep], bvecs[:, keep]
        if number == 2:
            own = GAIN * np.stack([
                ndimage.affine_transform(v, back[:3, :3], back[:3, 3], order=3, mode='nearest')
                for v in np.moveaxis(own, -1, 0)
            ], -1)  # fmt: skip
            # FSL's axes of an image without oblique angles: a turn about x, mirrored or not.
            axes = image.affine[:3, :3] / np.linalg.norm(image.affine[:3, :3], axis=0)
            axes = axes @ np.diag([-np.sign(np.linalg.det(axes)), 1, 1])
            table = axes.T @ move[:3, :3] @ axes @ table
        name = root / f'{STEM}_run-{number}_dwi'
        nib.save(nib.Nifti1Image(own, image.affine), f'{name}.nii.gz')
        np.savetxt(f'{name}.bval', bvals[None, keep], fmt='%g')
        np.savetxt(f'{name}.bvec', table, fmt='%.6f')
        shutil.copy(root / f'{source}.json', f'{name}.json')
    for path in root.glob(f'{source}.*'):
        path.unlink()


@pytest.fixture
def parted(quick):
    halves(quick)
    return quick


def test_they_are_joined_where_the_first_head_was(parted, quick_done, tmp_path, app):
    out = tmp_path / 'out'
    result = app(parted, out, *ARGV, '--combine-runs')
    assert result.returncode == 0, result.stdout + result.stderr
    assert '1 dMRI runs' in result.stdout
    assert 'joined on the grid of sub-01_run-1' in result.stdout
    made = sorted(p.name for p in (out / 'sub-01' / 'dwi').glob('*_desc-preproc_dwi.nii.gz'))
    assert made == ['sub-01_desc-preproc_dwi.nii.gz']
    beside = json.loads((out / f'{STEM}_desc-preproc_dwi.json').read_text())
    first, second = beside['MotionCorrection']['Joined']
    assert first['Shift'] == first['Rotation'] == 0
    assert abs(second['Rotation'] - TURN) < 0.5
    assert abs(second['Shift'] - np.linalg.norm(SHIFT)) < 0.5
    assert abs(second['Gain'] - 1 / GAIN) < 0.03
    assert [uri.rpartition('/')[2] for uri in beside['Sources']] == [
        'sub-01_run-1_dwi.nii.gz', 'sub-01_run-2_dwi.nii.gz',
    ]  # fmt: skip

    def directions(folder):
        path = folder / f'{STEM}_model-csd_param-direction_dwimap.nii.gz'
        return np.asarray(nib.load(path).dataobj)[..., :3]

    whole, joined = directions(quick_done), directions(out)
    both = (np.linalg.norm(whole, axis=-1) > 0) & (np.linalg.norm(joined, axis=-1) > 0)
    cosine = np.abs((whole * joined).sum(-1)[both]).clip(0, 1)
    assert both.sum() > 200
    assert np.degrees(np.arccos(np.median(cosine))) < 12
    volumes = nib.load(out / f'{STEM}_desc-preproc_dwi.nii.gz').shape[3]
    table = (out / f'{STEM}_desc-confounds_timeseries.tsv').read_text().splitlines()
    assert len(table) - 1 == volumes == first['Volumes'] + second['Volumes']


def test_without_the_option_they_are_two_runs(parted, tmp_path, app_here):
    said = app_here(parted, tmp_path / 'out', *ARGV, '--dry-run').stdout
    assert '2 dMRI runs' in said


def test_on_other_grids_they_stay_two_and_say_why(parted, tmp_path, app_here):
    path = parted / f'{STEM}_run-2_dwi.nii.gz'
    image = nib.load(path)
    moved = image.affine.copy()
    moved[0, 3] += 3
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), moved), path)
    said = app_here(parted, tmp_path / 'out', *ARGV, '--combine-runs', '--dry-run').stdout
    assert '2 dMRI runs' in said
    assert said.count('not combined with the others of its name: their grids differ') == 2


def test_one_that_cannot_be_used_leaves_the_other_alone(parted, tmp_path, app_here):
    (parted / f'{STEM}_run-2_dwi.bvec').unlink()
    result = app_here(parted, tmp_path / 'out', *ARGV, '--combine-runs', '--dry-run')
    assert result.returncode == 1
    assert 'sub-01_run-2 cannot be used' in result.stdout
