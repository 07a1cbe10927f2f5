"""A new modality is one new folder, a new task one new file: dropped in, they go all the way."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import bidsapp

TOY = Path(__file__).with_name('toy')
#: Lines with something in them that the folder of a modality may have.
LINES = 60
#: A task of diffusion MRI: where is there more than half white matter?
WHITE = """
from bidsapp.bids.images import with_label
from bidsapp.core import Head, Output, Task
from bidsapp.learn.losses import cross_entropy_and_dice

WHITE = Output('white', {'suffix': 'probseg', 'seg': 'white'}, 'float32', description='White?')


def wrong(output, sample):
    error = (output.softmax(0)[1] - sample.target[0] + 1)[sample.mask[0]].abs().mean()
    return [('wrong', 'all', float(error))]


task = Task(
    Head(2, 1, cross_entropy_and_dice, wrong, 'wrong', higher_is_better=False),
    (WHITE,),
    load=lambda sample, case: sample,
    finish=lambda outputs, sample, case: {
        'white': (outputs['whiteness'].softmax(0)[1] * sample.mask[0]).numpy()
    },
    truth=lambda known: 1.0 + (known['tissue'][1:2] > 0.5) * known['brain'],
)
"""


@pytest.fixture(scope='module')
def package(tmp_path_factory):
    """A copy of the package with the toy modality in it, as a folder for PYTHONPATH."""
    root = tmp_path_factory.mktemp('package')
    source = Path(bidsapp.__file__).parent
    shutil.copytree(source, root / 'bidsapp', ignore=shutil.ignore_patterns('__pycache__'))
    modalities = root / 'bidsapp' / 'modalities'
    shutil.copytree(TOY, modalities / 'toy', ignore=shutil.ignore_patterns('__pycache__'))
    (modalities / 'dwi' / 'tasks' / 'whiteness.py').write_text(WHITE)
    return root


@pytest.fixture(scope='module')
def toys(tmp_path_factory):
    """A dataset of four images of 8³ voxels, half of them left-handed."""
    root = tmp_path_factory.mktemp('toys') / 'bids'
    rng = np.random.default_rng(0)
    for label, sign in (('01', 1), ('02', -1), ('03', 1), ('04', -1)):
        folder = root / f'sub-{label}' / 'anat'
        folder.mkdir(parents=True)
        image = nib.Nifti1Image(
            rng.standard_normal((8, 8, 8)).astype(np.float32), np.diag([sign, 1, 1, 1])
        )
        nib.save(image, folder / f'sub-{label}_PDw.nii.gz')
    text = json.dumps({'Name': 'toys', 'BIDSVersion': '1.10.0', 'DatasetType': 'raw'})
    (root / 'dataset_description.json').write_text(text)
    return root


@pytest.fixture(scope='module')
def call(package):
    def run(*argv, main='bidsapp.cli', check=0):
        code = f'import sys; from {main} import main; sys.exit(main())'
        command = [sys.executable, '-c', code, *(str(arg) for arg in argv)]
        environment = {**os.environ, 'PYTHONPATH': str(package)}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=package)
        assert done.returncode == check, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


@pytest.fixture(scope='module')
def done(call, toys, tmp_path_factory):
    """OUTPUT_DIR after check → participant → group → participant → pretrain, and what was said.

    How long that takes is printed among the slowest tests.
    """
    out = tmp_path_factory.mktemp('toys') / 'out'
    said = {
        'check': call(toys, main='bidsapp.check'),
        'participant': call(toys, out, 'participant', '--device', 'cpu'),
        'group': call(toys, out, 'group', '--steps', 12, '--device', 'cpu'),
        'again': call(toys, out, 'participant', '--device', 'cpu'),
        'pretrain': call('-', out, 'pretrain', '--tasks', 'brightness', '--steps', 4),
    }
    return out, said


def test_the_folder_is_small():
    lines = [x for p in TOY.rglob('*.py') for x in p.read_text().splitlines() if x.strip()]
    assert len(lines) <= LINES


def test_every_level_finds_it_by_its_folder_alone(done):
    _out, said = done
    assert '4 runs examined: 0 errors' in said['check']
    assert '4 toy runs of 4 participants' in said['participant']
    assert 'brightness: step 12/12' in said['group']
    assert 'brightness prediction' in said['again']
    assert 'tell bright from dark' in said['pretrain']


def test_what_it_promises_is_there_on_the_grid_of_the_raw_image(done, toys):
    out, _ = done
    for label in ('01', '02', '03', '04'):
        folder = out / f'sub-{label}' / 'anat'
        raw = nib.load(toys / f'sub-{label}' / 'anat' / f'sub-{label}_PDw.nii.gz')
        for source in ('reference', 'unet'):
            made = nib.load(folder / f'sub-{label}_seg-bright_desc-{source}_dseg.nii.gz')
            assert np.allclose(made.affine, raw.affine)
        reference = nib.load(folder / f'sub-{label}_seg-bright_desc-reference_dseg.nii.gz')
        assert np.array_equal(reference.get_fdata() > 0, raw.get_fdata() > 0.5)
        page = (out / f'sub-{label}.html').read_text()
        assert 'Labels: bright' in page
        assert 'Not everything worked' not in page


def test_the_network_learns_and_the_model_says_of_what_modality_it_is(done):
    out, _ = done
    rows = [row.split('\t') for row in (out / 'group_brightness.tsv').read_text().splitlines()]
    assert {row[2] for row in rows[1:]} == {'scratch'}
    card = json.loads((out / 'models/pretrained/toy/supervised/v1/card.json').read_text())
    assert card['modality'] == 'toy'
    assert card['network']['name'] == 'unet'
    assert card['heads'] == {'brightness': 1}


def test_output_is_valid_bids(done):
    out, _ = done
    validator = Path(sys.executable).with_name('bids-validator-deno')
    result = subprocess.run([validator, out, '--ignoreWarnings'], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_tasks_of_two_modalities_are_not_pretrained_at_once(call, tmp_path):
    argv = ('-', tmp_path, 'pretrain', '--tasks', 'brightness', 'tissue')
    assert 'one modality' in call(*argv, check=64)


def test_an_option_that_no_task_of_the_call_has_is_refused(call, toys, tmp_path):
    argv = (toys, tmp_path, 'group', '--tasks', 'brightness', '--input-directions', 12)
    assert '--input-directions means nothing to brightness' in call(*argv, check=64)


def test_a_task_that_is_dropped_in_is_pretrained_with_the_others(package, tmp_path):
    """One file: found, named on the command line, taught by its own truth, in the card."""
    code = """
import sys
from bidsapp import pretrain
from bidsapp.simulate import template_head
small = {'VALIDATION': 1, 'CALIBRATION': 1, 'TEST': 1, 'SIDE': 16, 'WINDOW': 1, 'BATCH': 1}
vars(pretrain).update(small)
from dataclasses import replace
from bidsapp.modalities.dwi import learn
learn.input = replace(learn.input, network=replace(learn.input.network, patch=(16, 16, 16)))
template_head.TEMPLATE_MM = 4.0
from bidsapp.cli import main
sys.exit(main(sys.argv[1:]))
"""
    argv = ['-', str(tmp_path), 'pretrain', '--steps', '2', '--device', 'cpu']
    environment = {**os.environ, 'PYTHONPATH': str(package)}
    command = [sys.executable, '-c', code, *argv]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=package)
    assert result.returncode == 0, result.stdout + result.stderr
    card = json.loads((tmp_path / 'models/pretrained/dwi/supervised/v1/card.json').read_text())
    assert card['heads']['whiteness'] == 2
    assert any(row['task'] == 'whiteness' for row in card['metrics'])
    assert len(card['heads']) > 2
