"""``transfermri-check``: tables, voxels, and tables against voxels, with nothing changed."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest

from bidsapp.check import main

SCAN = 'sub-01/dwi/sub-01_dwi'


@pytest.fixture
def errors(capsys):
    """Examine a dataset: the exit code and the (file, code, message) of each error."""

    def examine(root):
        code = main([str(root), '--json'])
        rows = json.loads(capsys.readouterr().out)
        assert all(row.keys() == {'file', 'severity', 'code', 'message'} for row in rows)
        wrong = [row for row in rows if row['severity'] == 'error']
        return code, [(row['file'], row['code'], row['message']) for row in wrong]

    return examine


def test_a_sound_scan_has_no_errors(coarse, errors):
    assert errors(coarse) == (0, [])


@pytest.mark.parametrize(
    ('turn', 'mend'),
    [
        (np.diag([-1, 1, 1]), 'flip the sign of row 1 (x)'),
        (np.diag([1, -1, 1]), 'flip the sign of row 2 (y)'),
        (np.diag([1, 1, -1]), 'flip the sign of row 3 (z)'),
        (np.eye(3)[[1, 0, 2]], 'swap rows 1 and 2'),
        (np.eye(3)[[2, 1, 0]], 'swap rows 1 and 3'),
        (np.eye(3)[[0, 2, 1]], 'swap rows 2 and 3'),
    ],
)
def test_a_turned_table_is_an_error_that_names_the_mend_and_changes_nothing(
    coarse, errors, turn, mend
):
    path = coarse / f'{SCAN}.bvec'
    np.savetxt(path, turn @ np.loadtxt(path))
    before = path.read_bytes()
    code, [(file, name, message)] = errors(coarse)
    assert (code, file, name) == (65, f'{SCAN}.nii.gz', 'TABLE_AGAINST_DATA')
    assert mend in message
    assert path.read_bytes() == before


def test_an_inherited_table_is_examined_too(coarse, errors):
    path = coarse / f'{SCAN}.bvec'
    np.savetxt(coarse / 'dwi.bvec', np.diag([1, -1, 1]) @ np.loadtxt(path))
    path.unlink()
    code, [(_, name, _)] = errors(coarse)
    assert (code, name) == (65, 'TABLE_AGAINST_DATA')


def test_a_scan_without_structure_is_said_to_be_untested(coarse, capsys, rng):
    path = coarse / f'{SCAN}.nii.gz'
    image = nib.load(path)
    noise = rng.normal(500, 20, image.shape).astype(np.float32)
    nib.save(nib.Nifti1Image(noise, image.affine), path)
    assert main([str(coarse)]) == 0
    assert 'could not be tested' in capsys.readouterr().out


def test_voxels_that_are_not_numbers_are_an_error(coarse, errors):
    path = coarse / f'{SCAN}.nii.gz'
    image = nib.load(path)
    data = np.asarray(image.dataobj, np.float32)
    data[3, 4, 5, 6] = np.nan
    nib.save(nib.Nifti1Image(data, image.affine), path)
    code, [(_, name, message)] = errors(coarse)
    assert (code, name) == (65, 'IMAGE_NAN')
    assert message.startswith('1 voxels')


def test_an_image_cut_off_while_copying_is_an_error(coarse, errors):
    path = coarse / f'{SCAN}.nii.gz'
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    code, [(_, name, _)] = errors(coarse)
    assert (code, name) == (65, 'UNREADABLE')
