"""QSIPrep's results take the place of raw runs; their gradients point where QSIPrep meant."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bidsapp import registry
from bidsapp.bids.dataset import select
from bidsapp.bids.derivatives import linked_uri, write_dataset
from bidsapp.bids.outputs import write_output
from bidsapp.bids.prepared import find_prepared
from bidsapp.bids.write import write_json, write_text
from bidsapp.modalities.dwi.bids.fieldmaps import choose_distortion
from bidsapp.modalities.dwi.bids.ingest import (
    check_derivative,
    ingested_table,
    runs_with_preprocessed,
)
from bidsapp.problems import BadData, InvalidDataset, MissingInput, WrongUsage
from bidsapp.settings import derivatives

LPS = np.diag([-2.0, -2, 2, 1])
LPS[:3, 3] = 4, 5, -6
BVALS = np.array([0.0, 1000, 1000, 2000])
#: World (RAS+) directions: right, right and front, right and up.
WORLD = np.array([[0, 0, 0], [1, 0, 0], [0.6, 0.8, 0], [0.6, 0, 0.8]])
QSIPREP = {'Name': 'x', 'BIDSVersion': '1.10.0', 'DatasetType': 'derivative',
           'GeneratedBy': [{'Name': 'QSIPrep', 'Version': '1.0.1'}]}  # fmt: skip


def image(path, shape=(4, 5, 6, 4), affine=LPS):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.ones(shape, np.uint8), affine), path)


def raw_run(root, name, session=None):
    folder = root / 'sub-01' / (f'ses-{session}' if session else '')
    start = f'sub-01_ses-{session}' if session else 'sub-01'
    image(folder / 'dwi' / f'{start}{name}_dwi.nii.gz')
    for kind in ('bval', 'bvec'):
        (folder / 'dwi' / f'{start}{name}_dwi.{kind}').write_text('0')
    image(folder / 'anat' / f'{start}_T1w.nii.gz', (4, 5, 6))


def result(root, start='sub-01', session=None, space='ACPC', world_file=True):
    """A run as QSIPrep leaves it: bvec in the axes of an LPS+ image, .b in world axes."""
    folder = root / 'sub-01' / (f'ses-{session}' if session else '') / 'dwi'
    base = folder / f'{start}_space-{space}_desc-preproc_dwi'
    image(base.with_name(f'{base.name}.nii.gz'))
    image(folder / f'{start}_space-{space}_desc-brain_mask.nii.gz', (4, 5, 6))
    np.savetxt(base.with_name(f'{base.name}.bval'), BVALS[None], fmt='%d')
    np.savetxt(base.with_name(f'{base.name}.bvec'), (WORLD * [-1, -1, 1]).T)
    if world_file:
        np.savetxt(base.with_name(f'{base.name}.b'), np.c_[WORLD, BVALS])
    (folder / f'{start}_desc-confounds_timeseries.tsv').write_text('framewise_displacement\nn/a\n')
    base.with_name(f'{base.name}.json').write_text('{"EchoTime": 0.08}')
    return folder


@pytest.fixture
def raw(tmp_path):
    root = tmp_path / 'bids'
    raw_run(root, '_dir-AP')
    raw_run(root, '_dir-PA')
    (root / 'dataset_description.json').write_text('{"Name": "x", "BIDSVersion": "1.10.0"}')
    return root


@pytest.fixture
def qsiprep(tmp_path):
    root = tmp_path / 'qsiprep'
    root.mkdir()
    (root / 'dataset_description.json').write_text(json.dumps(QSIPREP))
    return root


def runs_of(raw, qsiprep, **options):
    return runs_with_preprocessed(select(raw, ['01'], **options), {'qsiprep': qsiprep})


def test_one_result_replaces_the_raw_runs_that_it_merged(raw, qsiprep):
    folder = result(qsiprep)
    (run,) = runs_of(raw, qsiprep)
    assert run.name == 'sub-01_space-ACPC'
    assert (run.taken_from, run.problem) == ('qsiprep', None)
    names = {kind: path.name for kind, path in run.case.files.items()}
    assert names['dwi'] == 'sub-01_space-ACPC_desc-preproc_dwi.nii.gz'
    assert names['mask'] == 'sub-01_space-ACPC_desc-brain_mask.nii.gz'
    assert names['confounds'] == 'sub-01_desc-confounds_timeseries.tsv'
    assert run.case.files['t1w'] == raw / 'sub-01/anat/sub-01_T1w.nii.gz'
    assert run.metadata['EchoTime'] == 0.08
    assert 'preprocessed by QSIPrep 1.0.1: nothing is corrected again' in run.notes
    assert 'takes the place of sub-01_dir-AP, sub-01_dir-PA' in run.notes
    assert choose_distortion(run).best.method == 'none'
    assert choose_distortion(run).best.words == 'as qsiprep has left it'
    assert linked_uri(run.case.files['dwi'], 'qsiprep', qsiprep).startswith('bids:qsiprep:sub-01/')
    assert run.case.files['dwi'].parent == folder


@pytest.mark.parametrize('world_file', [True, False])
def test_gradients_point_where_qsiprep_meant(raw, qsiprep, world_file):
    """An FSL reader would mirror x: the determinant of an LPS+ affine is positive."""
    result(qsiprep, world_file=world_file)
    (run,) = runs_of(raw, qsiprep)
    table = ingested_table(run.case)
    assert np.allclose(table.bvecs, WORLD, atol=1e-6)
    assert np.array_equal(table.bvals, BVALS)
    assert any('no .b file' in note for note in run.notes) != world_file


def test_a_world_table_that_does_not_fit_is_bad_data(raw, qsiprep):
    folder = result(qsiprep)
    (folder / 'sub-01_space-ACPC_desc-preproc_dwi.b').write_text('0 0 0 0\n1 0 0 1000\n')
    (run,) = runs_of(raw, qsiprep)
    with pytest.raises(BadData, match='2 rows of 4 numbers; expected 4 rows'):
        ingested_table(run.case)


def test_a_session_without_result_is_preprocessed_here(tmp_path, qsiprep):
    raw = tmp_path / 'bids'
    for session in ('a', 'b'):
        raw_run(raw, '', session)
    result(qsiprep, 'sub-01_ses-a', 'a')
    runs = {run.name: run for run in runs_of(raw, qsiprep)}
    assert sorted(runs) == ['sub-01_ses-a_space-ACPC', 'sub-01_ses-b']
    assert runs['sub-01_ses-b'].taken_from is None
    assert 'QSIPrep has left no result of this session' in runs['sub-01_ses-b'].notes
    assert runs['sub-01_ses-a_space-ACPC'].case.files['t1w'].name == 'sub-01_ses-a_T1w.nii.gz'
    assert [run.name for run in runs_of(raw, qsiprep, sessions=['b'])] == ['sub-01_ses-b']
    for wanted, count in (('b', 1), (['a', 'b'], 2), ('*', 2)):
        assert len(runs_of(raw, qsiprep, filters={'dwi': {'session': wanted}})) == count


def test_a_result_is_enough_without_raw_dwi(raw, qsiprep):
    for path in (raw / 'sub-01' / 'dwi').iterdir():
        path.unlink()
    assert not runs_of(raw, qsiprep)
    result(qsiprep)
    assert [run.name for run in runs_of(raw, qsiprep)] == ['sub-01_space-ACPC']


def test_of_two_spaces_or_resolutions_one_is_taken(raw, qsiprep):
    result(qsiprep, space='T1w')
    assert [run.name for run in runs_of(raw, qsiprep)] == ['sub-01_space-T1w']
    result(qsiprep, space='ACPC_res-2mm')
    assert (
        runs_of(raw, qsiprep)[0].case.files['mask'].name.endswith('res-2mm_desc-brain_mask.nii.gz')
    )
    result(qsiprep)
    result(qsiprep, space='MNI152NLin2009cAsym')
    (run,) = runs_of(raw, qsiprep)
    assert run.case.files['dwi'].name == 'sub-01_space-ACPC_desc-preproc_dwi.nii.gz'


def test_older_confounds(raw, qsiprep):
    folder = result(qsiprep)
    old = folder / 'sub-01_confounds.tsv'
    (folder / 'sub-01_desc-confounds_timeseries.tsv').rename(old)
    assert runs_of(raw, qsiprep)[0].case.files['confounds'] == old


def test_a_missing_or_foreign_mask_is_said(raw, qsiprep):
    folder = result(qsiprep)
    mask = folder / 'sub-01_space-ACPC_desc-brain_mask.nii.gz'
    image(mask, (5, 5, 6))
    assert any('has another shape' in note for note in runs_of(raw, qsiprep)[0].notes)
    mask.unlink()
    (run,) = runs_of(raw, qsiprep)
    assert 'mask' not in run.case.files
    assert f'{mask.name} is not there: a brain mask is made here' in run.notes


def test_a_missing_table_is_the_runs_own_problem(raw, qsiprep):
    folder = result(qsiprep)
    (folder / 'sub-01_space-ACPC_desc-preproc_dwi.bvec').unlink()
    (run,) = runs_of(raw, qsiprep)
    assert isinstance(run.problem, MissingInput)


def test_what_is_no_result_of_qsiprep_is_refused_in_words(tmp_path, qsiprep):
    with pytest.raises(WrongUsage, match='supported: qsiprep'):
        derivatives([f'fmriprep={qsiprep}'])
    with pytest.raises(MissingInput, match='does not exist'):
        check_derivative('qsiprep', tmp_path / 'no')
    with pytest.raises(InvalidDataset, match=f'Did you mean {qsiprep}'):
        check_derivative('qsiprep', tmp_path)
    description = qsiprep / 'dataset_description.json'
    description.write_text('{"Name": "x", "BIDSVersion": "1.10.0"}')
    with pytest.raises(InvalidDataset, match='not the output of a pipeline'):
        check_derivative('qsiprep', qsiprep)
    description.write_text('{"GeneratedBy": [{"Name": "fMRIPrep"}]}')
    with pytest.raises(WrongUsage, match='written by fMRIPrep'):
        check_derivative('qsiprep', qsiprep)
    description.write_text('[1]')
    with pytest.raises(InvalidDataset, match='no JSON object'):
        check_derivative('qsiprep', qsiprep)


@pytest.mark.parametrize(
    'description', [{'PipelineDescription': {'Name': 'qsiprep'}}, {'DatasetType': 'derivative'}]
)
def test_older_descriptions_are_understood(qsiprep, description):
    (qsiprep / 'dataset_description.json').write_text(json.dumps(description))
    assert check_derivative('qsiprep', qsiprep) == 'QSIPrep of an unknown version'


def test_links_to_datasets_stay(tmp_path, raw, qsiprep):
    out = tmp_path / 'out'
    write_dataset(out, raw, {'qsiprep': qsiprep})
    write_dataset(out, raw)
    description = json.loads((out / 'dataset_description.json').read_text())
    assert description['DatasetLinks'] == {'raw': f'../{raw.name}', 'qsiprep': '../qsiprep'}
    assert len(description['SourceDatasets']) == 2


def test_outputs_keep_the_space_and_the_validator_agrees(tmp_path, raw, qsiprep):
    validator = Path(sys.executable).with_name('bids-validator-deno')
    if not validator.is_file():
        pytest.skip('bids-validator-deno is not installed in this environment')
    result(qsiprep)
    (run,) = runs_of(raw, qsiprep)
    out, entities, like = tmp_path / 'out', run.case.entities, run.case.files['dwi']
    write_dataset(out, raw, {'qsiprep': qsiprep})
    uri = linked_uri(like, 'qsiprep', qsiprep)
    sources = {'Sources': [uri], 'SpatialReference': uri}
    for task in registry.tasks_of('dwi'):
        for output in task.writes:
            suffix = output.entities['suffix']
            volumes = {'probseg': len(output.labels), 'dwi': nib.load(like).shape[3]}.get(suffix)
            shape = (4, 5, 6, volumes) if volumes else (4, 5, 6)
            for source in ('unet', *output.references):
                write_output(
                    out, entities, output, source, np.ones(shape, output.dtype), like, sources
                )
    start = out / 'sub-01' / 'dwi' / 'sub-01_space-ACPC'
    for end in ('desc-preproc_dwi', 'desc-brain_mask'):
        image(start.with_name(f'{start.name}_{end}.nii.gz'), (4, 5, 6, 4)[: 4 - (end[-1] == 'k')])
        said = {'SkullStripped': False, **sources}
        said['SpatialReference'] = run.metadata['SpatialReference']
        write_json(start.with_name(f'{start.name}_{end}.json'), said)
    for end in ('desc-preproc_dwi.bval', 'desc-preproc_dwi.bvec'):
        write_text(
            start.with_name(f'{start.name}_{end}'), '0 0 0 0\n' * (3 if end.endswith('vec') else 1)
        )
    for recording in ('sub-01', 'sub-01_space-ACPC'):
        table = start.with_name(f'{recording}_desc-confounds_timeseries.tsv')
        write_text(table, 'framewise_displacement\n0.1\n')
        write_json(table.with_suffix('.json'), {'framewise_displacement': {'Units': 'mm'}})
    written = {p.name for p in start.parent.iterdir()}
    assert 'sub-01_space-ACPC_desc-preproc_dwi.nii.gz' in written
    assert len(find_prepared(out, 'dwi')) == 1
    assert find_prepared(out, 'dwi')[0].entities == entities
    said = subprocess.run(
        [validator, out, '--ignoreWarnings'], capture_output=True, text=True, check=False
    )
    assert said.returncode == 0, said.stdout
