"""The loop learns, repeats itself, resumes, and keeps its best step."""

from __future__ import annotations

import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from bidsapp.core import Checkpoint, Head, Plan, Sample
from bidsapp.learn.checkpoint import checkpoint_of
from bidsapp.learn.fit import fit, learning_rate, rated
from bidsapp.learn.inputs import Input, Shape, with_network_of
from bidsapp.learn.patches import PatchSource
from bidsapp.learn.running import drawn_ahead
from bidsapp.learn.state import BestWeights
from bidsapp.networks import registry as networks
from bidsapp.networks.base import Network
from bidsapp.networks.pointwise import Pointwise
from bidsapp.networks.registry import Architecture, build
from bidsapp.physics.geometry import MIRRORED, turned_voxels
from bidsapp.problems import BadData, Problem, TryAgain


def sample(seed: int) -> Sample:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(2, 20, 18, 16, generator=generator)
    mask = torch.zeros(1, 20, 18, 16, dtype=torch.bool)
    mask[:, 2:-2, 2:-2, 2:-2] = True
    return Sample(image, mask, np.eye(4), target=image.sum(0, keepdim=True))


def masked_error(prediction, target, mask):
    return (prediction - target)[mask.expand_as(target)].square().mean()


def metrics(output, of):
    return [('error', 'all', float(masked_error(output[None], of.target[None], of.mask[None])))]


def turned(image, context, turn):
    """Of images without directions."""
    return turned_voxels(image, turn), context


TOY = Head(
    channels=1, targets=1, loss=masked_error, metrics=metrics, score='error',
    higher_is_better=False, name='toy',
)  # fmt: skip
PLAN = Plan(steps=12, patch=(16, 16, 16), batch=2, lr=5e-3, seed=3, validate_every=4)
#: What the loop knows of a modality; of its runs it sees samples only.
WIDTHS = {'widths': [8, 8, 16, 16]}
OWN = Input('dwi', None, Shape('unet', options=WIDTHS), turned=turned)


def run(tmp_path, plan=PLAN, **options):
    source = PatchSource([sample(0), sample(1)], plan.patch)
    return fit(OWN, TOY, source, [sample(2)], None, plan, tmp_path / 'state', **options)


def weights(network):
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def test_error_falls(tmp_path):
    _, state = run(tmp_path, replace(PLAN, steps=60, validate_every=20))
    scores = [row['validation'] for row in state.log if 'validation' in row]
    assert scores[-1] < 0.5 * scores[0]


def test_same_seed_same_weights_and_another_seed_others(tmp_path):
    first, _ = run(tmp_path / 'a')
    again, _ = run(tmp_path / 'b')
    other, _ = run(tmp_path / 'c', replace(PLAN, seed=4))
    assert torch.equal(weights(first), weights(again))
    assert not torch.equal(weights(first), weights(other))


def test_a_run_stopped_half_way_ends_with_the_same_weights(tmp_path, monkeypatch):
    whole, _ = run(tmp_path / 'whole')

    def stop_after(line):
        if 'step 8' in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / 'cut', progress=stop_after)
    resumed, state = run(tmp_path / 'cut')
    assert torch.equal(weights(whole), weights(resumed))
    assert len(state.log) == PLAN.steps


def test_sigterm_saves_and_says_try_again(tmp_path):
    calls = iter(range(100))

    def terminated(*given):
        if next(calls) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return masked_error(*given)

    source = PatchSource([sample(0), sample(1)], PLAN.patch)
    head = replace(TOY, loss=terminated)
    with pytest.raises(TryAgain, match='step 6 of 12'):
        fit(OWN, head, source, [sample(2)], None, PLAN, tmp_path / 'state')
    resumed, _ = run(tmp_path)
    whole, _ = run(tmp_path / 'whole')
    assert torch.equal(weights(whole), weights(resumed))


def test_sigterm_during_a_validation_waits_for_one_sample_and_loses_nothing(tmp_path):
    """A validation of many participants takes longer than a scheduler waits."""
    scored = []

    def terminated(output, of):
        scored.append(1)
        if len(scored) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return metrics(output, of)

    def of_two(head, folder):
        source = PatchSource([sample(0), sample(1)], PLAN.patch)
        return fit(OWN, head, source, [sample(2), sample(4)], None, PLAN, folder)

    with pytest.raises(TryAgain, match='step 8 of 12'):
        of_two(replace(TOY, metrics=terminated), tmp_path / 'state')
    assert len(scored) == 3
    resumed, state = of_two(TOY, tmp_path / 'state')
    whole, undisturbed = of_two(TOY, tmp_path / 'whole')
    assert torch.equal(weights(whole), weights(resumed))
    assert state == undisturbed


def test_a_participant_without_a_score_is_named_and_left_out(tmp_path):
    said = []

    def sometimes(output, of):
        return metrics(output, of) if of.name == 'sub-02' else [('error', 'all', float('nan'))]

    def fitted(validation, head=TOY):
        source = PatchSource([sample(0), sample(1)], PLAN.patch)
        folder = tmp_path / '-'.join(own.name for own in validation)
        return fit(OWN, head, source, validation, None, PLAN, folder, said.append)

    one, other = (replace(sample(2), name=f'sub-0{n}') for n in (1, 2))
    both, state = fitted([one, other], replace(TOY, metrics=sometimes))
    alone, expected = fitted([other])
    assert state == expected
    assert torch.equal(weights(both), weights(alone))
    assert [line for line in said if 'sub-01 has no error' in line] == said[:1]
    with pytest.raises(BadData, match='no error of a validation participant'):
        fitted([one], replace(TOY, metrics=sometimes))


def test_a_step_whose_loss_is_no_number_changes_nothing(tmp_path):
    calls = iter(range(100))

    def now_and_then(prediction, target, mask):
        lost = prediction.new_tensor(float('nan') if next(calls) in (2, 3) else 1.0)
        return lost * masked_error(prediction, target, mask)

    source = PatchSource([sample(0), sample(1)], PLAN.patch)
    argv = source, [sample(2)], None, PLAN
    network, state = fit(OWN, replace(TOY, loss=now_and_then), *argv, tmp_path / 'state')
    assert [row['step'] for row in state.log if math.isnan(row['loss'])] == [3, 4]
    assert torch.isfinite(weights(network)).all()
    lost = replace(TOY, loss=lambda *given: float('nan') * masked_error(*given))
    with pytest.raises(BadData, match='none of the last 4 steps'):
        fit(OWN, lost, *argv, tmp_path / 'lost')


def test_batches_are_drawn_ahead_in_order_and_one_at_a_time(tmp_path):
    """While a batch is at work the next is drawn, none twice, none beyond the last."""
    asked, at_once = [], threading.Lock()

    def draw(step):
        assert at_once.acquire(blocking=False)
        asked.append(step)
        at_once.release()
        return step

    with drawn_ahead(draw, 3, 7) as batches:
        assert next(batches) == 3
        while 4 not in asked:
            time.sleep(0.001)
        assert [*batches] == [4, 5, 6]
    assert asked == [3, 4, 5, 6]
    with drawn_ahead(draw, 7, 7) as batches:
        assert [*batches] == []
    assert len(asked) == 4


def test_a_job_of_a_scheduler_is_one_process(tmp_path, monkeypatch):
    """Inside an allocation of several tasks, with and without srun, a fit is what it is outside."""
    (srun := tmp_path / 'bin' / 'srun').parent.mkdir()
    srun.touch(0o755)
    monkeypatch.setenv('PATH', str(srun.parent), prepend=os.pathsep)
    there, _ = run(tmp_path / 'login')
    for name, value in {'NTASKS': '4', 'JOB_NAME': 'group', 'PROCID': '0', 'LOCALID': '0'}.items():
        monkeypatch.setenv(f'SLURM_{name}', value)
    inside, _ = run(tmp_path / 'job')
    assert torch.equal(weights(there), weights(inside))


def test_what_goes_wrong_in_drawing_stops_the_fit(tmp_path, monkeypatch):
    def broken(self, size, seed, step):
        raise ValueError('no such patch')

    monkeypatch.setattr(PatchSource, 'batch', broken)
    with pytest.raises(ValueError, match='no such patch'):
        run(tmp_path)


def test_best_step_is_kept_not_the_last(tmp_path, monkeypatch):
    scores = iter([3.0, 1.0, 2.0])
    monkeypatch.setattr('bidsapp.learn.validation.score_of', lambda task, rows: next(scores))
    _, state = run(tmp_path)
    assert (state.best_step, state.best_score) == (8, 1.0)


def started(tmp_path):
    """A fitted network, the checkpoint of it, and other data to go on with."""
    start, _ = run(tmp_path / 'start')
    card = {
        'name': 'x', 'heads': {'toy': 1}, 'sha256': '',
        'network': {'name': 'unet', 'channels_in': 2, 'options': WIDTHS},
    }  # fmt: skip
    return start, checkpoint_of(start, card), PatchSource([sample(0)], PLAN.patch), [sample(2)]


def test_a_start_that_no_step_betters_is_kept(tmp_path, monkeypatch):
    """Fine-tuning never ends worse than it began, as far as validation can tell."""
    start, checkpoint, *data = started(tmp_path)
    scores = iter([1.0, 3.0, 2.0, 4.0])
    monkeypatch.setattr('bidsapp.learn.validation.score_of', lambda task, rows: next(scores))
    kept, state = fit(OWN, TOY, *data, checkpoint, PLAN, tmp_path / 'state')
    assert (state.best_step, state.best_score) == (0, 1.0)
    assert torch.equal(weights(kept), weights(start))


def test_frozen_parts_do_not_move(tmp_path):
    start, checkpoint, *data = started(tmp_path)
    for what, moved in (('encoder', 'decoder'), ('body', 'heads')):
        plan = replace(PLAN, rates={what: 0.0})
        tuned, _ = fit(OWN, TOY, *data, checkpoint, plan, tmp_path / what)
        old, new = start.state_dict(), tuned.state_dict()
        still = 'body.encoder' if what == 'encoder' else 'body'
        assert all(torch.equal(old[k], new[k]) for k in old if k.startswith(still))
        assert any(not torch.equal(old[k], new[k]) for k in old if moved in k)


def test_a_part_learns_at_its_own_rate(tmp_path, monkeypatch):
    """In the first step of Adam each weight moves by its rate: a tenth of it is a tenth as far."""
    start, checkpoint, *data = started(tmp_path)
    scores = iter([1.0, 0.0] * 2)
    monkeypatch.setattr('bidsapp.learn.validation.score_of', lambda head, rows: next(scores))
    plan, old = replace(PLAN, steps=1), start.state_dict()
    moved = {}
    for name, rates in (('plain', {}), ('rated', {'decoder': 0.1, 'encoder': 0.0})):
        own = replace(plan, rates=rates)
        tuned, _ = fit(OWN, TOY, *data, checkpoint, own, tmp_path / name)
        moved[name] = {key: new - old[key] for key, new in tuned.state_dict().items()}
    for key, plain in moved['plain'].items():
        factor = 0.0 if 'encoder' in key else 0.1 if 'decoder' in key else 1.0
        assert plain.any()
        assert torch.allclose(moved['rated'][key], factor * plain, atol=0.05 * factor * plan.lr), (
            key
        )


def test_of_parts_within_parts_the_smallest_rate_counts():
    network = build('dwi', 'unet', 2, {'toy': 1}, widths=(4, 4, 8, 8))
    groups = rated(network, replace(PLAN, rates={'body': 0.5, 'encoder': 0.0}))
    found = {group['factor']: {id(p) for p in group['params']} for group in groups}
    parts = network.parts()
    assert found == {
        0.5: {id(p) for p in parts['decoder'].parameters()},
        1.0: {id(p) for p in parts['heads'].parameters()},
    }
    assert not any(p.requires_grad for p in parts['encoder'].parameters())
    others = (*parts['decoder'].parameters(), *parts['heads'].parameters())
    assert all(p.requires_grad for p in others)


def test_a_part_that_the_network_has_not_is_refused_with_those_it_has(tmp_path):
    with pytest.raises(Problem, match='no part tail; it has body, encoder, decoder, heads'):
        run(tmp_path, replace(PLAN, rates={'tail': 0.1, 'body': 0.0}))


class Told(Network):
    """Knows nothing of a voxel but what it is told of the sample."""

    def __init__(self, channels_in, heads):
        super().__init__()
        self.body = torch.nn.Linear(1, 4)
        self.heads = torch.nn.ModuleDict({name: Pointwise(4, n) for name, n in heads.items()})

    def forward(self, image, context):
        features = self.body(context['level'])[..., None, None, None]
        features = features.expand(-1, -1, *image.shape[2:])
        return torch.cat([head(features) for head in self.heads.values()], 1)


def leveled(level):
    """A sample of nothing, whose target follows from what is told of it."""
    image, context = torch.zeros(1, 4, 4, 4), {'level': torch.tensor([level])}
    return Sample(image, image == 0, np.eye(4), image + 1 - 2 * level, context)


@pytest.mark.parametrize('turns', [(), MIRRORED])
def test_context_is_learnt_from_for_each_sample_of_a_batch(tmp_path, monkeypatch, turns):
    """Images are all zero: without what it is told no network could tell one from another."""
    monkeypatch.setitem(networks.SHARED, 'told', Architecture(f'{__name__}:Told', 100))
    own = replace(OWN, network=Shape('told', patch=(None, None, None)))
    plan = replace(PLAN, steps=200, patch=(None, None, None), batch=4, lr=3e-2, validate_every=100)
    source = PatchSource([leveled(k / 4) for k in range(-4, 5)], plan.patch)
    unseen = [leveled(x) for x in (-0.7, 0.1, 0.6)]
    head = replace(TOY, turns=turns)
    network, state = fit(own, head, source, unseen, None, plan, tmp_path / 'state')
    assert network.bytes_per_voxel == 100
    blind = torch.stack([s.target for s in unseen]).var(correction=0)
    assert state.best_score < 0.02 * blind


def slices(seed, thick):
    """Two channels, real and imaginary, turned by 45 degrees; no axis is as long as another."""
    image = torch.randn(2, 22, 26, thick, generator=torch.Generator().manual_seed(seed))
    return Sample(image, torch.ones(1, 22, 26, thick).bool(), np.eye(4), image.sum(0, True))


def test_slices_of_a_complex_image_are_learnt_from_as_they_are(tmp_path, monkeypatch):
    """Patches of (None, None, 1): no slice is padded, and none is seen with its neighbours."""
    seen, build_unet = set(), networks.build

    def watched(*args, **options):
        network = build_unet(*args, **options)
        network.body.register_forward_pre_hook(lambda _, given: seen.add(given[0].shape[2:]))
        return network

    monkeypatch.setattr('bidsapp.learn.fit.build', watched)
    flat = {**WIDTHS, 'kernel': (3, 3, 1)}
    own = replace(OWN, network=Shape('unet', patch=(None, None, 1), options=flat))
    plan = replace(PLAN, steps=40, patch=(None, None, 1), batch=3, validate_every=20)
    source = PatchSource([slices(k, (1, 3)[k % 2]) for k in range(4)], plan.patch)
    test = slices(9, 1)
    _, state = fit(own, TOY, source, [test], None, plan, tmp_path / 'state')
    assert seen == {(22, 26, 1)}
    assert state.best_score < 0.25 * test.target.var()  # which no more than the mean leaves


def test_a_start_for_other_channels_is_refused_with_both_numbers(tmp_path):
    card = {'name': 'x', 'heads': {}, 'network': {'name': 'unet', 'channels_in': 7}}
    source = PatchSource([sample(0)], PLAN.patch)
    with pytest.raises(Problem, match=r'7 input channels.*2'):
        fit(OWN, TOY, source, [sample(1)], Checkpoint(card, {}), PLAN, tmp_path / 'state')


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        ({'modality': 'gre'}, 'a unet of gre for 2 .* a network of dwi for 2'),
        ({'network': {'name': 'net', 'channels_in': 2}}, "No network named 'net'"),
    ],
)
def test_a_start_of_another_modality_or_no_network_is_refused(tmp_path, change, words):
    card = {
        'name': 'x', 'version': 'v1', 'heads': {}, 'network': {'name': 'unet', 'channels_in': 2},
        **change,
    }  # fmt: skip
    source = PatchSource([sample(0)], PLAN.patch)
    with pytest.raises(Problem, match=words):
        fit(OWN, TOY, source, [sample(1)], Checkpoint(card, {}), PLAN, tmp_path / 'state')


def test_a_start_stays_the_network_that_it_is(tmp_path, monkeypatch):
    """Whatever the modality's tasks are usually learnt by, as long as it can carry the input."""
    monkeypatch.setitem(networks.SHARED, 'told', Architecture(f'{__name__}:Told', 100))
    usual = replace(OWN, network=Shape('told'))
    start = build('dwi', 'unet', 2, {'toy': 1}, widths=(4, 4, 8, 8))
    card = {
        'name': 'x', 'version': 'v1', 'heads': {'toy': 1},
        'network': {'name': 'unet', 'channels_in': 2, 'options': {'widths': [4, 4, 8, 8]}},
    }  # fmt: skip
    plan = replace(PLAN, steps=1, validate_every=1, rates={'body': 0.0})
    source = PatchSource([sample(0)], PLAN.patch)
    checkpoint = checkpoint_of(start, card)
    tuned, _ = fit(usual, TOY, source, [sample(1)], checkpoint, plan, tmp_path / 'state')
    assert type(tuned) is type(start)
    was, now = start.body.state_dict(), tuned.body.state_dict()
    assert all(torch.equal(was[key], now[key]) for key in was)
    assert with_network_of(usual, checkpoint).network.options == card['network']['options']


def test_an_averaged_run_keeps_the_average_and_resumes_with_it(tmp_path):
    plan = replace(PLAN, average=0.9)
    whole, _ = run(tmp_path / 'whole', plan)
    plain, _ = run(tmp_path / 'plain')

    def stop_after(line):
        if 'step 8' in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / 'cut', plan, progress=stop_after)
    resumed, _ = run(tmp_path / 'cut', plan)
    assert torch.equal(weights(whole), weights(resumed))
    assert not torch.equal(weights(whole), weights(plain))


def test_the_average_of_weights_that_stand_still_is_those_weights():
    network = build('dwi', 'unet', 2, {'toy': 1}, widths=(4, 4, 8, 8))
    kept = BestWeights(network, 0.99)
    for step in range(5):
        kept.follow(network, step)
    own = network.state_dict()
    assert all(torch.allclose(kept.average[k], own[k]) for k in own)
    with torch.no_grad():
        for value in network.parameters():
            value.add_(1)
    kept.follow(network, 1000)
    moved = kept.average['heads.toy.bias'] - own['heads.toy.bias'] + 1
    assert torch.allclose(moved, torch.full_like(moved, 0.01), atol=1e-5)


def test_progress_says_how_much_of_the_time_was_learning(tmp_path):
    lines = []
    run(tmp_path, progress=lines.append)
    assert re.search(r'network \d+% of the time', lines[-1])


def test_a_batch_is_augmented_anew_at_each_step_and_the_same_when_resumed(tmp_path):
    def noisy(batch, generator):
        drawn.append(int(torch.randint(10**6, (), generator=generator)))
        noise = torch.randn(batch.image.shape, generator=generator)
        return batch._replace(image=batch.image + noise)

    seen = []
    for name in ('a', 'b'):
        drawn = []
        head, source = replace(TOY, augment=noisy), PatchSource([sample(0)], PLAN.patch)
        network, _ = fit(OWN, head, source, [sample(2)], None, PLAN, tmp_path / name)
        seen.append((drawn, weights(network)))
    assert len(set(drawn)) == len(drawn) == PLAN.steps
    assert seen[0][0] == seen[1][0]
    assert torch.equal(seen[0][1], seen[1][1])
    plain, _ = run(tmp_path / 'plain')
    assert not torch.equal(weights(plain), seen[0][1])


def test_learning_rate_rises_then_falls_to_nothing():
    plan = replace(PLAN, steps=100)
    rates = [learning_rate(plan, step) for step in range(100)]
    assert rates[0] < rates[4] == max(rates) == plan.lr
    assert rates[-1] < 0.01 * plan.lr


def test_learning_needs_torch_numpy_safetensors_and_fabric_alone():
    """The loop and, of every modality, input, networks, simulator and tasks import nothing else."""
    blocked = [
        'nipype',
        'bids',
        'dipy',
        'ants',
        'nibabel',
        'nilearn',
        'scipy',
        'matplotlib',
        'pandas',
    ]
    code = f"""
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in {blocked!r}:
            raise ImportError(name)
sys.meta_path.insert(0, Block())
import bidsapp.learn.fit, bidsapp.learn.checkpoint, bidsapp.learn.losses
import importlib, pkgutil, bidsapp.networks, bidsapp.simulate
from bidsapp import registry
rooms = [bidsapp.networks, bidsapp.simulate]
for modality in registry.modalities():
    registry.input(modality), registry.networks(modality), registry.pretraining(modality)
    registry.tasks_of(modality)
    home = 'bidsapp.modalities.' + modality + '.'
    rooms += map(importlib.import_module, (home + 'learn', home + 'networks', home + 'simulate'))
for room in rooms:
    for module in pkgutil.iter_modules(room.__path__):
        importlib.import_module(room.__name__ + '.' + module.name)
"""
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
