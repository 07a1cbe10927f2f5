"""What a user sees who mends a scan and starts the same command again."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

ARGV = ('participant', '--device', 'cpu', '--tasks', 'orientation')
SCAN = 'sub-01/dwi/sub-01_dwi'
MADE = 'sub-01/dwi/sub-01_desc-preproc_dwi'


@pytest.fixture
def earlier(few_done, tmp_path):
    """OUTPUT_DIR of an earlier call."""
    return shutil.copytree(few_done, tmp_path / 'out')


def images(out):
    return sorted(p for p in out.rglob('*.nii.gz') if '.work' not in p.parts)


def test_a_mended_table_gives_other_directions_and_the_log_says_why(few, earlier, app):
    table = np.loadtxt(few / f'{SCAN}.bvec')
    np.savetxt(few / f'{SCAN}.bvec', table * [[-1], [1], [1]], fmt='%.6f')
    before = np.loadtxt(earlier / f'{MADE}.bvec')
    result = app(few, earlier, *ARGV)
    assert result.returncode == 0, result.stdout + result.stderr
    assert 'preprocessing again: sub-01_dwi.bvec has changed' in result.stdout
    after = np.loadtxt(earlier / f'{MADE}.bvec')
    assert np.abs(before * [[-1], [1], [1]] - after).max() < 0.1
    assert np.abs(before - after).max() > 0.5
    result = app(few, earlier, *ARGV)
    assert 'to do: nothing, all is there' in result.stdout


def test_where_the_new_scan_cannot_be_used_nothing_of_the_old_one_is_left(few, earlier, app):
    path = few / f'{SCAN}.nii.gz'
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    result = app(few, earlier, *ARGV)
    assert result.returncode == 65, result.stdout + result.stderr
    assert 'sub-01_dwi.nii.gz has changed' in result.stdout
    assert '0 of 1 runs finished' in result.stdout
    assert not images(earlier)


def test_a_task_is_made_again_where_it_is_asked_for_and_the_rest_is_left(few, earlier, app):
    kept = (earlier / f'{MADE}.nii.gz').stat()
    label = next(earlier.rglob('*_model-tensor_param-direction_dwimap.json'))
    before = label.stat().st_mtime_ns
    result = app(few, earlier, *ARGV, '--redo', 'orientation')
    assert result.returncode == 0, result.stdout + result.stderr
    assert 'orientation label again: asked for' in result.stdout
    assert label.stat().st_mtime_ns > before
    now = (earlier / f'{MADE}.nii.gz').stat()
    assert (now.st_mtime_ns, now.st_ino) == (kept.st_mtime_ns, kept.st_ino)


def test_outputs_of_before_there_were_records_are_made_again_but_not_for_pages(
    few, earlier, app_here
):
    for path in earlier.rglob('*_dwi*.json'):
        content = json.loads(path.read_text())
        content.pop('MadeFrom', None)
        path.write_text(json.dumps(content))
    before = images(earlier)
    result = app_here(few, earlier, *ARGV, '--reports-only')
    assert result.returncode == 0, result.stdout + result.stderr
    assert images(earlier) == before
    result = app_here(few, earlier, *ARGV, '--dry-run')
    assert result.stdout.count('do not say what they were made from') == 1
    assert 'to do: preprocessing' in result.stdout


@pytest.mark.parametrize(
    ('argv', 'said'),
    [
        (('participant', '--redo', 'tisue'), '--redo tisue: expected one or several of'),
        (('group', '--redo', 'tissue'), 'that is for participant'),
        (('pretrain', '--force'), 'that is for participant'),
    ],
)
def test_what_cannot_be_meant_is_refused(few, tmp_path, app_here, argv, said):
    result = app_here(few, tmp_path / 'out', *argv)
    assert result.returncode == 64
    assert said in result.stderr
