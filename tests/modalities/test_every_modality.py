"""What holds for every modality; a new one needs an entry in `prepared.py` beside this file."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch

from bidsapp import registry
from bidsapp.bids.derivatives import ignored
from bidsapp.bids.images import onto_run
from bidsapp.bids.names import build, of_recording, parse
from bidsapp.bids.outputs import files_of
from bidsapp.bids.prepared import find_prepared, prepared_files
from bidsapp.bids.runs import Files
from bidsapp.core import Quantity
from bidsapp.learn.inputs import Input, Use, kept_inputs, open_input
from bidsapp.networks.registry import architecture
from bidsapp.reports.page import Drawn, Page
from bidsapp.reports.planes import open_view
from bidsapp.reports.written import find_written, outputs_of
from bidsapp.simulate.material import Pretraining
from bidsapp.workflows.preparation import Preparation
from tests.modalities.prepared import PREPARED, RAW

QUARTER = ((0, -1, 0), (1, 0, 0), (0, 0, 1))

every_modality = pytest.mark.parametrize('modality', registry.modalities())


@pytest.fixture(scope='module')
def out(tmp_path_factory):
    """OUTPUT_DIR with a prepared run of each modality, on a left-handed, permuted grid."""
    root = tmp_path_factory.mktemp('prepared')
    affine = np.array([[0, 0, 2.5, -12], [-2, 0, 0, 11], [0, 2, 0, -9], [0, 0, 0, 1.0]])
    for write in PREPARED.values():
        write(root, affine)
    return root


@pytest.fixture
def case(out, modality):
    (found,) = find_prepared(out, modality)
    return found


def test_each_has_an_example_here():
    assert set(PREPARED) == set(RAW) == set(registry.modalities())


@every_modality
def test_the_parts_are_there_under_their_names(modality):
    assert isinstance(registry.files(modality), Files)
    assert isinstance(registry.preparation(modality), Preparation)
    assert isinstance(registry.input(modality), Input)
    assert isinstance(registry.pretraining(modality), Pretraining)
    assert isinstance(registry.page(modality), Page)
    assert registry.input(modality).modality == modality
    assert architecture(modality, registry.input(modality).network.name)
    assert registry.title(modality)


@every_modality
def test_prepared_names_parse_back_and_are_found_again(modality, case):
    prepared = registry.files(modality).prepared
    assert prepared.main in prepared.names
    for kind, path in prepared_files(prepared, case.entities).items():
        named = parse(path.name)
        named_here = prepared.names[kind]
        if kind == prepared.main:
            named_here = prepared.main_of(case.entities)
        own = {**of_recording(case.entities), **named_here}
        assert {k: v for k, v in own.items() if k != 'datatype'} == named
        assert build({**named, 'datatype': path.parent.name}) == path
        assert case.files[kind].is_file()


@every_modality
def test_outputs_of_all_tasks_have_names_of_their_own(modality):
    datatype = registry.files(modality).prepared.datatype
    entities = {'subject': '01', 'datatype': datatype, 'suffix': 'T1w'}
    names = [
        path
        for task in registry.tasks_of(modality)
        for output in task.writes
        for path in files_of(entities, output, 'unet')
    ]
    assert len(set(names)) == len(names)
    assert all(output.description for output in outputs_of(modality))


@every_modality
def test_what_a_validator_does_not_know_is_in_the_bidsignore(modality):
    lines = ignored().splitlines()
    assert set(registry.files(modality).ignored) <= set(lines)
    assert len(lines) == len(set(lines))


@every_modality
def test_a_survey_opens_no_voxel(modality, tmp_path, monkeypatch):
    run = RAW[modality](tmp_path)

    def voxels(*_, **__):
        raise AssertionError('voxels were read')

    monkeypatch.setattr(nib.arrayproxy.ArrayProxy, '__array__', voxels)
    monkeypatch.setattr(nib.arrayproxy.ArrayProxy, '__getitem__', voxels)
    survey = registry.files(modality).survey(run)
    assert survey.size.voxels > 0
    assert survey.acquisition.words
    assert all(isinstance(q, Quantity) for q in survey.acquisition.quantities())


@every_modality
def test_the_input_lies_on_the_grid_of_the_run(modality, case):
    """What a network says of a voxel comes back to that voxel, whatever way the axes point."""
    prepared = registry.files(modality).prepared
    sample = registry.input(modality).sample(case, {})
    places = np.stack(np.meshgrid(*map(np.arange, sample.mask.shape[1:]), indexing='ij'), -1)
    world = places @ sample.affine[:3, :3].T + sample.affine[:3, 3]
    back = onto_run(world.astype(np.float64), sample, case.files[prepared.main])
    image = nib.load(case.files[prepared.main])
    own = np.stack(np.meshgrid(*map(np.arange, image.shape[:3]), indexing='ij'), -1)
    truth = own @ image.affine[:3, :3].T + image.affine[:3, 3]
    inside = back.any(-1)
    assert inside.sum() >= sample.mask.numel() - 1
    assert np.allclose(back[inside], truth[inside])


@every_modality
def test_four_quarter_turns_or_two_mirrors_are_nothing(modality, case):
    own = registry.input(modality)
    sample = own.sample(case, {})
    for turn, times in ((QUARTER, 4), (((-1, 0, 0), (0, 1, 0), (0, 0, 1)), 2)):
        image, context = sample.image, sample.context
        for _ in range(times):
            image, context = own.turned(image, context, turn)
        assert torch.allclose(image, sample.image, atol=1e-4)
        assert all(torch.equal(context[k], v) for k, v in sample.context.items())


@every_modality
def test_a_kept_input_is_the_input(modality, case, tmp_path):
    own, main = registry.input(modality), registry.files(modality).prepared.main
    for place in kept_inputs(own, case, main, Use(training=True), tmp_path):
        kept = open_input(place)
        assert kept.image.dtype == torch.float32
        assert kept.mask.dtype == torch.bool
        assert kept.image.shape[1:] == kept.mask.shape[1:]
    again = kept_inputs(own, case, main, Use(training=True), tmp_path)
    assert len(again) == len(list(tmp_path.iterdir()))


@every_modality
def test_every_figure_can_be_missing(modality, out):
    """Of a run of which nothing but the prepared files is there."""
    (run,) = (r for r in find_written(out, '01') if r.modality == modality)
    page = registry.page(modality)
    view = open_view(run)
    assert view.background.shape == view.brain.shape
    drawn = [draw() for draw in page.figures(run, view)]
    assert all(one is None or isinstance(one, Drawn) for one in drawn)
    assert all(one.path is None or one.path.is_file() for one in drawn if one)
    assert page.facts(run) is not None


@every_modality
def test_objectives_say_what_they_teach(modality):
    for name, objective in registry.objectives(modality).items():
        assert name == name.lower()
        assert objective.words
        assert objective.simulated or objective.dataset
        if objective.labels:
            assert registry.task(objective.labels).label is not None
