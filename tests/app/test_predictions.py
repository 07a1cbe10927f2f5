"""A model of all tasks applied to a preprocessed run: files, sidecars, page, and what is warned of.

The run is handed over as if it had been preprocessed and labelled, so that only predictions run.
"""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from bidsapp import registry
from bidsapp.bids.derivatives import write_dataset
from bidsapp.bids.names import build as build_name
from bidsapp.bids.outputs import write_output
from bidsapp.bids.prepared import main_sidecar, prepared_files
from bidsapp.bids.write import write_json
from bidsapp.core import Checkpoint
from bidsapp.interfaces.labels import refuse_other_input
from bidsapp.learn.cards import load_card, sha256
from bidsapp.learn.checkpoint import save
from bidsapp.modalities.dwi.bids.prepared import CONFOUNDS, PREPARED, WITH_PREPROCESSING
from bidsapp.modalities.dwi.physics.acquisition import Acquisition
from bidsapp.modalities.dwi.physics.qspace import LAYOUT, N_CHANNELS
from bidsapp.networks.registry import build
from bidsapp.problems import BadData, Unavailable

RUN = {'subject': '01', 'datatype': 'dwi'}
RANGES = {'directions': [6, 150], 'b': [[700, 3300]], 'voxel_mm': [1, 4.5], 'snr': [6, 60]}


def write_model(folder: Path, ranges: dict, seed: int = 0) -> Path:
    """Random weights for all tasks; the correction of restore is small."""
    torch.manual_seed(seed)
    heads = {task.name: task.head.channels for task in registry.tasks_of('dwi')}
    options = {**LAYOUT, 'widths': [8, 8, 16, 16]}
    network = build('dwi', 'unet3d', N_CHANNELS, heads, **options)
    with torch.no_grad():
        for parameter in network.heads['restore'].parameters():
            parameter *= 0.1
    shape = {'name': 'unet3d', 'channels_in': N_CHANNELS, 'options': options}
    card = {'modality': 'dwi', 'name': 'toy', 'version': 'v1', 'heads': heads, 'network': shape}
    states = {name: network.heads[name].state_dict() for name in heads}
    return save(
        Checkpoint({**card, 'tested_ranges': ranges}, network.body.state_dict(), states), folder
    )


def write_preprocessed(root: Path, raw: Path, truth: Path) -> None:
    """The raw run as its own preprocessed one, and empty reference labels."""
    write_dataset(root, raw)
    files = {kind: root / path for kind, path in prepared_files(PREPARED, RUN).items()}
    files['dwi'].parent.mkdir(parents=True)
    for kind, ending in (('dwi', 'nii.gz'), ('bval', 'bval'), ('bvec', 'bvec')):
        shutil.copy(raw / f'sub-01/dwi/sub-01_dwi.{ending}', files[kind])
    said = {'Description': 'Diffusion MRI.', 'SkullStripped': False}
    write_json(root / main_sidecar(PREPARED, RUN), said)
    brain = np.asarray(nib.load(truth / 'sub-01_desc-brain_mask.nii.gz').dataobj)
    for output, source in WITH_PREPROCESSING:
        write_output(root, RUN, output, source, brain, files['dwi'], {})
    explained, table = (root / build_name({**RUN, **named}) for named in CONFOUNDS)
    write_json(explained, {'framewise_displacement': {'Units': 'mm'}})
    table.write_text('framewise_displacement\n0.1\n')
    facts = Acquisition(30, ((1000.0, 30), (2000.0, 30)), 1.5)
    for task in registry.tasks_of('dwi'):
        if task.label is None:
            continue
        try:
            labels = task.labels(task.label.source(facts))
        except Unavailable:
            continue
        for output, source in labels:
            empty = np.zeros((*brain.shape, 3) if output.name == 'direction' else brain.shape)
            write_output(root, RUN, output, source, empty, files['dwi'], {})


def call(*argv, check=0):
    command = [sys.executable, '-m', 'bidsapp', *(str(arg) for arg in argv), '--device', 'cpu']
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == check, result.stdout + result.stderr
    return result.stdout + result.stderr


@pytest.fixture(scope='module')
def raw(small_dataset, tmp_path_factory):
    """One participant of two shells, without T1w."""
    root = tmp_path_factory.mktemp('raw') / 'bids'
    (root / 'sub-01' / 'dwi').mkdir(parents=True)
    for path in (small_dataset / 'sub-01' / 'dwi').iterdir():
        shutil.copy(path, root / 'sub-01' / 'dwi')
    shutil.copy(small_dataset / 'dataset_description.json', root)
    return root


@pytest.fixture(scope='module')
def done(raw, small_dataset, tmp_path_factory):
    """(BIDS_DIR, OUTPUT_DIR, model, what was said) after predictions."""
    folder = tmp_path_factory.mktemp('predictions')
    model = write_model(folder / 'models' / 'v1', RANGES)
    truth = small_dataset / 'derivatives' / 'truth' / 'sub-01' / 'dwi'
    write_preprocessed(folder / 'out', raw, truth)
    said = call(raw, folder / 'out', 'participant', '--model', model)
    return raw, folder / 'out', model, said


def test_one_pass_of_the_network_makes_every_prediction(done):
    _, out, _, said = done
    assert said.count('.model_') == 1
    names = [
        'seg-tissue_desc-unet_dseg', 'seg-tissue_desc-unet_probseg',
        'seg-tissue_desc-entropy_probseg', 'seg-nfib_desc-unet_dseg',
        'seg-nfib_desc-unet_probseg', 'seg-nfib_desc-entropy_probseg', 'desc-restored_dwi',
        'desc-unet_FA', 'desc-unet_ADC', 'model-unet_param-residual_dwimap',
        'model-unet_param-fod_dwimap',
        *(f'model-unet_param-{p}{d}_dwimap' for d in ('', '_desc-uncertainty')
          for p in ('direction', 'icvf', 'od', 'isovf', 'mk', 'ak', 'rk')),
    ]  # fmt: skip
    folder = out / 'sub-01' / 'dwi'
    mask = nib.load(folder / 'sub-01_desc-brain_mask.nii.gz')
    brain = np.asarray(mask.dataobj) > 0
    for name in names:
        image = nib.load(folder / f'sub-01_{name}.nii.gz')
        assert image.shape[:3] == brain.shape
        assert np.array_equal(image.affine, mask.affine)
        values = np.asarray(image.dataobj)
        assert np.isfinite(values).all()
        assert not values[~brain].any()
        assert json.loads((folder / f'sub-01_{name}.json').read_text())['Description']


def test_output_is_valid_bids(done):
    validator = Path(sys.executable).with_name('bids-validator-deno')
    command = [validator, done[1], '--ignoreWarnings']
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_restored_dmri_keeps_its_table_and_the_volumes_without_weighting(done):
    folder = done[1] / 'sub-01' / 'dwi'
    for kind in ('bval', 'bvec'):
        restored, own = (folder / f'sub-01_desc-{d}_dwi.{kind}' for d in ('restored', 'preproc'))
        assert restored.read_bytes() == own.read_bytes()
    said = json.loads((folder / 'sub-01_desc-restored_dwi.json').read_text())
    b = np.array((folder / 'sub-01_desc-restored_dwi.bval').read_text().split(), float)
    assert said['PassedThrough'] == np.flatnonzero(b < 50).tolist()
    before, after = (
        np.asarray(nib.load(folder / f'sub-01_desc-{d}_dwi.nii.gz').dataobj, np.float32)
        for d in ('preproc', 'restored')
    )
    brain = np.asarray(nib.load(folder / 'sub-01_desc-brain_mask.nii.gz').dataobj) > 0
    assert np.array_equal(before[brain][:, b < 50], after[brain][:, b < 50])
    weighted = [volumes[brain][:, b > 50] for volumes in (before, after)]
    assert np.corrcoef(weighted[0].ravel(), weighted[1].ravel())[0, 1] > 0.9


def test_a_prediction_says_its_model_and_that_the_scan_is_in_range(done):
    _, out, model, _ = done
    sha = json.loads((model / 'card.json').read_text())['sha256']
    for path in (out / 'sub-01' / 'dwi').glob('*uncertainty*.json'):
        said = json.loads(path.read_text())
        assert said['ModelSHA256'] == sha
        assert said['WithinTestedRange'] is True
        assert said['Warnings'] == []
        assert said['SeenInTraining'] is False
        assert said['Units'] in ('degree', 'arbitrary')


def test_who_was_seen_follows_from_the_scan_and_not_from_its_label(done, tmp_path):
    """A split beside a model from elsewhere is about other people of the same labels."""
    bids, out, _, _ = done
    again = tmp_path / 'out'
    shutil.copytree(out, again, ignore=shutil.ignore_patterns('logs'))
    known = sha256(bids / 'sub-01' / 'dwi' / 'sub-01_dwi.nii.gz')
    for seed, scan, split in ((2, known, 'test'), (3, '0' * 64, 'train')):
        folder = write_model(tmp_path / f'v{seed}', RANGES, seed)
        card = json.loads((folder / 'card.json').read_text())
        said = {'seen_scans': [scan], 'seen_complete': True, 'participants': {'train': 1}}
        (folder / 'card.json').write_text(json.dumps({**card, **said}))
        (folder / 'split.tsv').write_text(f'participant_id\tsplit\nsub-01\t{split}\n')
        call(bids, again, 'participant', '--model', folder, '--tasks', 'tissue')
        path = again / 'sub-01/dwi/sub-01_seg-tissue_desc-unet_probseg.json'
        assert json.loads(path.read_text())['SeenInTraining'] is (scan == known)


def test_what_is_there_is_not_made_again_and_what_is_gone_is(done):
    bids, out, model, _ = done
    assert 'nothing, all is there' in call(bids, out, 'participant', '--model', model)
    gone = out / 'sub-01' / 'dwi' / 'sub-01_seg-nfib_desc-entropy_probseg.nii.gz'
    content = gone.read_bytes()
    gone.unlink()
    said = call(bids, out, 'participant', '--model', model)
    assert 'to do: crossings prediction\n' in said
    assert gzip.decompress(gone.read_bytes()) == gzip.decompress(content)


def test_a_scan_out_of_range_is_told_of_in_log_sidecar_and_page(done, tmp_path):
    bids, out, _, _ = done
    again = tmp_path / 'out'
    shutil.copytree(out, again, ignore=shutil.ignore_patterns('.work', 'logs'))
    ranges = {**RANGES, 'directions': [6, 20], 'snr': [1000, 2000]}
    model = write_model(tmp_path / 'v1', ranges, seed=1)
    argv = (bids, again, 'participant', '--model', model, '--tasks', 'tissue')
    said = call(*argv)
    sidecar = json.loads(
        (again / 'sub-01/dwi/sub-01_seg-tissue_desc-unet_probseg.json').read_text()
    )
    assert sidecar['WithinTestedRange'] is False
    assert len(sidecar['Warnings']) == 2
    page = (again / 'sub-01.html').read_text()
    for words in ('the model was tested with 6 to 20', 'the model was tested with 1000 or more'):
        assert said.count(words) == 1
        assert sum(words in warning for warning in sidecar['Warnings']) == 1
        assert page.count(words) == 1


def test_one_shell_gives_no_neurite_density(done, tmp_path):
    bids, _, model, _ = done
    one = tmp_path / 'bids'
    shutil.copytree(bids, one)
    folder = one / 'sub-01' / 'dwi'
    b = np.loadtxt(folder / 'sub-01_dwi.bval')
    keep = b < 1500
    np.savetxt(folder / 'sub-01_dwi.bval', b[None, keep], fmt='%g')
    np.savetxt(folder / 'sub-01_dwi.bvec', np.loadtxt(folder / 'sub-01_dwi.bvec')[:, keep])
    image = nib.load(folder / 'sub-01_dwi.nii.gz')
    nib.save(
        nib.Nifti1Image(np.asarray(image.dataobj)[..., keep], image.affine, image.header),
        folder / 'sub-01_dwi.nii.gz',
    )
    said = call(one, tmp_path / 'out', 'participant', '--model', model, '--dry-run')
    assert 'microstructure: no prediction' in said
    assert 'FA and ADC are there' in said
    assert 'microstructure prediction' not in said
    assert 'restore prediction' in said


def test_restoring_is_not_learnt_from_the_network_itself(done):
    """The restored run is a prediction, never a label: `group` leaves it alone if not named."""
    bids, out, _, _ = done
    said = call(bids, out, 'group', '--tasks', 'restore', check=66)
    assert '0 participants have a reference label' in said
    assert 'restore' not in call(bids, out, 'group', '--dry-run', check=66)


def test_a_model_for_another_input_is_refused_in_words(done):
    card = load_card(done[2])
    refuse_other_input(card, N_CHANNELS)
    other = {**card['network'], 'channels_in': 97}
    with pytest.raises(BadData, match=r'97 input channels.*train it again'):
        refuse_other_input({**card, 'network': other}, N_CHANNELS)
