"""Raw k-space of simulated heads through `participant`: all that is promised, valid, right."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bidsapp.bids.write import write_json
from bidsapp.cli import main
from bidsapp.modalities.kspace.simulate.participant import Design, write_participant, write_truth
from bidsapp.physics.streams import stream
from tests.modalities.kspace import raw

FULL = Design((40, 48), 3, 5.0, 6.0, 6, 1, noise=0.005)
METHODS = ('zerofilled', 'sense', 'tv')


@pytest.fixture(scope='module')
def data(head, tmp_path_factory):
    """Nothing but source data: 01 with R = 2, 02 whole, 03 radial and a scan of noise."""
    root = tmp_path_factory.mktemp('kspace') / 'bids'
    write_json(root / 'dataset_description.json', {'Name': 'Heads', 'BIDSVersion': '1.10.0'})
    truth = {}
    for sub, acceleration in (('01', 2), ('02', 1)):
        folder, label = root / f'sourcedata/sub-{sub}', f'sub-{sub}_rec-norm'
        design = Design(*(getattr(FULL, k) for k in FULL.__slots__[:5]), acceleration, FULL.noise)
        path, truth[sub] = write_participant(folder, label, head, design, stream(3))
        if sub == '01':
            write_truth(root.parent / 'truth', 'sub-01', path, truth[sub])
    path = raw.write(root / 'sourcedata/sub-03/anat/sub-03_T1w.h5')
    raw.change_header(path, 'cartesian', 'radial')
    raw.write_noise(path.with_name('sub-03_acq-noise_T1w.h5'))
    return root, truth


@pytest.fixture(scope='module')
def out(data):
    root = data[0]
    assert main([
        str(root), str(root.parent / 'out'), 'participant', '--nprocs', '1', '--device', 'cpu',
    ]) == 0  # fmt: skip
    return root.parent / 'out'


def load(out, name, sub='01'):
    return nib.load(out / f'sub-{sub}/anat/sub-{sub}_{name}_T1w.nii.gz')


def names(folder):
    return sorted(path.name for path in folder.glob('*.nii.gz'))


def test_what_is_promised_is_there_and_nothing_else(out):
    expected = [f'sub-01_rec-{m}_desc-recon_T1w.nii.gz' for m in sorted(METHODS)]
    assert names(out / 'sub-01/anat') == expected
    assert names(out / 'sub-02/anat') == ['sub-02_rec-full_desc-reference_T1w.nii.gz']
    assert not (out / 'sub-03').exists()


def test_images_are_the_truth_where_the_truth_lies(out, data):
    """Total variation beats linear least squares, and that zeros, at R = 2 with six coils."""
    true = data[1]['01'].numpy()
    placed = nib.load(out.parent / 'truth/anat/sub-01_rec-full_desc-truth_T1w.nii.gz')
    errors = {}
    for method in METHODS:
        image = load(out, f'rec-{method}_desc-recon')
        assert np.allclose(image.affine, placed.affine, atol=1e-4)
        errors[method] = np.linalg.norm(image.get_fdata() - true) / np.linalg.norm(true)
    assert errors['tv'] < errors['sense'] < errors['zerofilled']
    assert errors['tv'] < 0.12
    full = load(out, 'rec-full_desc-reference', '02').get_fdata()
    assert np.linalg.norm(full - data[1]['02'].numpy()) < 0.05 * np.linalg.norm(full)


def test_a_sidecar_says_what_was_done(out):
    path = out / 'sub-01/anat/sub-01_rec-tv_desc-recon_T1w.json'
    said = json.loads(path.read_text())
    assert said['Acceleration'] == 2
    assert said['SkullStripped'] is False
    assert said['Coils'] == 6
    assert said['Iterations'] == {'sense': 30, 'tv': 60}
    assert 0.8 < said['LeftOutError']['tv'] < said['LeftOutError']['sense']
    assert said['Residual'] > 0.9
    assert said['SamplingPattern'].startswith('evenly')
    first = json.loads(path.with_name('sub-01_rec-zerofilled_desc-recon_T1w.json').read_text())
    assert first['Sources'] == ['bids:raw:sourcedata/sub-01/anat/sub-01_rec-norm_T1w.h5']
    assert first['GeometryKnown'] is True
    assert 'noise samples' in first['Whitening']
    assert any('rec-norm' in note for note in first['Notes'])


def validated(out):
    validator = Path(sys.executable).with_name('bids-validator-deno')
    if not validator.is_file():
        pytest.skip('bids-validator-deno is not installed in this environment')
    said = subprocess.run([validator, out, '--ignoreWarnings'], capture_output=True, text=True)
    assert said.returncode == 0, said.stdout


def test_the_validator_accepts_it(out):
    validated(out)


def test_the_page_begins_with_the_verdict(out):
    text = (out / 'sub-01.html').read_text()
    assert 'the one to use is that of total variation' in text
    assert text.index('Verdict') < text.index('Every method') < text.index('Profile')
    for name in ('comparison', 'profile', 'coils', 'noise'):
        assert (out / f'sub-01/figures/sub-01_desc-{name}_T1w.png').is_file()
        assert f'sub-01_desc-{name}_T1w.png' in text
    assert 'there was nothing to reconstruct' in (out / 'sub-02.html').read_text()


def call(root, out, *more):
    return main([
        str(root), str(out), 'participant', '--nprocs', '1', '--device', 'cpu', *more,
    ])  # fmt: skip


def test_a_second_call_finds_all_there(out, data, capsys):
    before = {p: p.stat().st_mtime_ns for p in (out / 'sub-01/anat').iterdir()}
    assert call(data[0], out, '--participant-label', '01') == 0
    assert {p: p.stat().st_mtime_ns for p in (out / 'sub-01/anat').iterdir()} == before


def test_lines_of_a_full_scan_are_left_out_afterwards_and_all_is_scored(out, data):
    """And with the option away again, what it made is gone."""
    other = out.parent / 'undersampled'
    shutil.copytree(out, other)
    assert call(data[0], other, '--participant-label', '02', '--undersample', '3') == 0
    expected = [*(f'sub-02_rec-{m}_desc-recon_T1w.nii.gz' for m in METHODS),
                'sub-02_rec-full_desc-reference_T1w.nii.gz']  # fmt: skip
    assert names(other / 'sub-02/anat') == sorted(expected)
    said = json.loads((other / 'sub-02/anat/sub-02_rec-tv_desc-recon_T1w.json').read_text())
    assert said['RetrospectiveAcceleration'] == 3
    assert said['Scores']['tv']['psnr'] > said['Scores']['sense']['psnr']
    assert (other / 'sub-02/figures/sub-02_desc-errors_T1w.png').is_file()
    validated(other)
    assert call(data[0], other, '--participant-label', '02') == 0
    assert names(other / 'sub-02/anat') == ['sub-02_rec-full_desc-reference_T1w.nii.gz']


def test_what_cannot_be_served_is_named_and_fails_only_if_asked_for(out, data, capfd):
    assert call(data[0], out, '--participant-label', '03', '--dry-run') == 18
    code = call(data[0], out, '--participant-label', '03', '--tasks', 'reconstruction', '--dry-run')
    assert code == 65
    assert 'radial' in capfd.readouterr().err
