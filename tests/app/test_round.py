"""The whole round on simulated heads, as a user sees it: participant, group, participant."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from bidsapp.learn.cards import bundled_models

SUBJECTS = ('01', '02', '03')
#: Heads in voxels fine enough for labels to be near the truth.
FINE = ('01',)
#: Few: what is learnt starts from the bundled weights, and each of them is validated.
STEPS = 2


def call(*argv, check=0):
    """Run the app; its output on the wrong exit code."""
    command = [sys.executable, '-m', 'bidsapp', *(str(arg) for arg in argv), '--device', 'cpu']
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == check, result.stdout + result.stderr
    return result.stdout


def killed_when(seen, *argv):
    """Start the app, and kill it with SIGKILL as soon as ``seen()`` holds."""
    command = [sys.executable, '-m', 'bidsapp', *(str(arg) for arg in argv), '--device', 'cpu']
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 300
    while not seen() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.poll() is None, 'it ended before it could be killed'
    import os

    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture(scope='module')
def done(three_heads, tmp_path_factory):
    """OUTPUT_DIR after participant → group → participant, and what was said."""
    out = tmp_path_factory.mktemp('round') / 'out'
    said = [
        call(three_heads, out, 'participant'),
        call(three_heads, out, 'group', '--steps', STEPS),
        call(three_heads, out, 'participant'),
    ]
    return out, said


def promised(subject):
    run = f'sub-{subject}'
    images = [
        'desc-preproc_dwi', 'desc-brain_mask', 'desc-reference_FA', 'desc-reference_ADC',
        'seg-tissue_desc-reference_dseg', 'seg-tissue_desc-unet_dseg',
        'seg-tissue_desc-unet_probseg', 'seg-nfib_desc-reference_dseg', 'seg-nfib_desc-unet_dseg',
        'seg-nfib_desc-unet_probseg', 'model-smt_param-icvf_dwimap',
        'model-smt_param-diffusivity_dwimap', 'seg-tissue_desc-entropy_probseg',
        'seg-nfib_desc-entropy_probseg',
    ]  # fmt: skip
    images += [
        f'model-{source}_param-{name}_dwimap'
        for source in ('csd', 'unet')
        for name in ('direction', 'fod')
    ]
    images += [f'model-{s}_param-{k}_dwimap' for s in ('dki', 'unet') for k in ('mk', 'ak', 'rk')]
    parameters = [(s, p) for s in ('noddi', 'unet') for p in ('icvf', 'od', 'isovf')]
    images += [f'model-{source}_param-{name}_dwimap' for source, name in parameters]
    images += [
        f'model-unet_param-{name}_desc-uncertainty_dwimap'
        for name in ('direction', 'icvf', 'od', 'isovf', 'mk', 'ak', 'rk')
    ]
    restored = 'restore' in bundled_models()  # it is not learnt by `group`
    if restored:
        images += ['desc-restored_dwi', 'desc-unet_FA', 'desc-unet_ADC',
                   'model-unet_param-residual_dwimap']  # fmt: skip
    names = [f'{name}.{ext}' for name in images for ext in ('nii.gz', 'json')]
    tables = ('desc-preproc_dwi', 'desc-restored_dwi')[: 1 + restored]
    names += [f'{name}.{ext}' for name in tables for ext in ('bval', 'bvec')]
    names += [f'desc-confounds_timeseries.{ext}' for ext in ('tsv', 'json')]
    names += [
        f'seg-{seg}_desc-{source}_dseg.tsv'
        for seg in ('tissue', 'nfib') for source in ('reference', 'unet')
    ]  # fmt: skip
    return [f'{run}/dwi/{run}_{name}' for name in names] + [f'{run}.html']


def test_every_promised_file_is_there(done):
    out, _ = done
    for subject in SUBJECTS:
        assert not [name for name in promised(subject) if not (out / name).is_file()]
    for task in ('tissue', 'orientation', 'crossings', 'microstructure', 'kurtosis'):
        for name in ('weights.safetensors', 'card.json', 'split.tsv', 'metrics.tsv', 'log.tsv'):
            assert (out / 'models' / task / 'v1' / name).is_file()
        assert (out / f'group_{task}.html').is_file()


def test_output_is_valid_bids(done):
    out, _ = done
    validator = Path(sys.executable).with_name('bids-validator-deno')
    result = subprocess.run([validator, out, '--ignoreWarnings'], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_last_line_says_what_was_made_and_where_the_log_is(done):
    _, said = done
    last = said[2].strip().splitlines()[-1]
    assert '3 of 3 runs finished' in last
    assert Path(last.rpartition('log: ')[2]).is_file()


def test_second_call_applies_the_model_and_computes_nothing_else_again(done):
    _, said = done
    assert 'prediction' in said[2]
    assert 'motion' not in said[2]


def test_grid_is_the_raw_runs(done, three_heads):
    out, _ = done
    for subject in SUBJECTS:
        raw = nib.load(three_heads / f'sub-{subject}/dwi/sub-{subject}_dwi.nii.gz')
        for path in (out / f'sub-{subject}' / 'dwi').glob('*.nii.gz'):
            image = nib.load(path)
            assert image.shape[:3] == raw.shape[:3]
            assert np.array_equal(image.affine, raw.affine)


def test_a_prediction_names_its_model_and_who_was_seen(done):
    out, _ = done
    card = json.loads((out / 'models/tissue/v1/card.json').read_text())
    with (out / 'models/tissue/v1/split.tsv').open() as stream:
        split = {r['participant_id']: r['split'] for r in csv.DictReader(stream, delimiter='\t')}
    assert sorted(split.values()) == ['test', 'train', 'val']
    for subject in SUBJECTS:
        path = out / f'sub-{subject}/dwi/sub-{subject}_seg-tissue_desc-unet_dseg.json'
        sidecar = json.loads(path.read_text())
        assert sidecar['ModelSHA256'] == card['sha256']
        assert sidecar['ModelVersion'] == 'v1'
        assert sidecar['Device'] == 'cpu'
        assert sidecar['SeenInTraining'] == (split[f'sub-{subject}'] != 'test')


def test_directions_are_unit_vectors_and_the_network_gives_one_everywhere_in_the_brain(done):
    out, _ = done
    folder = out / 'sub-01' / 'dwi'
    mask = nib.load(folder / 'sub-01_desc-brain_mask.nii.gz').get_fdata() > 0
    for source in ('csd', 'unet'):
        path = folder / f'sub-01_model-{source}_param-direction_dwimap.nii.gz'
        length = np.linalg.norm(nib.load(path).get_fdata()[..., :3], axis=-1)
        assert np.allclose(length[length > 0], 1, atol=1e-4)
        if source == 'unet':
            assert np.array_equal(length > 0, mask)


def test_group_table_is_tidy(done):
    out, _ = done
    with (out / 'group_orientation.tsv').open() as stream:
        rows = list(csv.DictReader(stream, delimiter='\t'))
    assert set(rows[0]) == {'participant_id', 'split', 'model', 'metric', 'label', 'value'}
    assert {row['split'] for row in rows} == {'train', 'val', 'test'}
    explained = json.loads((out / 'group_orientation.json').read_text())
    assert set(explained) == set(rows[0])
    assert {row['metric'] for row in rows} <= set(explained['metric']['Levels'])


def test_nothing_to_do_is_done_quickly_and_without_the_work_folder(done, three_heads, tmp_path):
    out, _ = done
    said = call(three_heads, out, 'participant', '-w', tmp_path / 'elsewhere')
    assert said.count('nothing, all is there') == 3
    assert '[1/' not in said


def test_reference_tissue_and_directions_are_near_the_truth(done, three_heads):
    """Coarse bounds: labels that are mirrored, shifted or in another frame fall far below."""
    out, _ = done
    for subject in FINE:
        truth = three_heads / 'derivatives' / 'truth' / f'sub-{subject}' / 'dwi'
        made = out / f'sub-{subject}' / 'dwi'

        def load(folder, name, subject=subject):
            return np.asarray(nib.load(folder / f'sub-{subject}_{name}.nii.gz').dataobj)

        true, found = (
            load(truth, 'seg-tissue_desc-truth_dseg'), load(made, 'seg-tissue_desc-reference_dseg')
        )  # fmt: skip
        both = (true > 0) & (found > 0)
        assert (true == found)[both].mean() > 0.75
        single = load(truth, 'seg-nfib_desc-truth_dseg') == 1
        fibre = load(truth, 'model-truth_param-direction_dwimap')[..., :3]
        for source, bound in (('csd', 12), ('unet', 25)):
            said = load(made, f'model-{source}_param-direction_dwimap')[..., :3]
            known = single & (np.linalg.norm(said, axis=-1) > 0)
            cosine = np.abs((said[known] * fibre[known]).sum(-1)).clip(0, 1)
            assert np.degrees(np.arccos(np.median(cosine))) < bound


def test_the_sidecar_says_what_was_corrected_and_what_was_not(done):
    out, _ = done
    sidecar = json.loads((out / 'sub-01/dwi/sub-01_desc-preproc_dwi.json').read_text())
    for field in ('Denoising', 'MotionCorrection', 'BiasFieldCorrection'):
        assert sidecar[field]['Method'] != 'none'
    assert 'noise' in sidecar['Description']
    assert sidecar['MotionCorrection']['OutlierSlices'] == 0


def test_confounds_have_a_row_a_volume_and_every_column_is_explained(done, three_heads):
    out, _ = done
    with (out / 'sub-01/dwi/sub-01_desc-confounds_timeseries.tsv').open() as stream:
        rows = list(csv.DictReader(stream, delimiter='\t'))
    assert len(rows) == len((three_heads / 'sub-01/dwi/sub-01_dwi.bval').read_text().split())
    assert rows[0]['framewise_displacement'] == 'n/a'
    explained = json.loads((out / 'sub-01/dwi/sub-01_desc-confounds_timeseries.json').read_text())
    assert set(rows[0]) == set(explained)


def test_reference_microstructure_is_near_the_truth(done, three_heads):
    """Of white matter; at 62 volumes of 4.5 mm what is lost is partial volume, not the model."""
    out, _ = done
    truth = three_heads / 'derivatives' / 'truth' / 'sub-01' / 'dwi'

    def load(folder, name):
        return np.asarray(nib.load(folder / f'sub-01_{name}.nii.gz').dataobj)

    white = load(truth, 'seg-nfib_desc-truth_dseg') == 1
    for name, bound in (('icvf', 0.12), ('od', 0.15), ('isovf', 0.12)):
        true = load(truth, f'model-truth_param-{name}_dwimap')[white]
        found = load(out / 'sub-01' / 'dwi', f'model-noddi_param-{name}_dwimap')[white]
        assert np.median(np.abs(true - found)) < bound


def test_killed_participant_goes_on_and_ends_the_same(few, few_done, tmp_path):
    again = tmp_path / 'out'
    argv = (few, again, 'participant', '--tasks', 'orientation')
    work = again / '.work'
    killed_when(lambda: any(work.rglob('motion/result_motion.pklz')), *argv)
    for path in again.rglob('*.nii.gz'):
        if not any(part.startswith('.') for part in path.relative_to(again).parts):
            np.asarray(nib.load(path).dataobj)  # whole, or not there
    call(*argv)
    name = 'sub-01/dwi/sub-01_desc-preproc_dwi.nii.gz'
    assert (again / name).read_bytes() == (few_done / name).read_bytes()


def test_killed_group_goes_on_and_ends_with_the_same_weights(done, three_heads, tmp_path):
    out, _ = done
    again = tmp_path / 'out'
    shutil.copytree(out, again, ignore=shutil.ignore_patterns('models', '.work', 'group_*'))
    argv = (three_heads, again, 'group', '--steps', STEPS, '--tasks', 'kurtosis')
    killed_when(lambda: any((again / '.work' / 'group').glob('*.safetensors')), *argv)
    assert not list((again / 'models').glob('*/v*'))
    call(*argv)
    weights = 'models/kurtosis/v1/weights.safetensors'
    # It has learnt until its end: weights as they were before the kill would not do.
    assert json.loads((again / 'models/kurtosis/v1/card.json').read_text())['best_step'] == STEPS
    # The whole-run model was fitted to files of the same content in another folder.
    assert (again / weights).read_bytes() == (out / weights).read_bytes()


def test_two_calls_into_one_folder_lose_nothing(few_two, tmp_path):
    out = tmp_path / 'out'
    processes = [
        subprocess.Popen(
            [sys.executable, '-m', 'bidsapp', few_two, out, 'participant', '--device', 'cpu',
             '--tasks', 'orientation', '--participant-label', subject, '--nprocs', '1'],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for subject in ('01', '02')
    ]  # fmt: skip
    for process in processes:
        said, _ = process.communicate(timeout=600)
        assert process.returncode == 0, said
    for subject in ('01', '02'):
        assert (out / f'sub-{subject}/dwi/sub-{subject}_desc-preproc_dwi.nii.gz').is_file()
        assert (out / f'sub-{subject}.html').is_file()
    assert json.loads((out / 'dataset_description.json').read_text())['DatasetType'] == 'derivative'


def test_a_task_without_enough_labels_is_refused_if_named(done, three_heads, tmp_path):
    out, _ = done
    again = tmp_path / 'out'
    shutil.copytree(out, again, ignore=shutil.ignore_patterns('models', '.work', 'group_*'))
    (again / 'sub-02/dwi/sub-02_seg-tissue_desc-reference_dseg.nii.gz').unlink()
    said = call(three_heads, again, 'group', '--steps', 1, '--tasks', 'tissue', check=66)
    assert '2 participants have a reference label; at least 3' in said


def test_the_encoder_stays_as_it_was_and_the_model_stands_beside_one_from_scratch(
    done, three_heads, tmp_path
):
    """Which of them is better, one step cannot tell."""
    out, _ = done
    again = tmp_path / 'out'
    shutil.copytree(out, again, ignore=shutil.ignore_patterns('models', '.work', 'group_*'))
    start = out / 'models' / 'orientation' / 'v1'
    call(
        three_heads, again, 'group', '--steps', 1, '--tasks', 'orientation', '--init', start,
        '--freeze', 'encoder', '--compare', 'scratch', '--input-directions', 12,
    )  # fmt: skip
    card = json.loads((again / 'models/orientation/v1/card.json').read_text())
    assert card['started_from']['sha256'] == json.loads((start / 'card.json').read_text())['sha256']
    with (again / 'group_orientation.tsv').open() as stream:
        rows = [
            r for r in csv.DictReader(stream, delimiter='\t')
            if r['metric'] == 'angular_error_median' and r['split'] == 'test'
        ]  # fmt: skip
    angle = {row['model']: float(row['value']) for row in rows}
    assert set(angle) == {'finetuned', 'scratch', 'classical'}
    assert angle['finetuned'] != angle['scratch']
    assert all(0 < value < 55 for value in angle.values()), 'a random axis is 60 degrees off'
    was, now = (
        load_file(folder / 'weights.safetensors')
        for folder in (start, again / 'models' / 'orientation' / 'v1')
    )
    frozen = {name for name in was if name.startswith('body.encoder.')}
    assert frozen
    assert frozen < was.keys() == now.keys()
    assert all(torch.equal(was[name], now[name]) for name in frozen)
    if card['best_step'] > 0:
        assert any(not torch.equal(was[name], now[name]) for name in was.keys() - frozen)
