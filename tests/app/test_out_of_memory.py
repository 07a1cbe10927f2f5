"""Memory that runs out inside a process: as the libraries say it, which is not as a MemoryError."""

from __future__ import annotations

import errno
import json
import os

import numpy as np
import pytest
import torch
from nipype.interfaces.base import TraitedSpec

from bidsapp import cli
from bidsapp.interfaces.base import PROBLEM, Step, StepInput
from bidsapp.problems import ran_out_of_memory

FAR_TOO_MANY = 10**15


def from_numpy():
    np.ones(FAR_TOO_MANY)


def from_torch():
    torch.ones(FAR_TOO_MANY)


def from_a_cuda_device():
    raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 20.00 MiB.')


def from_the_system():
    raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))


SOURCES = [from_numpy, from_torch, from_a_cuda_device, from_the_system]


@pytest.mark.parametrize('source', SOURCES)
def test_a_step_that_runs_out_may_be_tried_again(source, tmp_path):
    class Hungry(Step):
        input_spec = StepInput
        output_spec = TraitedSpec

        def step(self, folder):
            source()

    with pytest.raises((MemoryError, RuntimeError, OSError)):
        Hungry().run(cwd=str(tmp_path))
    assert json.loads((tmp_path / PROBLEM).read_text())['exit_code'] == 75


@pytest.mark.parametrize('source', SOURCES)
def test_so_may_a_whole_call(source, monkeypatch, capsys):
    monkeypatch.setattr(cli, 'run', lambda settings: source())
    assert cli.main(['a', 'b', 'group']) == 75
    assert 'Out of memory' in capsys.readouterr().err


@pytest.mark.parametrize(
    'error', [ValueError('out of memory'), RuntimeError('no'), OSError(errno.ENOSPC, 'full')]
)
def test_other_errors_are_none(error):
    assert not ran_out_of_memory(error)


def test_a_full_disk_is_still_one(monkeypatch):
    def full(settings):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(cli, 'run', full)
    assert cli.main(['a', 'b', 'group']) == 74
