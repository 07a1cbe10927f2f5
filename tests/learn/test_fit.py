"""The loop learns, repeats itself, resumes, and keeps its best step."""

from __future__ import annotations

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

from bidsapp.core import Checkpoint, Output, Plan, Sample, Task
from bidsapp.learn.checkpoint import checkpoint_of
from bidsapp.learn.fit import fit, learning_rate
from bidsapp.learn.patches import PatchSource, seeded
from bidsapp.learn.running import drawn_ahead
from bidsapp.learn.state import BestWeights
from bidsapp.networks.registry import build
from bidsapp.problems import Problem, TryAgain


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


TOY = Task(
    name='toy', modality='dwi', writes=(Output('sum', {'suffix': 'dwimap'}, 'float32'),),
    channels=1, targets=1, load=lambda case: sample(0), loss=masked_error,
    finish=lambda output, of, case: {'sum': output[0].numpy()}, metrics=metrics, score='error',
    higher_is_better=False, reference=lambda acquisition: 'reference',
)  # fmt: skip
PLAN = Plan(steps=12, patch=16, batch=2, lr=5e-3, seed=3, validate_every=4)


def run(tmp_path, plan=PLAN, **options):
    source = PatchSource([sample(0), sample(1)], plan.patch)
    return fit(TOY, source, [sample(2)], None, plan, tmp_path / 'state', **options)


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
    task = replace(TOY, loss=terminated)
    with pytest.raises(TryAgain, match='step 6 of 12'):
        fit(task, source, [sample(2)], None, PLAN, tmp_path / 'state')
    resumed, _ = run(tmp_path)
    whole, _ = run(tmp_path / 'whole')
    assert torch.equal(weights(whole), weights(resumed))


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
    monkeypatch.setattr('bidsapp.learn.fit.score_of', lambda task, rows: next(scores))
    _, state = run(tmp_path)
    assert (state.best_step, state.best_score) == (8, 1.0)


def started(tmp_path):
    """A fitted network, the checkpoint of it, and other data to go on with."""
    start, _ = run(tmp_path / 'start')
    card = {
        'name': 'x', 'heads': {'toy': 1}, 'sha256': '',
        'network': {'name': 'unet3d', 'channels_in': 2, 'options': {}},
    }  # fmt: skip
    return start, checkpoint_of(start, card), PatchSource([sample(0)], PLAN.patch), [sample(2)]


def test_a_start_that_no_step_betters_is_kept(tmp_path, monkeypatch):
    """Fine-tuning never ends worse than it began, as far as validation can tell."""
    start, checkpoint, *data = started(tmp_path)
    scores = iter([1.0, 3.0, 2.0, 4.0])
    monkeypatch.setattr('bidsapp.learn.fit.score_of', lambda task, rows: next(scores))
    kept, state = fit(TOY, *data, checkpoint, PLAN, tmp_path / 'state')
    assert (state.best_step, state.best_score) == (0, 1.0)
    assert torch.equal(weights(kept), weights(start))


def test_frozen_parts_do_not_move(tmp_path):
    start, checkpoint, *data = started(tmp_path)
    for what, moved in (('encoder', 'decoder'), ('body', 'heads')):
        plan = replace(PLAN, freeze=what)
        tuned, _ = fit(TOY, *data, checkpoint, plan, tmp_path / what)
        old, new = start.state_dict(), tuned.state_dict()
        still = 'body.encoder' if what == 'encoder' else 'body'
        assert all(torch.equal(old[k], new[k]) for k in old if k.startswith(still))
        assert any(not torch.equal(old[k], new[k]) for k in old if moved in k)


def test_a_start_for_other_channels_is_refused_with_both_numbers(tmp_path):
    card = {'name': 'x', 'heads': {}, 'network': {'name': 'unet3d', 'channels_in': 7}}
    source = PatchSource([sample(0)], PLAN.patch)
    with pytest.raises(Problem, match=r'7 input channels.*2'):
        fit(TOY, source, [sample(1)], Checkpoint(card, {}), PLAN, tmp_path / 'state')


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
    network = build('unet3d', 2, {'toy': 1}, widths=(4, 4, 8, 8))
    kept = BestWeights(network, 0.99)
    for step in range(5):
        kept.follow(network, step)
    own = network.state_dict()
    assert all(torch.allclose(kept.average[k], own[k]) for k in own)
    with torch.no_grad():
        for value in network.parameters():
            value.add_(1)
    kept.follow(network, 1000)
    moved = kept.average['body.mix.bias'] - own['body.mix.bias'] + 1
    assert torch.allclose(moved, torch.full_like(moved, 0.01), atol=1e-5)


def test_progress_says_how_much_of_the_time_was_learning(tmp_path):
    lines = []
    run(tmp_path, progress=lines.append)
    assert re.search(r'network \d+% of the time', lines[-1])


def test_learning_rate_rises_then_falls_to_nothing():
    plan = replace(PLAN, steps=100)
    rates = [learning_rate(plan, step) for step in range(100)]
    assert rates[0] < rates[4] == max(rates) == plan.lr
    assert rates[-1] < 0.01 * plan.lr


def test_drawing_a_batch_leaves_the_global_generator_alone():
    source = PatchSource([sample(0)], 16)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    source.batch(2, 0, 0)
    assert torch.equal(before, torch.random.get_rng_state())


def test_batches_depend_on_seed_and_step_only():
    source = PatchSource([sample(0), sample(1)], 16)
    first = source.batch(2, 5, 7)[0]
    source.batch(2, 5, 8)
    assert torch.equal(first, source.batch(2, 5, 7)[0])
    assert not torch.equal(first, source.batch(2, 5, 8)[0])


def test_every_patch_holds_brain_even_in_a_volume_of_one_patch():
    small = Sample(
        torch.ones(1, 16, 9, 16), torch.zeros(1, 16, 9, 16, dtype=torch.bool), np.eye(4),
        target=torch.ones(1, 16, 9, 16),
    )  # fmt: skip
    small.mask[0, 1, 1, 1] = True
    _, _, mask = PatchSource([small], 16).batch(4, 0, 0)
    assert mask.flatten(1).any(1).all()


def test_seeded_restores_the_generator():
    torch.manual_seed(9)
    expected = torch.rand(3)
    torch.manual_seed(9)
    with seeded(1, 2):
        torch.rand(5)
    assert torch.equal(expected, torch.rand(3))


def test_learning_needs_torch_numpy_safetensors_and_fabric_alone():
    """`simulate`, `networks`, `learn` and the q-space map run where nothing else is installed."""
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
import bidsapp.learn.fit, bidsapp.learn.checkpoint, bidsapp.networks.registry
import bidsapp.modalities.dwi.physics.qspace, bidsapp.modalities.dwi.physics.gradients
import bidsapp.learn.losses, bidsapp.modalities.dwi.learn.losses
import importlib, pkgutil, bidsapp.simulate
for module in pkgutil.iter_modules(bidsapp.simulate.__path__):
    importlib.import_module('bidsapp.simulate.' + module.name)
"""
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
