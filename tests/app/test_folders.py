"""What a call leaves in whose folder, what it looks at beforehand, and what it gives away."""

from __future__ import annotations

import getpass
import json
import shutil
import socket
from collections import namedtuple

import pytest

from bidsapp.hidden import hidden
from bidsapp.workflows import disk

ARGV = ('participant', '--device', 'cpu', '--tasks', 'orientation')
FOREIGN = {
    'dataset_description.json': json.dumps(
        {'Name': 'x', 'BIDSVersion': '1.9.0', 'GeneratedBy': [{'Name': 'QSIPrep'}]}
    ),
    'README.md': 'My notes.\n', '.bidsignore': 'mine\n', 'sub-01.html': '<html>QSIPrep</html>\n',
}  # fmt: skip


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes()
            for p in sorted(folder.rglob('*')) if p.is_file()}  # fmt: skip


@pytest.mark.parametrize('names', [FOREIGN, ['README.md'], ['.bidsignore'], ['sub-01.html']])
@pytest.mark.parametrize('level', ['participant', 'group'])
def test_a_folder_of_others_is_left_as_it_is(few, tmp_path, app_here, names, level):
    out = tmp_path / 'out'
    out.mkdir()
    for name in names:
        (out / name).write_text(FOREIGN[name])
    before = contents(out)
    result = app_here(few, out, level)
    assert result.returncode == 64
    whose = 'QSIPrep' if 'dataset_description.json' in names else 'it is not known whose it is'
    assert whose in result.stderr
    assert contents(out) == before


def test_a_dry_run_writes_nothing_anywhere(few, tmp_path, app):
    home = tmp_path / 'home'
    home.mkdir()
    before = contents(tmp_path)
    result = app(few, tmp_path / 'new' / 'out', *ARGV, '--dry-run',
                 env={'HOME': str(home), 'PATH': '/usr/bin'})  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert 'to do: preprocessing' in result.stdout
    assert 'GB are needed' in result.stdout
    assert contents(tmp_path) == before
    assert not (tmp_path / 'new').exists()
    assert not list(home.iterdir())


def test_what_is_passed_on_names_no_place_no_login_and_no_host(few, tmp_path, app):
    """The log, which is not passed on, does: it is for who made the call."""
    out = tmp_path / 'out'
    path = few / 'sub-01/dwi/sub-01_dwi.nii.gz'
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    result = app(few, out, *ARGV)
    assert result.returncode == 65, result.stdout + result.stderr
    (crash,) = (out / 'logs').glob('crash-*.txt')
    assert 'BIDS_DIR/sub-01/dwi/sub-01_dwi.nii.gz' in crash.read_text()
    description = json.loads((out / 'dataset_description.json').read_text())
    assert description['DatasetLinks'] == {'raw': '../bids'}
    shared = [p for p in out.rglob('*') if p.suffix in ('.json', '.html', '.md', '.txt', '.tsv')]
    shared = [p for p in shared if '.work' not in p.parts]
    assert len(shared) >= 4
    for file in shared:
        text = file.read_text()
        assert str(tmp_path) not in text, file
        assert socket.gethostname() not in text, file
        assert f'-{getpass.getuser()}-' not in file.name


Usage = namedtuple('Usage', 'total used free')


@pytest.mark.parametrize(('free', 'code'), [(2**20, 74), (250 * 2**20, 0)])
def test_a_disk_that_is_too_small_is_known_beforehand(
    few, tmp_path, app_here, monkeypatch, free, code
):
    """A run of this size needs less than 250 MB, and more than nothing."""
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: Usage(2**40, 0, free))
    result = app_here(few, tmp_path / 'out', *ARGV, '--dry-run')
    assert result.returncode == code, result.stdout + result.stderr
    if code:
        assert str(tmp_path / 'out') in result.stderr
        assert 'Make room' in result.stderr


def test_two_disks_are_looked_at_each(monkeypatch, tmp_path, few, app_here):
    work = tmp_path / 'work'
    work.mkdir()
    monkeypatch.setattr(disk, 'device', lambda folder: folder == work)
    monkeypatch.setattr(
        shutil, 'disk_usage', lambda path: Usage(2**40, 0, 2**20 if path == work else 2**40)
    )
    result = app_here(few, tmp_path / 'out', *ARGV, '-w', work, '--dry-run')
    assert result.returncode == 74
    assert f'are needed in {work}' in result.stderr


def test_what_killed_calls_left_long_ago_goes_and_what_is_written_now_stays(
    few, few_done, tmp_path, app
):
    import os

    out = shutil.copytree(few_done, tmp_path / 'out')
    folder = out / 'sub-01' / 'dwi'
    old, new = hidden(folder / 'a.nii.gz'), hidden(folder / 'b.nii.gz')
    for path in (old, new):
        path.touch()
    os.utime(old, (1, 1))
    result = app(few, out, *ARGV, '--redo', 'orientation')
    assert result.returncode == 0, result.stdout + result.stderr
    assert new.exists()
    assert not old.exists()


def test_the_work_folder_holds_nothing_of_a_run_that_is_finished(few_done):
    left = [p for p in (few_done / '.work').rglob('*') if p.suffix in ('.nii', '.npy', '.pklz')]
    assert not left
