"""Gradient echoes as `transfermri-simulate` writes them: valid, from the seed, found by the app."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bidsapp.bids.dataset import select
from bidsapp.modalities.gre import bids
from bidsapp.modalities.gre.simulate.dataset import GreDesign
from bidsapp.problems import BadData
from bidsapp.simulated import Design, _parser, design_of, main, write_dataset

OWN = GreDesign(gre_voxel_size=7.0, echo_times=(0.006, 0.015), phase_format=('siemens', 'radians'))
DESIGN = Design(
    participants=2, seed=5, t1w_voxel_size=7.0, template_voxel_size=4.0, scans={'gre': OWN}
)


@pytest.fixture(scope='module')
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp('gre') / 'heads'
    write_dataset(out, DESIGN, say=lambda line: None)
    return out


@pytest.mark.parametrize('part', ['.', 'derivatives/truth'])
def test_the_bids_validator_finds_no_error(written, part):
    validator = Path(sys.executable).with_name('bids-validator-deno')
    if not validator.is_file():
        pytest.skip('bids-validator-deno is not installed in this environment')
    done = subprocess.run(
        [validator, written / part, '--ignoreWarnings'], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_the_same_seed_gives_the_same_voxels_however_many_heads_there_are(written, tmp_path):
    write_dataset(tmp_path / 'again', replace(DESIGN, participants=1), say=lambda line: None)
    again = sorted((tmp_path / 'again').rglob('sub-01*.nii.gz'))
    assert len(again) == 2 * 2 + 1 + 3 + 4  # echoes, T1w, maps, fields
    for path in again:
        one, other = nib.load(path), nib.load(written / path.relative_to(tmp_path / 'again'))
        np.testing.assert_array_equal(np.asarray(one.dataobj), np.asarray(other.dataobj))


def test_heads_and_the_vendor_of_the_phase_differ(written):
    one, other = (
        nib.load(written / f'sub-{sub}/anat/sub-{sub}_echo-2_part-phase_MEGRE.nii.gz')
        for sub in ('01', '02')
    )
    assert one.shape != other.shape or not np.allclose(one.affine, other.affine)
    assert one.get_fdata().min() < -4000
    assert np.abs(other.get_fdata()).max() <= np.pi + 1e-6
    units = [
        json.loads((written / f'sub-{s}/anat/sub-{s}_echo-1_part-phase_MEGRE.json').read_text())
        for s in ('01', '02')
    ]
    assert [said['Units'] for said in units] == ['arbitrary', 'rad']
    assert units[0]['MagneticFieldStrength'] == 3
    rows = (written / 'participants.tsv').read_text().splitlines()
    assert [row.split('\t')[2] for row in rows] == ['phase_format', 'siemens', 'radians']


def test_every_run_can_be_served_and_so_can_its_true_fields(written):
    raw = select(written, ['01', '02'])
    runs = bids.files.find(raw, {})
    assert [run.name for run in runs] == ['sub-01', 'sub-02']
    assert all(run.problem is None and run.unserved is None for run in runs)
    assert all(len(run.facts.echo_times) == 2 for run in runs)
    given = bids.files.find(raw, {'fields': written / 'derivatives/truth'})
    assert [(run.given, run.problem) for run in given] == [('local', None)] * 2
    assert all('mask' in run.case.files for run in given)


def test_options_make_the_design():
    design = design_of(_parser().parse_args(['out', '--modality', 'gre']))
    assert design == Design(scans={'gre': GreDesign()})
    asked = ['--echo-times', '0.005', '0.02', '--phase-format', 'siemens', '--gre-voxel-size', '3']
    design = design_of(_parser().parse_args(['out', *asked, '--modality', 'dwi', 'gre']))
    assert list(design.scans) == ['dwi', 'gre']
    assert design.scans['gre'] == GreDesign(
        gre_voxel_size=3.0, echo_times=(0.005, 0.02), phase_format=('siemens',)
    )


def test_echo_times_in_milliseconds_are_refused_before_anything_is_written(tmp_path, capsys):
    asked = [str(tmp_path / 'out'), '--modality', 'gre', '--echo-times', '5', '20']
    assert main(asked) == BadData.exit_code
    assert 'milliseconds' in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()
    assert main([*asked[:3], '--phase-format', 'degrees']) == 64
