"""What CONTRIBUTING.md tells a developer is so: its task works, its paths are there."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bidsapp.bids.prepared import find_prepared
from bidsapp.core import Task
from bidsapp.learn.inputs import Use
from bidsapp.modalities.dwi.learn import input as own
from tests.modalities.prepared import PREPARED

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / 'CONTRIBUTING.md').read_text(encoding='utf-8')


@pytest.fixture(scope='module')
def task():
    """The annotated file, as it is found when it is dropped in."""
    (block,) = re.findall(r'```python\n(.*?)```', PAGE, re.S)
    module: dict = {}
    exec(compile(block, 'fluid.py', 'exec'), module)
    found = module['task']
    return replace(found, name='fluid', modality='dwi', head=replace(found.head, name='fluid'))


@pytest.fixture(scope='module')
def case(tmp_path_factory):
    """A prepared run: a ball of tissue."""
    root = tmp_path_factory.mktemp('prepared')
    PREPARED['dwi'](root, np.diag([2.0, 2.0, 2.0, 1.0]))
    (found,) = find_prepared(root, 'dwi')
    return found


def test_its_task_goes_from_label_to_prediction(task, case, tmp_path):
    import nibabel as nib

    assert isinstance(task, Task)
    label = task.label.derive(case)[task.learnt[0].name]
    grid = nib.load(case.files['mask'])
    assert label.shape == grid.shape
    path = tmp_path / 'label.nii.gz'
    nib.save(nib.Nifti1Image(label.astype(np.uint8), grid.affine), path)
    plain = own.sample(case, own.parts(case, Use())[0])
    sample = task.load(plain, case.with_files(fluid=path))
    assert sample.target.shape == (task.head.targets, *sample.mask.shape[1:])

    output = torch.randn(task.head.channels, *sample.mask.shape[1:], requires_grad=True)
    task.head.loss(output[None], sample.target[None], sample.mask[None]).backward()
    assert torch.isfinite(output.grad).all()
    ((metric, _, value),) = task.head.metrics(output.detach(), sample)
    assert metric == task.head.score
    assert 0 <= value <= 1
    arrays = task.finish({'fluid': output.detach()}, sample, case)
    assert set(arrays) == {one.name for one in task.writes}
    assert not arrays['fluid'][~sample.mask[0].numpy()].any()


def test_a_simulated_scan_tells_its_target(task):
    truth = task.truth({'tissue': torch.rand(3, 4, 5, 6)})
    assert truth.shape == (task.head.targets, 4, 5, 6)


def test_every_path_that_it_names_is_there():
    prose = re.sub(r'```.*?```', '', PAGE, flags=re.S)
    named = set(re.findall(r'[`(]((?:bidsapp|tests|docs)/[\w./-]+)[`) ]', prose))
    assert len(named) > 5
    missing = [path for path in named if not (ROOT / path).exists()]
    assert missing == ['bidsapp/modalities/dwi/tasks/fluid.py']


def test_every_room_that_it_names_is_there():
    rooms = re.findall(r'`(\w+)/?`', PAGE[PAGE.index('| rooms |') : PAGE.index('## Add a task')])
    assert len(rooms) > 10
    app = ROOT / 'bidsapp'
    there = {path.stem for room in (app, app / 'modalities') for path in room.iterdir()}
    assert set(rooms) <= there


def test_it_is_one_page():
    assert len(PAGE.splitlines()) <= 90
