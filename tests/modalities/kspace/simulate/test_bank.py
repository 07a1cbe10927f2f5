"""The bank: the same slices whoever makes them; and a network that learns from them."""

from __future__ import annotations

from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace

import pytest
import torch

from bidsapp.core import Plan
from bidsapp.learn.checkpoint import checkpoint_of, load, save_next
from bidsapp.learn.fit import fit
from bidsapp.learn.inputs import Shape
from bidsapp.learn.joint import joint
from bidsapp.learn.predict import network_of, predict
from bidsapp.modalities.kspace import learn
from bidsapp.modalities.kspace.learn.head import HEAD, slices_of
from bidsapp.modalities.kspace.physics.seen import operator_of
from bidsapp.modalities.kspace.simulate import bank, slices
from bidsapp.modalities.kspace.tasks.reconstruction import task
from bidsapp.physics.streams import stream
from bidsapp.simulate.domain_randomisation import abstract_template
from bidsapp.simulate.material import labelled
from bidsapp.simulate.stream import SimulatedStream

#: Bodies alone are drawn without a head, which takes longer than all the rest.
QUICK = replace(slices.EVERYTHING, bodies=1, leaves=0, coils=(1, 4), acceleration=(1.5, 3))
RECONSTRUCTION = replace(task, name='reconstruction', head=replace(HEAD, name='reconstruction'))


@pytest.fixture(scope='module')
def template():
    return abstract_template(stream(1), torch.device('cpu'))


@pytest.fixture
def small(monkeypatch):
    """Slices of a few voxels."""
    for name, value in {
        'LINES': (24, 30), 'READOUT': (30, 36), 'FEWER': (24, 26), 'COLUMNS': 24,
    }.items():  # fmt: skip
        monkeypatch.setattr(bank, name, value)


class Makers:
    """A pool whose one worker is this process, until it is killed."""

    def __init__(self, alive=10**6):
        self.alive, self.asked = alive, []

    def submit(self, function, *given):
        self.asked.append(given[1])
        self.alive -= 1
        found = Future()
        if self.alive >= 0:
            found.set_result(function(*given))
        else:
            found.set_exception(BrokenProcessPool())
        return found


def same(one, other):
    return torch.equal(one.image, other.image) and torch.equal(
        one.truth['image'], other.truth['image']
    )


@pytest.mark.usefixtures('small')
def test_a_scan_is_the_same_whoever_makes_it(template, monkeypatch):
    monkeypatch.setattr(bank, '_template', [template])
    monkeypatch.setattr(bank, 'AHEAD', 1)
    alone, makers = bank.Bank(template, 3, QUICK), Makers(alive=3)
    together = bank.Bank(template, 3, QUICK, makers)
    here = [alone.scan(number) for number in (0, 1, 2)]
    assert same(together.scan(0), here[0])
    assert makers.asked == [0, 1]
    assert same(together.scan(1), here[1])
    assert {k: v.shape for k, v in together.scan(1).context.items()} == {
        k: v.shape for k, v in here[1].context.items()
    }
    assert not same(here[0], bank.Bank(template, 4, QUICK).scan(0))
    # A worker that was killed is missed, and the slice is made here.
    assert same(together.scan(2), here[2])


@pytest.mark.usefixtures('small')
def test_what_is_seen_of_a_scan_is_of_its_truth(template):
    """Zero-filled is Aᴴ A of the truth, but for noise and what maps from few lines are off."""
    exact = replace(QUICK, noise=(1e-4, 1e-4), coils=(6, 6), spread=0, partial=0)
    for number in range(4):
        one = bank.Bank(template, 0, exact).scan(number)
        truth = slices_of(one.truth['image'])[0]
        back = slices_of(one.image[2:])[0]
        said = operator_of(one.context).gram(truth)
        assert (said - back).norm() < 0.2 * back.norm()
        edge = bank.EDGE if one.context['mask'].shape[1] == 1 else 0
        assert one.mask.sum() == (one.mask.shape[1] - 2 * edge) * one.mask.shape[2]


@pytest.mark.usefixtures('small')
def test_a_few_steps_teach_something_that_is_kept(template, tmp_path):
    """From where total variation ends; mixed coils and matrices, one a step."""
    own = replace(learn.input, network=Shape(
        'cascades', options={'widths': [4, 8]}, patch=learn.PATCH, batch=1,
    ))  # fmt: skip
    scans, tasks = bank.Bank(template, 0, QUICK), (RECONSTRUCTION,)
    validation = [labelled(bank.Bank(template, 1, QUICK).scan(k), tasks) for k in range(2)]
    head = joint([RECONSTRUCTION.head])
    plan = Plan(steps=6, patch=learn.PATCH, batch=1, lr=5e-3, validate_every=6)
    source = SimulatedStream(scans, tasks, plan.patch, window=3, steps_a_scan=6)
    network, state = fit(own, head, source, validation, None, plan, tmp_path / 'state')
    assert all(torch.isfinite(torch.tensor([row['loss'] for row in state.log])))
    shape = {'name': 'cascades', 'channels_in': 4, 'options': {'widths': [4, 8]}}
    card = {
        'name': 'x',
        'version': 'v1',
        'network': shape,
        'heads': head.heads,
        'modality': 'kspace',
    }
    again = network_of(
        load(save_next(checkpoint_of(network, card), tmp_path, 'x')), ['reconstruction']
    )
    for sample in validation:
        output = predict(network, sample)
        assert torch.equal(predict(again, sample), output)
        found, start = (
            {name: value for name, _, value in HEAD.metrics(image, sample)}
            for image in (output, sample.image[:2])
        )
        assert found['nrmse'] < 1.2 * start['nrmse']
