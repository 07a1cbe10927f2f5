"""Pretraining as a user calls it, with few steps on tiny blocks."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from bidsapp import group, participant, pretrain, training
from bidsapp.bids.derivatives import write_dataset
from bidsapp.bids.prepared import choose_prepared, with_references
from bidsapp.cli import main, parse
from bidsapp.core import Sample
from bidsapp.learn.cards import load_card
from bidsapp.learn.checkpoint import load, start_model
from bidsapp.learn.predict import network_of, predict
from bidsapp.learn.seen import was_seen
from bidsapp.learn.splits import make_split, read_split
from bidsapp.learn.state import BestWeights
from bidsapp.modalities.dwi import learn as dwi
from bidsapp.modalities.dwi.physics.gradients import GradientTable, to_fsl
from bidsapp.modalities.dwi.physics.harmonics import fibonacci_hemisphere
from bidsapp.modalities.dwi.physics.qspace import N_CHANNELS, N_SH, SLOT_CHANNELS, slots_in_use
from bidsapp.modalities.dwi.simulate import objectives
from bidsapp.modalities.dwi.simulate.auxiliary import (
    LONGEST_VOXEL,
    Auxiliary,
    cache_run,
    draw_voxel,
    open_run,
)
from bidsapp.modalities.dwi.tasks.restore import CHANNELS, input_harmonics
from bidsapp.problems import BadData, WrongUsage
from bidsapp.registry import task
from bidsapp.simulate import template_head
from bidsapp.simulate.material import Request
from tests.robustness.killed import SMALL

FEW = ('--steps', 4, '--device', 'cpu', '--nprocs', 1)
#: Means of the b-values; the first is no round number.
SHELLS = (float(np.float32(3010 / 3)), 2000.0)


def shrink(patch):
    """Blocks of 16 voxels; and the app's variables stay in its test."""
    patch.setattr('os.environ', os.environ.copy())
    network = replace(dwi.input.network, patch=(16, 16, 16))
    patch.setattr(dwi, 'input', replace(dwi.input, network=network))
    for name, value in {
        'SIDE': 16, 'BATCH': 1, 'WINDOW': 2,
        'VALIDATION': 1, 'CALIBRATION': 1, 'TEST': 2,
    }.items():  # fmt: skip
        patch.setattr(pretrain, name, value)
    patch.setattr(template_head, 'TEMPLATE_MM', 4.0)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    shrink(monkeypatch)


@pytest.fixture(scope='module')
def pretrained(tmp_path_factory):
    """An output folder with a model for all tasks."""
    out = tmp_path_factory.mktemp('pretrained') / 'out'
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        assert run('-', out, 'pretrain', *FEW) == 0
    return out


@pytest.fixture
def out(tmp_path, pretrained):
    """An output folder with the template's maps alone."""
    kept = tmp_path / 'out' / '.work' / 'pretrain'
    kept.mkdir(parents=True)
    for path in (pretrained / '.work' / 'pretrain').glob('template*'):
        shutil.copy(path, kept)
    return tmp_path / 'out'


def run(*argv):
    return main([str(arg) for arg in argv])


def model(out, objective='supervised', version='v1'):
    return out / 'models' / 'pretrained' / 'dwi' / objective / version


def simulated(objective, out):
    """What is learnt from simulated brains, in blocks of 16 voxels."""
    return objectives.material(Request(objective, (), 0, 16, out / '.work' / 'pretrain', {}))


def same_weights(first, second):
    one, other = (load_file(folder / 'weights.safetensors') for folder in (first, second))
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def terminated_at(monkeypatch, step):
    """SIGTERM while the network learns from batch ``step``."""
    follow = BestWeights.follow

    def followed(self, network, number):
        if number == step:
            os.kill(os.getpid(), signal.SIGTERM)
        follow(self, network, number)

    monkeypatch.setattr(BestWeights, 'follow', followed)


class TestUsage:
    @pytest.mark.parametrize(
        ('argv', 'message'),
        [
            (('-', 'o', 'participant'), 'BIDS_DIR -'),
            (('-', 'o', 'group'), 'BIDS_DIR -'),
            (('b', 'o', 'group', '--resume'), '--resume'),
            (('b', 'o', 'participant', '--objective', 'restore'), '--objective'),
            (('-', 'o', 'pretrain', '--reports-only'), '--reports-only'),
            (('-', 'o', 'pretrain', '--objective', 'auxiliary'), 'auxiliary dataset'),
            (('-', 'o', 'pretrain', '--objective', 'restore', '--tasks', 'tissue'), '--tasks'),
            (('-', 'o', 'pretrain', '--tasks', 'kurtosis'), '`group` learns it'),
            (('-', 'o', 'pretrain', '--network', 'adaptive_unet'), 'no other network'),
            (('b', 'o', 'group', '--network', 'adaptive_unet'), '--network'),
        ],
    )
    def test_what_makes_no_sense_is_64(self, argv, message, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        assert run(*argv) == 64
        assert message in capsys.readouterr().err

    def test_simulated_brains_are_supervised_by_default(self):
        name, _ = pretrain.chosen_objective(parse(['-', 'o', 'pretrain']), 'dwi')
        assert name == 'supervised'
        with pytest.raises(WrongUsage, match='needs --objective'):
            pretrain.chosen_objective(parse(['b', 'o', 'pretrain']), 'dwi')

    @pytest.mark.parametrize('objective', [(), ('--objective', 'supervised')])
    def test_a_dataset_needs_an_objective_that_fits(self, auxiliary, objective, capsys):
        assert run(*auxiliary, 'pretrain', *objective) == 64
        assert 'auxiliary' in capsys.readouterr().err

    def test_a_dataset_that_was_not_preprocessed_is_66_and_says_how(
        self, auxiliary, tmp_path, capsys
    ):
        raw, new = auxiliary[0], tmp_path / 'new'
        assert run(raw, new, 'pretrain', '--objective', 'restore') == 66
        assert f'transfermri {raw} {new} participant' in capsys.readouterr().err

    def test_a_dry_run_makes_nothing(self, out):
        assert run('-', out, 'pretrain', '--dry-run') == 0
        assert not (out / 'models').exists()


class TestSimulated:
    def test_the_card_says_what_was_done(self, pretrained):
        card = load_card(model(pretrained))
        assert set(card['heads']) == {
            'tissue', 'orientation', 'crossings', 'microstructure', 'restore'
        }  # fmt: skip
        assert card['command'].startswith(f'transfermri - {pretrained} pretrain')
        assert card['tested_ranges']['directions'] == [6, 135]
        assert card['license'] == 'Apache-2.0'
        # Two blocks need not hold two shells, without which microstructure has no figure.
        assert {row['task'] for row in card['metrics']} >= set(card['heads']) - {'microstructure'}
        assert all(row['n'] >= 1 and row['sd'] >= 0 for row in card['metrics'])
        assert len(card['sha256']) == 64

    def test_the_log_has_every_step_and_every_task(self, pretrained):
        first, *rows = (model(pretrained) / 'log.tsv').read_text().splitlines()
        assert first.split('\t')[:3] == ['step', 'loss', 'validation']
        assert set(first.split('\t')[3:]) == set(load_card(model(pretrained))['heads'])
        assert [row.split('\t')[0] for row in rows] == ['1', '2', '3', '4']

    def test_nothing_is_left_to_resume(self, pretrained):
        assert not list(pretrained.rglob('*state*'))

    def test_the_weights_are_those_of_the_card(self, pretrained):
        checkpoint = load(model(pretrained))
        network = network_of(checkpoint, ['restore', 'tissue'])
        sample = Sample(torch.zeros(N_CHANNELS, 9, 8, 8), torch.ones(1, 9, 8, 8).bool(), np.eye(4))
        output = predict(network, sample)
        assert output.shape == (CHANNELS + 3, 9, 8, 8)

    def test_stopped_and_resumed_is_as_if_it_had_not_been(
        self, out, pretrained, monkeypatch, capsys
    ):
        with monkeypatch.context() as patch:
            terminated_at(patch, 1)
            assert run('-', out, 'pretrain', *FEW) == 75
        assert 'Stopped at step 2 of 4' in capsys.readouterr().err
        assert run('-', out, 'pretrain', *FEW) == 64
        assert '--resume' in capsys.readouterr().err
        assert run('-', out, 'pretrain', *FEW, '--resume', '--random-seed', 1) == 64
        assert 'seed was 0, is 1' in capsys.readouterr().err
        assert not (out / 'models').exists()
        assert run('-', out, 'pretrain', *FEW, '--resume') == 0
        assert same_weights(model(out), model(pretrained))

    def test_killed_and_resumed_is_as_if_it_had_not_been(self, out, pretrained):
        command = [sys.executable, '-c', SMALL, '-', out, 'pretrain', *FEW]
        process = subprocess.Popen([str(arg) for arg in command], cwd=Path(__file__).parents[2])
        while process.poll() is None and not list((out / '.work').rglob('state.safetensors')):
            time.sleep(0.05)
        process.kill()
        assert process.wait() == -signal.SIGKILL, 'it ended before it could be killed'
        assert not list((out / 'models').rglob('v*'))
        assert run('-', out, 'pretrain', *FEW, '--resume') == 0
        assert same_weights(model(out), model(pretrained))

    def test_resume_without_anything_begins_and_the_next_model_is_the_next_version(
        self, out, pretrained
    ):
        shutil.copytree(pretrained / 'models', out / 'models')
        call = ('-', out, 'pretrain', *FEW, '--tasks', 'tissue', '--resume', '--random-seed', 1)
        assert run(*call) == 0
        assert set(load_card(model(out, version='v2'))['heads']) == {'tissue'}

    def test_an_autoencoder_gives_back_clean_scans_and_cannot_copy_half_of_them(
        self, out, pretrained
    ):
        made = simulated('autoencoder', out)
        sample = made.sample('train', 0)
        where = sample.target[CHANNELS:].bool().repeat_interleave(N_SH, 0)
        shown = (sample.image != 0).any(0)
        assert 0.3 < float(shown[sample.mask[0]].float().mean()) < 0.7
        given, wanted = input_harmonics(sample.image), sample.target[:CHANNELS]
        assert torch.equal(given[where & shown], wanted[where & shown])
        assert not given[:, ~shown].any()
        assert wanted[where & ~shown].abs().max() > 0.1

    def test_splits_share_no_brain(self, out):
        made = simulated('restore', out)
        first = {split: made.sample(split, 0).image for split in ('train', 'val', 'test')}
        assert not torch.equal(first['train'], first['val'])
        assert not torch.equal(first['val'], first['test'])


class TestWhatTakesIt:
    def test_participant_applies_every_head_that_the_call_is_about(self, pretrained, tmp_path):
        at = ['b', str(tmp_path), 'participant', '--model', str(model(pretrained))]
        assert set(participant.models_to_apply(parse(at))) == set(
            load_card(model(pretrained))['heads']
        )
        named = participant.models_to_apply(parse([*at, '--tasks', 'tissue', 'crossings']))
        assert set(named) == {'tissue', 'crossings'}

    def test_group_starts_from_it(self, pretrained, tmp_path):
        at = ['b', str(tmp_path), 'group', '--init', str(model(pretrained))]
        start = start_model(parse(at).init, 'dwi')
        assert start is not None
        assert start.card['sha256'] == load_card(model(pretrained))['sha256']

    def test_group_fine_tunes_it_and_compares(self, pretrained, auxiliary, tmp_path):
        raw, out = auxiliary[0], tmp_path / 'out'
        shutil.copytree(auxiliary[1], out)
        shutil.copytree(model(pretrained), model(out, 'autoencoder'))
        call = (raw, out, 'group', '--tasks', 'microstructure', '--init', model(pretrained))
        assert run(*call, '--compare', 'scratch', 'autoencoder', *FEW, '--steps', 1) == 0
        rows = (out / 'group_microstructure.tsv').read_text().splitlines()[1:]
        models = {'finetuned', 'scratch', 'autoencoder', 'classical'}
        assert {row.split('\t')[2] for row in rows} == models
        card = load_card(out / 'models' / 'microstructure' / 'v1')
        assert card['started_from']['sha256'] == load_card(model(pretrained))['sha256']
        assert set(card['heads']) == {'microstructure'}

    def test_an_autoencoder_of_ones_own_can_be_compared_with(self, pretrained, tmp_path):
        settings = parse(['b', str(tmp_path), 'group', '--compare', 'autoencoder'])
        assert run('-', tmp_path, 'pretrain', '--objective', 'autoencoder', *FEW) == 0
        ((name, start),) = training.other_starts(settings, None, 'dwi').items()
        assert name == 'autoencoder'
        assert start is not None
        assert set(start.heads) == {'autoencoder'}


def scheme():
    vectors = np.concatenate([np.zeros((2, 3)), *(fibonacci_hemisphere(30) for _ in SHELLS)])
    return GradientTable(vectors, np.r_[0, 0, np.tile([1000, 1000, 1010], 10), [2000.0] * 30])


def write_run(out, label, affine, rng):
    """A preprocessed ball of tissue whose fibres run along world (4, 3, 0), with NODDI maps."""
    gtab = scheme()
    axes = np.stack(np.meshgrid(*[np.arange(26.0)] * 3, indexing='ij'))
    mask = np.linalg.norm(axes - 12.5, axis=0) < 11
    along = (gtab.bvecs @ [0.8, 0.6, 0.0]) ** 2
    signal = 400 * np.exp(-gtab.bvals * 1e-3 * (0.3 + 1.4 * along))
    data = np.abs(mask[..., None] * signal + 8 * rng.standard_normal((*mask.shape, len(gtab))))
    folder = out / f'sub-{label}' / 'dwi'
    folder.mkdir(parents=True)

    def write(name, array):
        nib.save(nib.Nifti1Image(array, affine), folder / f'sub-{label}_{name}.nii.gz')

    write('desc-preproc_dwi', data.astype(np.float32))
    write('desc-brain_mask', mask.astype(np.uint8))
    np.savetxt(folder / f'sub-{label}_desc-preproc_dwi.bval', gtab.bvals[None], '%g')
    np.savetxt(folder / f'sub-{label}_desc-preproc_dwi.bvec', to_fsl(gtab, affine), '%.8f')
    for param, value in (('icvf', 0.6), ('od', 0.1), ('isovf', 0.05)):
        write(f'model-noddi_param-{param}_dwimap', (value * mask).astype(np.float32))


@pytest.fixture(scope='module')
def auxiliary(tmp_path_factory):
    """(raw dataset, output folder with what the participant level would have made of it)."""
    root = tmp_path_factory.mktemp('auxiliary')
    raw, out = root / 'bids', root / 'out'
    rng = np.random.default_rng(5)
    for label, codes in (('01', (1, 1, 1)), ('02', (-1, 1, 1)), ('03', (1, 1, -1))):
        scan = Path(f'sub-{label}', 'dwi', f'sub-{label}_dwi.nii.gz')
        (raw / scan).parent.mkdir(parents=True)
        (raw / scan).write_text(f'the scan of {label}')  # by which it is known
        write_run(out, label, np.diag([*(2.0 * np.array(codes)), 1.0]), rng)
        sidecar = out / f'sub-{label}' / 'dwi' / f'sub-{label}_desc-preproc_dwi.json'
        sidecar.write_text(json.dumps({'Sources': [f'bids:raw:{scan}']}))
    text = json.dumps({'Name': 'x', 'BIDSVersion': '1.10.0', 'DatasetType': 'raw'})
    (raw / 'dataset_description.json').write_text(text)
    write_dataset(out, raw)
    return raw, out


@pytest.fixture(scope='module')
def runs(auxiliary, tmp_path_factory):
    """The runs with what is known of their shells."""
    folder = tmp_path_factory.mktemp('kept')
    cases = choose_prepared(auxiliary[1], 'dwi', (), (), {})
    cases = with_references(auxiliary[1], cases, task('microstructure'))
    return [open_run(cache_run(case, folder)) for case in cases]


class TestAuxiliary:
    def test_a_run_is_known_on_its_own_shells_only(self, runs):
        assert len(runs) == 3
        for own in runs:
            assert list(own.harmonics) == list(SHELLS)
            assert own.voxel_mm == (2.0, 2.0, 2.0)
            assert float(own.s0[own.mask].float().median()) == pytest.approx(1, abs=0.01)

    def test_scans_are_those_of_the_run_in_any_scheme_and_any_voxel(self, runs):
        """Whichever way the run's axes point, fibres lie along (4, 3, 0) in every slot."""
        for number in range(4):
            scanner = Auxiliary(runs, 3, 16, corrupt=False)
            scan = scanner.scan(number)
            assert set(scan.table.bvals.tolist()) <= {0.0, *SHELLS}
            assert all(2.0 <= edge <= LONGEST_VOXEL for edge in scan.voxel_mm)
            image = scan.image[:, scan.mask[0]]
            for slot in slots_in_use(scan.image):
                # Degree 2: xy, yz, 2z² - x² - y², xz, x² - y²; S is low along the fibres.
                xy, yz, zz, xz, xx = image[slot * SLOT_CHANNELS + 1 :][:5].mean(1).tolist()
                assert xy < -0.2
                assert xx / xy == pytest.approx((0.64 - 0.36) / (2 * 0.48), abs=0.2)
                assert zz > 0.2
                assert max(abs(yz), abs(xz)) < 0.15

    def test_a_number_is_always_the_same_scan_and_a_seed_another(self, runs):
        first, again = (Auxiliary(runs, 3, 16).scan(5) for _ in range(2))
        assert torch.equal(first.image, again.image)
        assert not torch.equal(first.image, Auxiliary(runs, 4, 16).scan(5).image)

    def test_corruption_is_real_and_the_target_takes_all_of_it_back(self, runs):
        """A corrupted scan and its clean twin, each with its correction, are the same."""
        differ = []
        for number in range(5):
            pair = [Auxiliary(runs, 3, 16, corrupt).scan(number) for corrupt in (True, False)]
            inputs = [input_harmonics(scan.image) for scan in pair]
            filled = pair[0].truth['correction'][CHANNELS:].bool().repeat_interleave(N_SH, 0)
            mended = [
                (before + scan.truth['correction'][:CHANNELS])[filled]
                for before, scan in zip(inputs, pair, strict=True)
            ]
            assert torch.allclose(*mended, atol=1e-4)
            differ.append(float((inputs[0] - inputs[1])[filled].abs().mean()))
        assert sum(d > 0.02 for d in differ) >= 3

    def test_labels_of_a_uniform_tissue_are_uniform_and_need_two_shells(self, runs):
        for number in range(4):
            scan = Auxiliary(runs, 3, 16, least_slots=2).scan(number)
            assert len(slots_in_use(scan.image)) == 2
            label = scan.truth['microstructure'][:, scan.mask[0]]
            assert torch.allclose(label.mean(1), torch.tensor([0.6, 0.1, 0.05]), atol=2e-3)
            assert (scan.truth['microstructure'][:, ~scan.mask[0]] == -1).all()

    def test_volumes_with_predicted_slices_are_left_out(self, auxiliary, tmp_path):
        """What stands in such a slice changes nothing; a run that has little else is refused."""
        out = tmp_path / 'out'
        shutil.copytree(auxiliary[1], out)
        case = choose_prepared(out, 'dwi', ('01',), (), {})[0]
        sidecar = case.files['dwi'].with_name('sub-01_desc-preproc_dwi.json')
        image = nib.load(case.files['dwi'])

        def told(volumes, value=0.0):
            rows = [[volume, 12, 13] for volume in volumes]
            said = {'MotionCorrection': {'ReplacedSlices': rows, 'SliceAxis': 'k'}}
            sidecar.write_text(json.dumps(said))
            data = image.get_fdata(dtype=np.float32).copy()
            data[:, :, 12:14, volumes] = value
            nib.save(nib.Nifti1Image(data, image.affine), case.files['dwi'])
            return open_run(cache_run(case, tmp_path / f'kept-{value}'))

        one, other = (told([5, 40], value) for value in (0.0, 700.0))
        assert one.harmonics.keys() == other.harmonics.keys()
        assert all(torch.equal(one.harmonics[b], other.harmonics[b]) for b in one.harmonics)
        with pytest.raises(BadData, match='too few are left'):
            told(range(2, 60))

    def test_voxels_never_become_shorter(self):
        generator = torch.Generator().manual_seed(0)
        drawn = [draw_voxel((1.0, 1.0, 5.0), generator) for _ in range(50)]
        assert all(v[2] == 5 and min(v[:2]) >= 1 and max(v[:2]) <= LONGEST_VOXEL for v in drawn)
        assert any(v == [1.0, 1.0, 5.0] for v in drawn)

    @pytest.mark.parametrize('objective', ['restore', 'auxiliary', 'autoencoder'])
    def test_pretraining_on_it(self, auxiliary, tmp_path, objective):
        raw, done = auxiliary
        out = tmp_path / 'out'
        shutil.copytree(done, out)
        assert run(raw, out, 'pretrain', '--objective', objective, *FEW) == 0
        card = load_card(model(out, objective))
        head = {'auxiliary': 'microstructure'}.get(objective, objective)
        assert set(card['heads']) == {head}
        assert card['tested_ranges']['b'] == [[b, b] for b in SHELLS]
        assert card['learnt_b_ranges'] == [[700, 1300], [1300, 2300]]
        assert card['training']['participants'] == {'train': 1, 'val': 1, 'test': 1}
        assert {row['task'] for row in card['metrics']} == {head}
        split = read_split(model(out, objective) / 'split.tsv')
        assert sorted(split.values()) == ['test', 'train', 'val']
        for label, part in split.items():
            scan = raw / f'sub-{label}' / 'dwi' / f'sub-{label}_dwi.nii.gz'
            assert was_seen(card, [scan]) == (part != 'test')
        again = (raw, out, 'pretrain', '--objective', objective, *FEW, '--resume')
        assert run(*again) == 0
        assert [folder.name for folder in model(out, objective).parent.iterdir()] == ['v1']

    def test_all_tasks_go_on_from_other_weights_beside_real_scans(
        self, auxiliary, pretrained, tmp_path
    ):
        raw, done = auxiliary
        out = tmp_path / 'out'
        shutil.copytree(done, out)
        table = tmp_path / 'split.tsv'
        table.write_text('participant_id\tsplit\nsub-01\tval\nsub-02\ttrain\nsub-03\ttest\n')
        call = (raw, out, 'pretrain', '--objective', 'mixed', *FEW, '--split-file', table)
        assert run(*call, '--init', model(pretrained)) == 0
        card, start = load_card(model(out, 'mixed')), load_card(model(pretrained))
        assert card['heads'] == start['heads']
        assert card['started_from']['sha256'] == start['sha256']
        assert card['ancestry'][0]['name'] == start['name']
        assert read_split(model(out, 'mixed') / 'split.tsv') == read_split(table)
        assert was_seen(card, [raw / 'sub-02' / 'dwi' / 'sub-02_dwi.nii.gz'])
        assert not was_seen(card, [raw / 'sub-03' / 'dwi' / 'sub-03_dwi.nii.gz'])
        table.write_text('participant_id\tsplit\nsub-01\tval\nsub-02\ttrain\n')
        assert run(*call) == 66

    def test_two_participants_are_too_few(self, auxiliary, capsys):
        call = (*auxiliary, 'pretrain', '--objective', 'restore', '--participant-label', '01', '02')
        assert run(*call) == 66
        assert '2 participants' in capsys.readouterr().err


CALL = ('group', '--tasks', 'microstructure', '--init', 'scratch', '--device', 'cpu',
        '--nprocs', 1, '--steps', 2)  # fmt: skip


@pytest.fixture(scope='module')
def first(auxiliary, tmp_path_factory):
    """(raw, out) after a first fine-tuning."""
    raw, out = auxiliary[0], tmp_path_factory.mktemp('first') / 'out'
    shutil.copytree(auxiliary[1], out)
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        assert run(raw, out, *CALL) == 0
    return raw, out


class TestTrainedBefore:
    """What was trained by a plan on some data is known; who was seen is known through starts."""

    def versions(self, out):
        return sorted(path.name for path in (out / 'models' / 'microstructure').iterdir())

    def test_the_card_says_the_rate_that_was_used(self, first):
        card = load_card(first[1] / 'models' / 'microstructure' / 'v1')
        assert card['plan']['lr'] == training.LEARNING_RATE
        assert (card['started_from'], card['ancestry']) == (None, [])

    def test_started_again_it_is_not_trained_again_and_what_was_cut_off_is_there(
        self, first, tmp_path, capsys
    ):
        raw, out = first[0], tmp_path / 'out'
        shutil.copytree(first[1], out)
        table = out / 'group_microstructure.tsv'
        before = table.read_bytes()
        table.unlink()
        (out / 'group_microstructure.html').unlink()
        shutil.rmtree(out / '.work')
        assert run(raw, out, *CALL) == 0
        assert 'not again' in capsys.readouterr().out
        assert self.versions(out) == ['v1']
        assert table.read_bytes() == before
        assert (out / 'group_microstructure.html').is_file()

    @pytest.mark.parametrize('changed', [None, 'plan', 'label', 'prepared', 'moved'])
    def test_another_plan_or_other_data_make_another_model(self, first, tmp_path, changed):
        out = first[1]
        if changed is not None:
            out = tmp_path / 'out'
            shutil.copytree(first[1], out)
        name = {'label': 'model-noddi_param-od_dwimap', 'prepared': 'desc-brain_mask'}.get(changed)
        if name:
            os.utime(out / 'sub-02' / 'dwi' / f'sub-02_{name}.nii.gz', (1, 1))
        more = ('--random-seed', '1') if changed == 'plan' else ()
        settings = parse([str(arg) for arg in (first[0], out, *CALL, *more)])
        own = task('microstructure')
        cases = group.labelled(settings, [own.name])[own.name]
        split = read_split(first[1] / 'models' / 'microstructure' / 'v1' / 'split.tsv')
        plan = training.plan_of(own, None, settings, 'cuda:0')  # on whatever device
        key = training.identity(own, cases, split, plan, [None], settings)
        before = training.trained_before(settings, own.name, key)
        assert (before is not None) == (changed in (None, 'moved'))

    def test_a_start_that_had_seen_whom_a_call_holds_out_is_flagged_or_refused(
        self, first, tmp_path, capsys
    ):
        raw, out = first[0], tmp_path / 'out'
        shutil.copytree(first[1], out, ignore=shutil.ignore_patterns('models'))
        start = first[1] / 'models' / 'microstructure' / 'v1'
        split = read_split(start / 'split.tsv')
        seen = next(label for label, part in split.items() if part == 'train')
        other = next(label for label, part in split.items() if part == 'test')
        table = tmp_path / 'split.tsv'
        swapped = {**split, seen: 'test', other: 'train'}
        rows = [f'sub-{label}\t{part}\n' for label, part in swapped.items()]
        table.write_text(''.join(['participant_id\tsplit\n', *rows]))
        call = (raw, out, 'group', *CALL[1:3], '--init', start, *CALL[5:])
        assert run(*call, '--split-file', table) == 64
        said = capsys.readouterr().err
        assert f'sub-{seen}' in said
        assert f'sub-{other}' not in said
        seed = next(s for s in range(99) if make_split(sorted(split), s)[seen] == 'test')
        assert run(*call, '--random-seed', seed, '--compare', 'scratch') == 0
        said = capsys.readouterr().out
        assert f'its start had seen sub-{seen} in training' in said
        rows = (out / 'group_microstructure.tsv').read_text().splitlines()
        flagged = [row for row in rows if 'seen_in_training' in row]
        assert flagged == [f'sub-{seen}\ttest\tfinetuned\tseen_in_training\tall\t1']
        assert 'seen_in_training' in (out / 'group_microstructure.json').read_text()
        assert 'Not new to the model' in (out / 'group_microstructure.html').read_text()
        card = load_card(out / 'models' / 'microstructure' / 'v1')
        assert card['test'] == {'mae': None}
        assert card['test_participants_seen_before'] == 1
        assert [m['sha256'] for m in card['ancestry']] == [load_card(start)['sha256']]
        assert len(card['seen_scans']) == 3

    def test_sigterm_ends_it_with_75_and_it_goes_on_to_the_same_weights(
        self, first, tmp_path, monkeypatch
    ):
        raw, out = first[0], tmp_path / 'out'
        shutil.copytree(first[1], out, ignore=shutil.ignore_patterns('models', '.work'))
        with monkeypatch.context() as patch:  # after the fit, where its figures are worked out
            patch.setattr(training, 'scored', lambda *_: os.kill(os.getpid(), signal.SIGTERM))
            assert run(raw, out, *CALL) == 75
        assert not (out / 'models').exists()
        assert run(raw, out, *CALL) == 0
        folders = (root / 'models' / 'microstructure' / 'v1' for root in (out, first[1]))
        assert same_weights(*folders)
        assert not list((out / '.work' / 'group').iterdir())


def test_simulated_pretraining_needs_torch_numpy_safetensors_and_fabric_alone(out):
    """Where the template's maps are at hand, nothing of the rest is imported."""
    blocked = ['nipype', 'bids', 'dipy', 'ants', 'nibabel', 'nilearn', 'scipy', 'matplotlib',
               'pandas', 'torchio']  # fmt: skip
    code = f"""
import sys
sys.modules.update(dict.fromkeys({blocked!r}))  # None: importing it fails
from dataclasses import replace
from bidsapp import pretrain
from bidsapp.cli import main
from bidsapp.modalities.dwi import learn
from bidsapp.simulate import template_head
network = replace(learn.input.network, patch=(16, 16, 16))
learn.input = replace(learn.input, network=network)
template_head.TEMPLATE_MM = 4.0
pretrain.SIDE = 16
pretrain.BATCH = pretrain.VALIDATION = pretrain.TEST = pretrain.WINDOW = 1
pretrain.CALIBRATION = 1
sys.exit(main(['-', {str(out)!r}, 'pretrain', '--steps', '1', '--device', 'cpu']))
"""
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
