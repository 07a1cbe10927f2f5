"""Which dMRI runs pybids finds, with inherited files, by labels and filters."""

from __future__ import annotations

import pytest

from bidsapp.bids.dataset import select
from bidsapp.choice import select_runs
from bidsapp.cli import parse
from bidsapp.core import Case
from bidsapp.modalities.dwi.bids.runs import DwiRun, runs_of
from bidsapp.modalities.dwi.bids.survey import corrections
from bidsapp.problems import MissingInput, NothingSelected


def find_runs(root, subjects, **options):
    return runs_of(select(root, subjects, **options))


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


def test_an_interpolated_run_is_said_not_to_be_denoised():
    run = DwiRun('dwi', Case({}, {}), {'AcquisitionMatrixPE': 64, 'ReconMatrixPE': 128})
    said = [line for line in corrections(run, 30) if line.startswith('denoising: none')]
    assert len(said) == 1
    assert 'interpolated' in said[0]


def test_sessions_and_filters_select(dataset):
    assert len(find_runs(dataset, ['01', '02'], sessions=['b'])) == 1
    assert len(find_runs(dataset, ['01', '02'], filters={'dwi': {'acquisition': None}})) == 2
    assert not find_runs(dataset, ['01'], filters={'dwi': {'acquisition': 'y'}})


def test_a_filter_that_selects_nothing_is_said_with_where_it_was_looked(dataset, tmp_path):
    (filters := tmp_path / 'filter.json').write_text('{"dwi": {"acquisition": "y"}}')
    settings = parse([
        str(dataset), str(tmp_path / 'out'), 'participant', '--participant-label', '01',
        '--bids-filter-file', str(filters),
    ])  # fmt: skip
    with pytest.raises(NothingSelected, match=r'no dMRI .*_dwi\.nii\.gz.* of 1 participants'):
        select_runs(settings)


def test_filter_for_t1w_leaves_the_dwi_alone(dataset):
    run = find_runs(dataset, ['01'], sessions=['a'], filters={'t1w': {'acquisition': 'y'}})[0]
    assert 't1w' not in run.case.files
