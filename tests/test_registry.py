"""Modalities and tasks are found by their folders, and bring what each modality has to bring."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import bidsapp.modalities
from bidsapp import registry
from bidsapp.bids.runs import Files
from bidsapp.core import Objective, Option
from bidsapp.learn.inputs import Input
from bidsapp.networks.registry import Architecture, architecture
from bidsapp.problems import WrongUsage
from bidsapp.reports.page import Page
from bidsapp.simulate.material import Pretraining
from bidsapp.workflows.preparation import Preparation

HOME = Path(bidsapp.modalities.__file__).parent
#: Channels of the input of modalities whose networks take no other number.
CHANNELS = {'kspace': 4}


def test_every_folder_with_tasks_is_a_modality_and_every_file_of_these_a_task():
    folders = {p.parts[-3] for p in HOME.glob('[!_]*/tasks/__init__.py')}
    assert set(registry.modalities()) == folders
    files = {p.stem: p.parts[-3] for p in HOME.glob('*/tasks/[!_]*.py')}
    assert dict(registry.tasks()) == files
    assert list(registry.tasks()) == sorted(files)
    assert registry.FIRST in folders


@pytest.mark.parametrize('name', registry.tasks())
def test_a_task_knows_its_name_and_modality_from_where_it_stands(name):
    task = registry.task(name)
    assert (task.name, task.modality) == (name, registry.tasks()[name])
    assert task.head.name == name
    assert dict(task.head.heads) == {name: task.head.channels}
    assert task in registry.tasks_of(task.modality)


def test_an_unknown_task_is_refused_with_the_names_that_exist():
    with pytest.raises(WrongUsage, match=', '.join(registry.tasks())):
        registry.task('weather')


def test_two_tasks_of_one_name_are_refused(monkeypatch):
    monkeypatch.setattr(registry, 'modalities', lambda: ('dwi', 'dwi'))
    with pytest.raises(ValueError, match='share a name'):
        registry.tasks.__wrapped__()


@pytest.mark.parametrize(
    'asked',
    [
        'registry.tasks()',
        '[registry.title(m) for m in registry.modalities()]',
        '[(registry.objectives(m), registry.options(m)) for m in registry.modalities()]',
        '[registry.networks(m) for m in registry.modalities()]',
    ],
)
def test_names_and_words_load_no_torch(asked):
    code = f'import sys; from bidsapp import registry; {asked}; print("torch" in sys.modules)'
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert result.stdout.strip() == 'False', result.stderr


@pytest.mark.parametrize('modality', registry.modalities())
class TestEveryModality:
    def test_it_brings_its_parts_under_their_names(self, modality):
        for part, kind in (
            (registry.files, Files), (registry.preparation, Preparation), (registry.input, Input),
            (registry.pretraining, Pretraining), (registry.page, Page),
        ):  # fmt: skip
            assert isinstance(part(modality), kind)
        assert registry.input(modality).modality == modality
        own = registry.networks(modality).values()
        assert all(isinstance(network, Architecture) for network in own)

    def test_it_is_told_of_in_words(self, modality):
        assert registry.title(modality)
        assert '.' not in registry.title(modality)[-1]
        assert all(isinstance(own, Objective) for own in registry.objectives(modality).values())
        assert all(isinstance(own, Option) for own in registry.options(modality))
        assert registry.files(modality).words

    def test_it_learns_by_a_network_that_can_be_built(self, modality):
        shape = registry.input(modality).network
        heads = {task.name: task.head.channels for task in registry.tasks_of(modality)}
        network = architecture(modality, shape.name).build(
            shape.options.get('channels_in', CHANNELS.get(modality, 300)), heads, **shape.options
        )
        for side, step in zip(shape.patch, network.stride, strict=True):
            assert side is None or side % step == 0

    def test_what_tasks_read_for_their_labels_is_made_by_its_preparation_or_given(self, modality):
        reads = {kind for task in registry.tasks_of(modality) if task.label
                 for kind in task.label.reads}  # fmt: skip
        given = set(registry.files(modality).helps)  # by the user, by -d
        assert reads <= set(registry.preparation(modality).aids) | given

    def test_the_main_file_of_a_prepared_run_is_one_that_is_prepared(self, modality):
        prepared = registry.files(modality).prepared
        assert prepared.main in prepared.names
