"""Nobody vanishes, and no odd file or folder stops another; folders are listed once."""

from __future__ import annotations

import json
import os
import time

import nibabel as nib
import numpy as np
import pytest

from bidsapp.bids import folders
from bidsapp.bids.dataset import check_dataset, select, subjects_of
from bidsapp.bids.prepared import choose_prepared, prepared_files
from bidsapp.bids.search import find_runs, unused
from bidsapp.cli import main
from bidsapp.modalities.dwi.bids.prepared import PREPARED
from bidsapp.problems import InvalidDataset, NothingSelected

RNG = np.random.default_rng(4)
DIRECTIONS = RNG.normal(size=(3, 12))
DIRECTIONS /= np.linalg.norm(DIRECTIONS, axis=0)


def scan(root, stem, ending='.nii.gz'):
    """A run of 13 small volumes, sound in itself."""
    path = root / f'{stem}{ending}'
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([-2.0, 2, 2, 1])
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4, 13), np.int16), affine), path)
    np.savetxt(root / f'{stem}.bval', [[0] + [1000] * 12], fmt='%g')
    np.savetxt(root / f'{stem}.bvec', np.c_[np.zeros(3), DIRECTIONS], fmt='%.6f')
    (root / f'{stem}.json').write_text('{"PhaseEncodingDirection": "j-"}')
    return path


@pytest.fixture
def root(tmp_path):
    root = tmp_path / 'bids'
    root.mkdir()
    (root / 'dataset_description.json').write_text('{"Name": "x", "BIDSVersion": "1.9.0"}')
    scan(root, 'sub-01/dwi/sub-01_dwi')
    return root


def planned(root, capsys, *options):
    """(exit code, all that was said) of a dry run."""
    code = main([
        str(root), str(root.parent / 'out'), 'participant', '--device', 'cpu', '--dry-run',
        '--tasks', 'orientation', *options,
    ])  # fmt: skip
    said = capsys.readouterr()
    assert 'Traceback' not in said.out + said.err
    return code, said.out + said.err


def own_code(root, capsys, subject):
    """The exit code of one participant alone."""
    return planned(root, capsys, '--participant-label', subject)[0]


def twice(root):
    for ending in ('.nii', '.nii.gz'):
        scan(root, 'sub-02/dwi/sub-02_dwi', ending)


def mended(root, **sidecar):
    scan(root, 'sub-02/dwi/sub-02_dwi').with_name('sub-02_dwi.json').write_text(json.dumps(sidecar))


def cut(root):
    path = scan(root, 'sub-02/dwi/sub-02_dwi')
    path.write_bytes(path.read_bytes()[:60])


def flipped(root):
    path = scan(root, 'sub-02/dwi/sub-02_dwi')
    content = bytearray(path.read_bytes())
    content[12:40] = bytes(28)
    path.write_bytes(bytes(content))


def folder_as_image(root):
    path = scan(root, 'sub-02/dwi/sub-02_dwi')
    path.unlink()
    path.mkdir()


ODD = {
    'unknown entity': (lambda r: scan(r, 'sub-02/dwi/sub-02_foo-1_dwi'), 65),
    'derivative entity': (lambda r: scan(r, 'sub-02/dwi/sub-02_desc-preproc_dwi'), 65),
    'label of a file': (lambda r: scan(r, 'sub-02/dwi/sub-02_acq-b=1000_dwi'), 65),
    'no key': (lambda r: scan(r, 'sub-02/dwi/sub-02_copy_dwi'), 65),
    'an entity twice': (lambda r: scan(r, 'sub-02/dwi/sub-02_run-1_run-2_dwi'), 65),
    'two images': (twice, 65),
    'another participant': (lambda r: scan(r, 'sub-02/dwi/sub-01_dwi'), 65),
    'another session': (lambda r: scan(r, 'sub-02/ses-a/dwi/sub-02_ses-b_dwi'), 65),
    'no session': (lambda r: scan(r, 'sub-02/ses-a/dwi/sub-02_dwi'), 65),
    'odd session': (lambda r: scan(r, 'sub-02/ses-a-1/dwi/sub-02_ses-a-1_dwi'), 65),
    'cut off': (cut, 65),
    'damaged': (flipped, 65),
    'a folder': (folder_as_image, 65),
    'no dMRI': (lambda r: scan(r, 'sub-02/anat/sub-02_T1w'), 66),
    'an empty folder': (lambda r: (r / 'sub-02').mkdir(), 66),
    'a link to nothing': (lambda r: (r / 'sub-02').symlink_to('gone'), 66),
    'a link to itself': (lambda r: (r / 'sub-02').symlink_to('sub-02'), 74),
}


@pytest.mark.parametrize('kind', ODD)
def test_an_odd_file_is_its_own_runs_problem(root, capsys, kind):
    spoil, code = ODD[kind]
    spoil(root)
    assert own_code(root, capsys, '02') == code
    both, said = planned(root, capsys, '--participant-label', '01', '02')
    assert (both, 'sub-01: 12 directions' in said) == (1, True)
    assert 'sub-02' in said


@pytest.mark.parametrize('said', [{'IntendedFor': None}, {'B0FieldIdentifier': [None, 3]}])
def test_metadata_that_say_nothing_do_no_harm(root, capsys, said):
    mended(root, **said)
    assert planned(root, capsys)[0] == 0


@pytest.mark.parametrize('label', ['A-1', '02_x', ''])
def test_a_folder_that_is_no_label_is_named(root, capsys, label):
    scan(root, f'sub-{label}/dwi/sub-{label}_dwi')
    code, said = planned(root, capsys)
    assert (code, f'sub-{label} is no BIDS name' in said) == (1, True)


def test_hidden_files_are_passed_by(root, capsys):
    for name in ('.DS_Store', '._sub-01_dwi.nii.gz', '._sub-01_dwi.json'):
        (root / 'sub-01/dwi' / name).write_bytes(b'\0\5\26\7')
    (root / '._sub-01').write_bytes(b'\0\5\26\7')
    assert planned(root, capsys)[0] == 0


def test_what_cannot_be_read_is_74_of_its_own(root, capsys, monkeypatch):
    """Root reads everything, so the refusal is played."""
    scan(root, 'sub-02/ses-a/dwi/sub-02_ses-a_dwi')
    scan(root, 'sub-02/ses-b/dwi/sub-02_ses-b_dwi')
    true = folders._list

    def refusing(folder):
        if folder.endswith('sub-02/ses-a/dwi'):
            raise PermissionError(13, 'Permission denied', folder)
        return true(folder)

    monkeypatch.setattr(folders, '_list', refusing)
    folders._kept.cache_clear()
    code, said = planned(root, capsys)
    assert code == 1
    assert 'sub-02/ses-a/dwi: ' in said
    assert 'sub-02_ses-b: 12 directions' in said
    assert own_code(root, capsys, '02') == 1
    assert planned(root, capsys, '--session-label', 'a')[0] == 74


def test_a_participant_through_a_link_is_one_like_others(root, capsys):
    (root / 'sub-01').rename(root.parent / 'elsewhere')
    (root / 'sub-01').symlink_to('../elsewhere')
    assert planned(root, capsys)[0] == 0


def test_who_was_asked_for_and_is_not_there(root, capsys):
    scan(root, 'sub-02/anat/sub-02_T1w')
    code, said = planned(root, capsys)
    assert (code, 'No run is selected of sub-02' in said) == (0, True)
    assert own_code(root, capsys, '09') == 18
    code, said = planned(root, capsys, '--participant-label', '01', '02', '09')
    assert code == 1
    assert 'sub-02: no dMRI run' in said
    assert 'holds no sub-09' in said
    assert planned(root, capsys, '--participant-label', '02', '09')[0] == 66


def test_sessions_for_some_people_only(root, capsys):
    scan(root, 'sub-02/ses-a/dwi/sub-02_ses-a_dwi')
    code, said = planned(root, capsys, '--session-label', 'a', 'z')
    assert (code, 'No run is selected of sub-01' in said) == (0, True)
    assert 'No session z of any participant' in said
    both = ('--participant-label', '01', '02', '--session-label', 'a')
    assert planned(root, capsys, *both)[0] == 1
    assert planned(root, capsys, '--session-label', 'z')[0] == 18


def test_what_is_almost_a_run_is_said(root):
    for name in (
        'Sub-03/dwi/x', 'sub-01/DWI/x', 'sub-01/dwi/sub-01_DWI.nii.gz',
        'sub-01/dwi/sub-01_run-2_dwi.NII.GZ', 'sub-01/dwi/sub-01_part-phase_dwi.nii.gz',
        'sub-01/sub-01_dwi.nii.gz', 'sub-01/dwi/sub-01_dwi.mif',
    ):  # fmt: skip
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    raw = select(root, subjects_of(root))
    assert {p.relative_to(root).as_posix() for p in unused(raw, ['dwi'])} == {
        'Sub-03', 'sub-01/DWI', 'sub-01/dwi/sub-01_DWI.nii.gz',
        'sub-01/dwi/sub-01_run-2_dwi.NII.GZ', 'sub-01/dwi/sub-01_part-phase_dwi.nii.gz',
        'sub-01/sub-01_dwi.nii.gz', 'sub-01/dwi/sub-01_dwi.mif',
    }  # fmt: skip
    assert [run.name for run in find_runs(raw, ['dwi'], {})] == ['sub-01']


@pytest.mark.parametrize('name', ['dwi', 'func', 'anat', 'sub-x', 'ses-1', 'derivatives'])
def test_folders_above_the_root_have_no_say(root, name):
    scan(root, 'sub-01/anat/sub-01_T1w')
    (there := root.parent / name).mkdir()
    (run,) = find_runs(select(root.rename(there / 'bids'), ['01']), ['dwi'], {})
    assert (run.name, 't1w' in run.case.files, run.problem) == ('sub-01', True, None)


@pytest.mark.parametrize('said', [{'DatasetType': 'derivative'}, {'PipelineDescription': {}}])
def test_results_of_a_pipeline_are_no_raw_dataset(root, said):
    content = {'Name': 'x', 'BIDSVersion': '1.9.0', **said}
    (root / 'dataset_description.json').write_text(json.dumps(content))
    with pytest.raises(InvalidDataset, match='derivative dataset'):
        check_dataset(root)


def test_a_filter_selects_results_as_it_selects_scans(root):
    for stem in ('sub-02/ses-a/dwi/sub-02_ses-a_run-01_dwi', 'sub-02/dwi/sub-02_acq-x_dwi'):
        scan(root, stem, '.nii')
    raw = select(root, subjects_of(root))
    out = root.parent / 'out'
    for run in find_runs(raw, ['dwi'], {}):
        for path in prepared_files(PREPARED, run.case.entities).values():
            (out / path).parent.mkdir(parents=True, exist_ok=True)
            (out / path).touch()
        source = run.path.relative_to(root).as_posix()
        sidecar = (out / path).parent / f'{run.name}_desc-preproc_dwi.json'
        sidecar.write_text(json.dumps({'Sources': [f'bids:raw:{source}']}))
    for query, count in (
        ({}, 3), ({'session': '*'}, 1), ({'session': None}, 2), ({'run': 1}, 1), ({'run': '1'}, 1),
        ({'extension': 'nii'}, 2), ({'subject': ['01']}, 1), ({'acquisition': ['x', None]}, 3),
        ({'datatype': 'dwi', 'suffix': 'dwi'}, 3), ({'session': 'ses-a'}, 1),
        ({'acquisition': 'Query.NONE'}, 2), ({'direction': '*'}, 0),
    ):  # fmt: skip
        chosen = select(root, raw.subjects, filters={'dwi': query})
        names = {run.name for run in find_runs(chosen, ['dwi'], {})}
        try:
            cases = choose_prepared(out, 'dwi', (), (), {'dwi': query})
        except NothingSelected:
            cases = []
        assert (len(names), len(cases)) == (count, count), query


def listings(root, capsys, monkeypatch, *options):
    """Folder → how often it was listed by a dry run."""
    counts: dict[str, int] = {}

    def counting(function):
        def counted(path='.'):
            counts[str(path)] = counts.get(str(path), 0) + 1
            return function(path)

        return counted

    with monkeypatch.context() as patch:
        patch.setattr(os, 'scandir', counting(os.scandir))
        patch.setattr(os, 'listdir', counting(os.listdir))
        folders._kept.cache_clear()
        assert planned(root, capsys, *options)[0] == 0
    return {path: n for path, n in counts.items() if path.startswith(str(root))}


def test_folders_are_listed_once_and_only_those_of_the_selected(root, capsys, monkeypatch):
    for k in range(2, 6):
        scan(root, f'sub-{k:02d}/dwi/sub-{k:02d}_dwi')
    settled = time.time() - 60
    for path in (root, *root.rglob('*')):
        os.utime(path, (settled, settled))
    one = listings(root, capsys, monkeypatch, '--participant-label', '03')
    assert one == {str(root / p): 1 for p in ('', 'sub-03', 'sub-03/dwi')}
    every = listings(root, capsys, monkeypatch)
    assert len(every) == 11
    assert set(every.values()) == {1}
