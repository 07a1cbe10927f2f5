"""Datasets as DataLad serves them: links to what was fetched, and to what was not."""

from __future__ import annotations

import json
import os

import nibabel as nib
import numpy as np
import pytest

from bidsapp.bids.annex import leads_to
from bidsapp.bids.dataset import select
from bidsapp.check import main as check
from bidsapp.cli import main
from bidsapp.modalities.dwi.bids.runs import runs_of
from bidsapp.problems import MissingInput

SCAN = 'sub-01/dwi/sub-01_dwi'
T1W = 'sub-01/anat/sub-01_T1w.nii.gz'
FIELDMAP = 'sub-01/fmap/sub-01_dir-PA_epi'


@pytest.fixture(autouse=True)
def own_environment(monkeypatch):
    """The app sets variables of its process; other tests shall not see them."""
    monkeypatch.setattr('os.environ', os.environ.copy())


@pytest.fixture
def served(tmp_path, rng):
    """A dataset whose images are links into .git/annex, all fetched."""
    root = tmp_path / 'ds000001'
    directions = rng.normal(size=(3, 12))
    directions[:, 0] = 0
    directions[:, 1:] /= np.linalg.norm(directions[:, 1:], axis=0)
    texts = {
        'dataset_description.json': json.dumps({'Name': 'x', 'BIDSVersion': '1.10.0'}),
        f'{SCAN}.bval': ' '.join(['0'] + ['1000'] * 11),
        f'{SCAN}.bvec': '\n'.join(' '.join(f'{x:.6f}' for x in row) for row in directions),
        f'{SCAN}.json': json.dumps({'PhaseEncodingDirection': 'j', 'TotalReadoutTime': 0.05}),
        f'{FIELDMAP}.json': json.dumps({'PhaseEncodingDirection': 'j-', 'TotalReadoutTime': 0.05}),
    }
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding='utf-8')
    for name, volumes in ((f'{SCAN}.nii.gz', 12), (T1W, 1), (f'{FIELDMAP}.nii.gz', 1)):
        content = root / '.git/annex/objects' / name.rpartition('/')[2]
        content.parent.mkdir(parents=True, exist_ok=True)
        data = rng.normal(100, 1, (6, 6, 6, volumes)).astype(np.float32)
        nib.save(nib.Nifti1Image(data.squeeze(), np.diag([2.0, 2, 2, 1])), content)
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(f'../../.git/annex/objects/{content.name}')
    return root


def drop(root, name):
    """As `datalad drop` leaves it: the link stays, its content goes."""
    path = root / name
    if not path.is_symlink():
        path.unlink()
        path.symlink_to(f'../../.git/annex/objects/{path.name}')
    path.resolve().unlink(missing_ok=True)


def unlocked(root, name):
    """As git-annex leaves an unlocked file that was not fetched: a line of text."""
    (root / name).unlink()
    (root / name).write_text('/annex/objects/MD5E-s12345--0123abcd.nii.gz\n', encoding='utf-8')


def planned(root, tmp_path, capsys):
    """(exit code, all that was said) of a dry run."""
    code = main([str(root), str(tmp_path / 'out'), 'participant', '--device', 'cpu', '--dry-run'])
    said = capsys.readouterr()
    return code, said.out + said.err


def test_what_was_fetched_is_read_through_its_link(served, tmp_path, capsys):
    code, said = planned(served, tmp_path, capsys)
    assert code == 0, said
    assert 'sub-01_dir-PA_epi.nii.gz' in said
    assert 'not here' not in said


@pytest.mark.parametrize('lose', [drop, unlocked])
@pytest.mark.parametrize('name', [f'{SCAN}.{e}' for e in ('nii.gz', 'bval', 'json')] + [T1W])
def test_what_was_not_fetched_is_66_and_names_the_command(served, tmp_path, capsys, lose, name):
    lose(served, name)
    code, said = planned(served, tmp_path, capsys)
    assert code == 66, said
    assert f'datalad get {name}.' in said
    assert 'Traceback' not in said
    assert said.count('datalad get') == 1


def test_all_that_is_missing_is_named_at_once(served):
    for name in (f'{SCAN}.nii.gz', T1W):
        drop(served, name)
    problem = runs_of(select(served, ['01']))[0].problem
    assert isinstance(problem, MissingInput)
    assert f'datalad get {SCAN}.nii.gz {T1W}.' in str(problem)


def test_one_participant_that_was_not_fetched_is_its_own_problem(served):
    """Others are planned as if nothing were missing."""
    other = served / 'sub-02' / 'dwi'
    other.mkdir(parents=True)
    for ending in ('nii.gz', 'bval', 'bvec', 'json'):
        content = (served / f'{SCAN}.{ending}').read_bytes()
        (other / f'sub-02_dwi.{ending}').write_bytes(content)
    drop(served, f'{SCAN}.bvec')
    first, second = runs_of(select(served, ['01', '02']))
    assert isinstance(first.problem, MissingInput)
    assert second.problem is None


@pytest.mark.parametrize('lose', [drop, unlocked])
@pytest.mark.parametrize('ending', ['nii.gz', 'json'])
def test_a_field_map_that_was_not_fetched_is_left_out_and_said(served, lose, ending):
    lose(served, f'{FIELDMAP}.{ending}')
    run = runs_of(select(served, ['01']))[0]
    assert run.problem is None
    assert not run.fieldmaps
    assert any('datalad get' in note for note in run.fieldmap_notes)


def test_a_description_that_was_not_fetched_is_66(served, tmp_path, capsys):
    drop(served, 'dataset_description.json')
    code, said = planned(served, tmp_path, capsys)
    assert code == 66
    assert 'datalad get dataset_description.json' in said


def test_check_names_the_command_too(served, capsys):
    drop(served, f'{SCAN}.nii.gz')
    assert check([str(served), '--json']) == 65
    rows = json.loads(capsys.readouterr().out)
    assert [row['code'] for row in rows] == ['MISSING_FILE']
    assert 'datalad get' in rows[0]['message']


def test_only_an_annex_pointer_is_one(tmp_path):
    path = tmp_path / 'file'
    path.write_bytes(b'\x1f\x8b/annex/objects/x')
    assert leads_to(path) == ''
    path.write_text('/annex/objects/KEY\nsomething that git-annex may add\n', encoding='utf-8')
    assert leads_to(path) == '/annex/objects/KEY'
    assert leads_to(tmp_path / 'not there') == ''
