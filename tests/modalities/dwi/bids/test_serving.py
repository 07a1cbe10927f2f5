"""A run in dwi/ that only serves another's field map promises nothing of its own."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest

from bidsapp.bids.dataset import select
from bidsapp.modalities.dwi.bids.fieldmaps import choose_distortion
from bidsapp.modalities.dwi.bids.runs import runs_of
from bidsapp.modalities.dwi.bids.survey import survey
from bidsapp.modalities.dwi.physics.harmonics import fibonacci_hemisphere
from bidsapp.problems import BadData

AP = {'PhaseEncodingDirection': 'j-', 'TotalReadoutTime': 0.05}
PA = {'PhaseEncodingDirection': 'j', 'TotalReadoutTime': 0.05}
WHOLE = [0, *[1000] * 12]
ZEROS = [0, 0, 0]
#: The reversed run of the UK Biobank's protocol.
BIOBANK = [0, 2000, 0, 2000, 0, 2000]


def write(root, name, metadata, bvals, folder='sub-01/dwi'):
    """A run with these b-values, in s/mm², and as many different directions as are weighted."""
    stem = root / folder / name
    stem.parent.mkdir(parents=True, exist_ok=True)
    data = np.full((4, 5, 6, len(bvals)), 100, np.int16)
    nib.save(nib.Nifti1Image(data, np.diag([-2.0, 2, 2, 1])), f'{stem}.nii.gz')
    stem.with_suffix('.json').write_text(json.dumps(metadata))
    b = np.array(bvals)
    vectors = np.zeros((3, len(b)))
    vectors[:, b > 0] = fibonacci_hemisphere(int((b > 0).sum())).T
    np.savetxt(stem.with_suffix('.bval'), b[None], fmt='%d')
    np.savetxt(stem.with_suffix('.bvec'), vectors, fmt='%.6f')
    return stem


@pytest.fixture
def root(tmp_path):
    """One participant with one run from front to back."""
    (tmp_path / 'dataset_description.json').write_text('{"Name": "x", "BIDSVersion": "1.10.0"}')
    write(tmp_path, 'sub-01_dir-AP_dwi', AP, WHOLE)
    return tmp_path


def runs(root):
    return {run.name: run for run in runs_of(select(root, ['01']))}


def serves_alone(root):
    """Whether sub-01_dir-AP is the only run, corrected by sub-01_dir-PA and saying so."""
    (name, run), = runs(root).items()  # fmt: skip
    said = 'sub-01_dir-PA_dwi.nii.gz determines no tensor and belongs to the field map of'
    assert [note for note in run.notes if note.startswith(said)]
    best = choose_distortion(run).best
    assert best.source.files['opposite'].name == 'sub-01_dir-PA_dwi.nii.gz'
    return name == 'sub-01_dir-AP' and best.method == 'pair'


@pytest.mark.parametrize('bvals', [ZEROS, BIOBANK, [0, *[1000] * 5]])
def test_a_reversed_run_without_a_tensor_promises_nothing(root, bvals):
    write(root, 'sub-01_dir-PA_dwi', PA, bvals)
    assert serves_alone(root)


def test_neither_does_one_without_tables(root):
    stem = write(root, 'sub-01_dir-PA_dwi', PA, ZEROS)
    for kind in ('.bval', '.bvec'):
        stem.with_suffix(kind).unlink()
    assert serves_alone(root)


def test_six_directions_reversed_are_a_run_of_their_own(root):
    write(root, 'sub-01_dir-PA_dwi', PA, [0, *[1000] * 6])
    assert sorted(runs(root)) == ['sub-01_dir-AP', 'sub-01_dir-PA']


def test_one_of_the_runs_own_polarity_serves_with_a_reversed_one(root):
    write(root, 'sub-01_dir-AP_run-2_dwi', AP, ZEROS)
    write(root, 'sub-01_dir-PA_dwi', PA, ZEROS)
    assert serves_alone(root)


def test_one_of_the_runs_own_polarity_alone_serves_nothing(root):
    write(root, 'sub-01_dir-AP_run-2_dwi', AP, ZEROS)
    assert sorted(runs(root)) == ['sub-01_dir-AP', 'sub-01_dir-AP_run-2']


@pytest.mark.parametrize(
    ('metadata', 'serves'),
    [
        ({'PhaseEncodingDirection': 'i'}, False),
        ({}, False),
        ({'PhaseEncodingDirection': 'i', 'IntendedFor': 'dwi/sub-01_dir-AP_dwi.nii.gz'}, True),
    ],
)
def test_another_axis_or_none_serves_only_what_it_is_linked_to(root, metadata, serves):
    write(root, 'sub-01_dir-PA_dwi', metadata, ZEROS)
    assert ('sub-01_dir-PA' not in runs(root)) == serves


def test_another_session_is_not_served(tmp_path):
    write(tmp_path, 'sub-01_ses-a_dir-AP_dwi', AP, WHOLE, 'sub-01/ses-a/dwi')
    write(tmp_path, 'sub-01_ses-b_dir-PA_dwi', PA, ZEROS, 'sub-01/ses-b/dwi')
    assert sorted(runs(tmp_path)) == ['sub-01_ses-a_dir-AP', 'sub-01_ses-b_dir-PA']


@pytest.mark.parametrize('bvals', [ZEROS, BIOBANK])
def test_alone_it_is_a_run_that_cannot_be_used(tmp_path, bvals):
    write(tmp_path, 'sub-01_dir-PA_dwi', PA, bvals)
    (run,) = runs_of(select(tmp_path, ['01']))
    with pytest.raises(BadData, match='weighted' if bvals is ZEROS else 'directions') as refused:
        survey(run)
    assert refused.value.exit_code == 65


def test_a_table_that_cannot_be_read_is_said_of_a_run(root):
    write(root, 'sub-01_dir-PA_dwi', PA, ZEROS).with_suffix('.bval').write_text('0 zero 0')
    assert sorted(runs(root)) == ['sub-01_dir-AP', 'sub-01_dir-PA']
