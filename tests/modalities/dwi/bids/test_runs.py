"""What pybids finds, BIDS inheritance, the choice of a T1w, and filters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bidsapp.bids.dataset import check_dataset, choose_t1w, read_filters, subjects_of
from bidsapp.bids.scans import inherited
from bidsapp.modalities.dwi.bids.runs import find_runs
from bidsapp.problems import InvalidDataset, MissingInput, NothingSelected, WrongUsage


@pytest.fixture
def dataset(tmp_path):
    """Two participants; gradients of the second are inherited from the root."""
    files = [
        'dataset_description.json',
        'sub-01/ses-a/dwi/sub-01_ses-a_dir-AP_dwi.nii.gz',
        'sub-01/ses-a/dwi/sub-01_ses-a_dir-AP_dwi.bval',
        'sub-01/ses-a/dwi/sub-01_ses-a_dir-AP_dwi.bvec',
        'sub-01/ses-a/anat/sub-01_ses-a_T1w.nii.gz',
        'sub-01/ses-b/dwi/sub-01_ses-b_dir-AP_dwi.nii.gz',
        'sub-02/dwi/sub-02_acq-x_dwi.nii.gz',
        'acq-x_dwi.bval',
        'acq-x_dwi.bvec',
        'derivatives/other/sub-01/dwi/sub-01_desc-preproc_dwi.nii.gz',
    ]
    for name in files:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"Name": "x", "BIDSVersion": "1.10.0"}' if name.endswith('.json') else '')
    (tmp_path / 'dwi.json').write_text('{"EchoTime": 0.08, "Manufacturer": "A"}')
    (tmp_path / 'sub-02/dwi/sub-02_acq-x_dwi.json').write_text('{"Manufacturer": "B"}')
    return tmp_path


def test_runs_with_their_files(dataset):
    runs = {run.name: run for run in find_runs(dataset, ['01', '02'])}
    assert sorted(runs) == ['sub-01_ses-a_dir-AP', 'sub-01_ses-b_dir-AP', 'sub-02_acq-x']
    assert runs['sub-01_ses-a_dir-AP'].problem is None
    assert runs['sub-01_ses-a_dir-AP'].case.files['t1w'].name == 'sub-01_ses-a_T1w.nii.gz'


def test_a_missing_table_is_the_runs_own_problem(dataset):
    runs = {run.name: run for run in find_runs(dataset, ['01', '02'])}
    problem = runs['sub-01_ses-b_dir-AP'].problem
    assert isinstance(problem, MissingInput)
    assert 'bval' in str(problem)
    assert runs['sub-02_acq-x'].problem is None


def test_tables_and_metadata_are_inherited_and_the_nearest_wins(dataset):
    run = find_runs(dataset, ['02'])[0]
    assert run.case.files['bvec'] == dataset / 'acq-x_dwi.bvec'
    assert run.metadata == {'EchoTime': 0.08, 'Manufacturer': 'B'}


def test_a_file_of_another_acquisition_is_not_inherited(dataset):
    scan = dataset / 'sub-01/ses-a/dwi/sub-01_ses-a_dir-AP_dwi.nii.gz'
    assert inherited(dataset, scan, '.bval') == [
        scan.with_name(scan.name.replace('nii.gz', 'bval'))
    ]


def test_sessions_and_filters_select(dataset):
    assert len(find_runs(dataset, ['01', '02'], sessions=['b'])) == 1
    assert len(find_runs(dataset, ['01', '02'], filters={'dwi': {'acquisition': None}})) == 2
    with pytest.raises(NothingSelected):
        find_runs(dataset, ['01'], filters={'dwi': {'acquisition': 'y'}})


def test_filter_for_t1w_leaves_the_dwi_alone(dataset):
    run = find_runs(dataset, ['01'], sessions=['a'], filters={'t1w': {'acquisition': 'y'}})[0]
    assert 't1w' not in run.case.files


def test_filter_file_that_is_no_object_is_said(tmp_path):
    path = tmp_path / 'filter.json'
    path.write_text('[1]')
    with pytest.raises(WrongUsage, match='object of queries'):
        read_filters(path)
    path.write_text('{')
    with pytest.raises(WrongUsage, match='not valid JSON'):
        read_filters(path)


@pytest.mark.parametrize(
    ('entities', 'chosen'),
    [
        ({'subject': '01', 'session': 'a'}, 'sub-01_ses-a_T1w.nii.gz'),
        ({'subject': '02', 'session': 'b'}, 'sub-02_ses-a_T1w.nii.gz'),
        ({'subject': '01', 'session': 'c'}, None),
        ({'subject': '03'}, None),
    ],
)
def test_t1w_of_the_same_session_else_the_only_one(entities, chosen):
    anatomies = [
        Path(f'{name}_T1w.nii.gz')
        for name in ('sub-01_ses-a', 'sub-01_ses-b', 'sub-01_ses-a_acq-z', 'sub-02_ses-a')
    ]
    found, notes = choose_t1w(entities, anatomies)
    assert (found.name if found else None) == chosen
    assert bool(notes) == (entities['subject'] != '03')


@pytest.mark.parametrize('content', ['{', '[]', json.dumps({'Name': 'x'})])
def test_description_that_is_not_one(tmp_path, content):
    (tmp_path / 'dataset_description.json').write_text(content)
    with pytest.raises(InvalidDataset):
        check_dataset(tmp_path)


def test_no_subject_folder(tmp_path):
    with pytest.raises(InvalidDataset, match='sub-'):
        subjects_of(tmp_path)
