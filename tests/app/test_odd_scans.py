"""Scans as clinics send them: few directions, many shells, no T1w, no metadata, two sessions."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bidsapp.modalities.dwi.simulate.dataset import DwiDesign
from bidsapp.simulated import Design, write_dataset
from tests.scans import keep_six_directions, rename, without_phase_encoding


@pytest.fixture(scope='module')
def odd(quick_dataset, tmp_path_factory):
    """One participant an oddity."""
    root = tmp_path_factory.mktemp('odd') / 'bids'
    root.mkdir()
    shutil.copy(quick_dataset / 'dataset_description.json', root)
    source = quick_dataset / 'sub-01'
    for label in ('six', 'bare'):
        rename(source / 'dwi', root / f'sub-{label}' / 'dwi', 'sub-01', f'sub-{label}')
    keep_six_directions(root / 'sub-six' / 'dwi', 'sub-six')
    (root / 'sub-bare' / 'dwi' / 'sub-bare_dwi.json').unlink()
    for session in ('early', 'late'):
        stem, folder = f'sub-two_ses-{session}', root / 'sub-two' / f'ses-{session}'
        rename(source / 'dwi', folder / 'dwi', 'sub-01', stem)
        without_phase_encoding(folder / 'dwi', stem)
        keep_six_directions(folder / 'dwi', stem)
        if session == 'late':
            rename(source / 'anat', folder / 'anat', 'sub-01', stem)
    design = Design(
        participants=1, seed=5, t1w_voxel_size=4.0, template_voxel_size=3.0,
        scans={'dwi': DwiDesign(8.0, 4.0, directions=12, bval=(700.0, 1400.0, 2800.0), snr=30)},
    )  # fmt: skip
    write_dataset(root.parent / 'three', design, say=lambda line: None)
    rename(
        root.parent / 'three' / 'sub-01' / 'dwi', root / 'sub-three' / 'dwi', 'sub-01', 'sub-three'
    )
    return root


def call(*argv):
    command = [sys.executable, '-m', 'bidsapp', *(str(arg) for arg in argv), '--device', 'cpu']
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope='module')
def done(odd, tmp_path_factory):
    """OUTPUT_DIR, and what a dry run had said before there was one."""
    out = tmp_path_factory.mktemp('odd_out') / 'out'
    said = call(odd, out, 'participant', '--dry-run')
    assert not list(out.rglob('*.nii.gz'))
    call(odd, out, 'participant')
    return out, said


def section(said: str, run: str) -> str:
    """What the dry run said of one run."""
    after = said.partition(f' {run}: ')[2]
    return re.split(r'\n[\d:]+ sub-', after)[0]


RUNS = ('sub-six', 'sub-three', 'sub-bare', 'sub-two_ses-early', 'sub-two_ses-late')
BY_DECONVOLUTION = ('model-csd_param-direction_dwimap', 'model-csd_param-fod_dwimap')
#: Run → labels that it gives, and words with which the dry run says what it does not.
EXPECTED = {
    'sub-six': (
        {'model-tensor_param-direction_dwimap'},
        ('7 volumes; at least 15', 'there is none for this run', 'two shells', '30 directions'),
    ),
    'sub-three': (
        {'model-tensor_param-direction_dwimap', 'model-noddi_param-icvf_dwimap',
         'model-smt_param-icvf_dwimap'},
        ('there is none for this run', '30 directions'),
    ),
    'sub-bare': (
        {*BY_DECONVOLUTION, 'seg-nfib_desc-reference_dseg'},
        ('do not say the phase-encoding direction', 'PartialFourier', 'two shells'),
    ),
    'sub-two_ses-early': (
        {'model-tensor_param-direction_dwimap', 'seg-tissue_desc-reference_dseg'},
        ('of another session', 'two shells'),
    ),
    'sub-two_ses-late': (
        {'model-tensor_param-direction_dwimap', 'seg-tissue_desc-reference_dseg'},
        ('of the same session', 'two shells'),
    ),
}  # fmt: skip
LABELS = ('model-', 'seg-')
#: In names of what a model that comes with the package predicts.
PREDICTED = ('unet', 'entropy')


@pytest.mark.parametrize('run', RUNS)
def test_each_gives_what_it_can_and_the_dry_run_has_said_so(done, run):
    out, said = done
    labels, words = EXPECTED[run]
    subject, _, session = run.partition('_')
    folder = out / subject / session / 'dwi'
    made = {p.name.removesuffix('.nii.gz').removeprefix(f'{run}_') for p in folder.glob('*.nii.gz')}
    assert {'desc-preproc_dwi', 'desc-brain_mask', 'desc-reference_FA'} <= made
    mine = {
        name for name in made
        if name.startswith(LABELS) and not any(word in name for word in PREDICTED)
    }  # fmt: skip
    assert labels <= mine
    if run != 'sub-three':
        assert mine == labels
    for word in words:
        assert word in section(said, run), word


def test_what_was_not_done_is_in_the_sidecar_with_its_reason(done):
    out, _ = done
    bare = json.loads((out / 'sub-bare/dwi/sub-bare_desc-preproc_dwi.json').read_text())
    assert bare['GibbsUnringing'] == {
        'Method': 'none',
        'Reason': 'the metadata do not say whether k-space was fully sampled (PartialFourier), '
        'which is never guessed',
    }
    assert bare['MotionCorrection']['EddyCurrentModel'] == 'affine, no axis assumed'
    assert bare['DistortionCorrection']['Method'] == 'none'
    assert any('T1w' in reason for reason in bare['DistortionCorrection']['NotUsed'])
    six = json.loads((out / 'sub-six/dwi/sub-six_desc-preproc_dwi.json').read_text())
    assert six['Denoising']['Method'] == 'none'
    assert '15' in six['Denoising']['Reason']
    assert 'Not corrected for noise' in six['Description']


def test_six_directions_still_point_along_the_fibres(done, quick_dataset):
    out, _ = done
    truth = quick_dataset / 'derivatives' / 'truth' / 'sub-01' / 'dwi'
    single = nib.load(truth / 'sub-01_seg-nfib_desc-truth_dseg.nii.gz').get_fdata() == 1
    fibre = nib.load(truth / 'sub-01_model-truth_param-direction_dwimap.nii.gz').get_fdata()
    name = 'sub-six/dwi/sub-six_model-tensor_param-direction_dwimap.nii.gz'
    found = nib.load(out / name).get_fdata()[..., :3]
    known = single & (np.linalg.norm(found, axis=-1) > 0)
    cosine = np.abs((found[known] * fibre[..., :3][known]).sum(-1)).clip(0, 1)
    assert np.degrees(np.arccos(np.median(cosine))) < 15


def test_output_is_valid_bids(done):
    out, _ = done
    validator = Path(sys.executable).with_name('bids-validator-deno')
    result = subprocess.run([validator, out, '--ignoreWarnings'], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_qsipreps_result_is_taken_instead_of_preprocessing_again(coarse, tmp_path, app):
    """Its voxels stay as they are, and its bvec, in the axes of the image, becomes BIDS's."""
    root = tmp_path / 'qsiprep'
    folder = root / 'sub-01' / 'dwi'
    folder.mkdir(parents=True)
    maker = {'Name': 'QSIPrep', 'Version': '1.0.1'}
    description = {'Name': 'QSIPrep', 'BIDSVersion': '1.9.0', 'GeneratedBy': [maker]}
    (root / 'dataset_description.json').write_text(json.dumps(description))
    raw = coarse / 'sub-01' / 'dwi' / 'sub-01_dwi'
    made = folder / 'sub-01_space-ACPC_desc-preproc_dwi'
    for kind in ('nii.gz', 'bval'):
        shutil.copy(f'{raw}.{kind}', f'{made}.{kind}')
    affine = nib.load(f'{raw}.nii.gz').affine
    bvecs = np.loadtxt(f'{raw}.bvec')
    flip = [-1 if np.linalg.det(affine) > 0 else 1, 1, 1]
    np.savetxt(f'{made}.bvec', bvecs * np.array(flip)[:, None], fmt='%.6f')
    out = tmp_path / 'out'
    result = app(
        coarse, out, 'participant', '--tasks', 'orientation', '-d', f'qsiprep={root}',
        '--device', 'cpu',
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert 'motion' not in result.stdout
    done = out / 'sub-01' / 'dwi' / 'sub-01_space-ACPC_desc-preproc_dwi'
    first, second = (nib.load(f'{path}.nii.gz').get_fdata() for path in (made, done))
    assert np.array_equal(first, second)
    np.testing.assert_allclose(np.loadtxt(f'{done}.bvec'), bvecs, atol=1e-3)
    sidecar = json.loads(Path(f'{done}.json').read_text())
    assert sidecar['CorrectedBy'] == 'qsiprep'
    assert sidecar['GradientTableTest']['Passed']
    assert not list(out.rglob('*confounds*'))
    assert (out / 'sub-01/dwi/sub-01_space-ACPC_model-csd_param-direction_dwimap.nii.gz').is_file()
