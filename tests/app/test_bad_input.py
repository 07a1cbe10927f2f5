"""Messy scans: each has its exit code and a message, and nothing else suffers."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest

SCAN = 'sub-01/dwi/sub-01_dwi'
#: The least that makes images.
ORIENTATION = ('participant', '--device', 'cpu', '--tasks', 'orientation')


def rewrite(path, change):
    """Replace an image's voxels by ``change`` of them."""
    image = nib.load(path)
    data = change(np.asarray(image.dataobj, np.float32).copy())
    nib.save(nib.Nifti1Image(data, image.affine), path)


def visible_files(folder):
    """Every file below ``folder`` that is not hidden, as text."""
    return sorted(
        str(p.relative_to(folder)) for p in folder.rglob('*')
        if p.is_file() and not any(part.startswith('.') for part in p.relative_to(folder).parts)
    )  # fmt: skip


def numbers(path):
    return np.loadtxt(path, ndmin=2)


def remove_bvec(root):
    (root / f'{SCAN}.bvec').unlink()


def too_few_columns(root):
    np.savetxt(root / f'{SCAN}.bvec', numbers(root / f'{SCAN}.bvec')[:, :-2])


def zero_gradient(root):
    table = numbers(root / f'{SCAN}.bvec')
    table[:, 5] = 0
    np.savetxt(root / f'{SCAN}.bvec', table)


def all_b0(root):
    np.savetxt(root / f'{SCAN}.bval', 0 * numbers(root / f'{SCAN}.bval'))


def five_directions(root):
    bvals = numbers(root / f'{SCAN}.bval').ravel()
    keep = np.r_[np.flatnonzero(bvals == 0), np.flatnonzero(bvals)[:5]]
    for kind in ('bval', 'bvec'):
        path = root / f'{SCAN}.{kind}'
        np.savetxt(path, numbers(path)[:, keep])
    rewrite(root / f'{SCAN}.nii.gz', lambda data: data[..., keep])


def not_a_number(root):
    def spoil(data):
        data[3, 4, 5, 6] = np.nan
        return data

    rewrite(root / f'{SCAN}.nii.gz', spoil)


def truncated(root):
    path = root / f'{SCAN}.nii.gz'
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def no_image(root):
    (root / f'{SCAN}.nii.gz').write_bytes(b'')


def sidecar_that_is_no_json(root):
    (root / f'{SCAN}.json').write_text('{')


#: Seen before a graph is run.
BROKEN = [
    (remove_bvec, 66, 'no bvec file'),
    (too_few_columns, 65, 'one column for each volume'),
    (zero_gradient, 65, 'length zero'),
    (all_b0, 65, 'nothing is weighted'),
    (five_directions, 65, '5 different directions'),
    (no_image, 65, 'NIfTI'),
    (sidecar_that_is_no_json, 65, 'JSON'),
]
#: Seen by a step.
SPOILT = [
    (not_a_number, 65, '1 voxels of sub-01_dwi.nii.gz are not numbers'),
    (truncated, 65, 'Copy'),
]


def refused(called, root, out, code, message):
    """One message, its code, and nothing written."""
    result = called(root, out, 'participant', '--device', 'cpu')
    said = result.stdout + result.stderr
    assert result.returncode == code, said
    assert message in said
    assert 'Traceback' not in said
    assert 'FAILED sub-01' in said
    assert not [f for f in visible_files(out) if f.endswith('.nii.gz')]


@pytest.mark.parametrize(('spoil', 'code', 'message'), BROKEN, ids=[b[0].__name__ for b in BROKEN])
def test_a_broken_scan_has_its_code_and_message(quick, tmp_path, app_here, spoil, code, message):
    spoil(quick)
    refused(app_here, quick, tmp_path / 'out', code, message)


@pytest.mark.parametrize(('spoil', 'code', 'message'), SPOILT, ids=[b[0].__name__ for b in SPOILT])
def test_what_a_step_finds_has_its_code_and_message(quick, tmp_path, app, spoil, code, message):
    spoil(quick)
    refused(app, quick, tmp_path / 'out', code, message)


def test_a_transposed_table_is_turned_and_said_and_nothing_is_written_elsewhere(few, tmp_path, app):
    path, elsewhere = few / f'{SCAN}.bvec', tmp_path / 'cwd'
    np.savetxt(path, numbers(path).T)
    elsewhere.mkdir()
    before = visible_files(few)
    out, work = tmp_path / 'out', tmp_path / 'work'
    result = app(few, out, *ORIENTATION, '-w', work, '--dry-run', cwd=elsewhere)
    assert result.returncode == 0, result.stderr
    assert 'to do: preprocessing' in result.stdout
    assert not [f for f in visible_files(out) if not f.startswith('logs')]
    result = app(few, out, *ORIENTATION, '-w', work, cwd=elsewhere)
    assert result.returncode == 0, result.stdout + result.stderr
    assert visible_files(few) == before
    assert not list(elsewhere.iterdir())
    assert 'transpose' in result.stdout
    sidecar = json.loads((out / 'sub-01' / 'dwi' / 'sub-01_desc-preproc_dwi.json').read_text())
    assert any('transpose' in warning for warning in sidecar['Warnings'])
    assert 'transpose' in (out / 'sub-01.html').read_text()


def test_one_broken_participant_does_not_stop_the_others(few_two, tmp_path, app):
    not_a_number(few_two)
    result = app(few_two, tmp_path / 'out', *ORIENTATION)
    assert result.returncode == 1, result.stdout + result.stderr
    assert 'FAILED sub-01' in result.stdout
    assert '1 of 2 runs finished' in result.stdout
    done = visible_files(tmp_path / 'out')
    assert 'sub-02/dwi/sub-02_desc-preproc_dwi.nii.gz' in done
    assert not [f for f in done if f.startswith('sub-01/dwi')]


def test_check_finds_what_is_planted(coarse, capsys):
    from bidsapp.check import main

    assert main([str(coarse)]) == 0
    capsys.readouterr()
    zero_gradient(coarse)
    assert main([str(coarse), '--json']) == 65
    rows = json.loads(capsys.readouterr().out)
    assert [row['code'] for row in rows if row['severity'] == 'error'] == ['ZERO_GRADIENT']


def test_sigterm_ends_soon_with_try_again_and_the_next_call_goes_on(few, tmp_path, app):
    argv = [few, tmp_path / 'out', *ORIENTATION]
    process = subprocess.Popen(
        [sys.executable, '-m', 'bidsapp', *map(str, argv)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    lines = iter(process.stdout.readline, '')
    assert any('brain_mask' in line for line in lines)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 75, said
    assert 'goes on from here' in said
    result = app(*argv)
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_t1w_that_is_cut_off_costs_the_tissue_label_alone(few, quick_dataset, tmp_path, app):
    name = 'sub-01/anat/sub-01_T1w.nii.gz'
    content, out = (quick_dataset / name).read_bytes(), tmp_path / 'out'
    (few / name).parent.mkdir()
    (few / name).write_bytes(content[: len(content) // 2])
    result = app(few, out, *ORIENTATION, 'tissue')
    assert result.returncode == 65, result.stdout + result.stderr
    assert 'FAILED sub-01: no tissue label, for sub-01_T1w.nii.gz cannot be used' in result.stdout
    done = [f for f in visible_files(out) if f.endswith('.nii.gz')]
    assert any('model-tensor_param-direction' in f for f in done)
    assert any('seg-tissue_desc-unet_dseg' in f for f in done)
    assert not any('seg-tissue_desc-reference' in f for f in done)
    label = next(out.rglob('*_model-tensor_param-direction_dwimap.json'))
    assert 'sub-01_T1w.nii.gz' in json.loads(label.read_text())['NotUsed']
    assert 'T1w image not used' in (out / 'sub-01.html').read_text()
    assert app(few, out, *ORIENTATION).returncode == 0  # which needs no T1w
