"""Graphs over skeletons of empty files, looked at and never run."""

from __future__ import annotations

import errno
import os
import signal
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING

import networkx as nx
import pytest

from bidsapp import registry
from bidsapp.bids.prepared import prepared_files
from bidsapp.bids.runs import Size, Survey
from bidsapp.core import Case
from bidsapp.interfaces.base import Step
from bidsapp.modalities.dwi.bids.fieldmap_sources import FieldmapSource
from bidsapp.modalities.dwi.bids.runs import DwiRun
from bidsapp.modalities.dwi.interfaces.corrections import Denoise
from bidsapp.modalities.dwi.physics.acquisition import Acquisition
from bidsapp.resources import Limit
from bidsapp.stopping import Stopped, heard
from bidsapp.workflows.execution import Engine, Watch, engine, run_graph
from bidsapp.workflows.participant import init_participant_wf, node_name, run_folder
from bidsapp.workflows.plan import Model, Todo
from bidsapp.workflows.preparation import Place
from bidsapp.workflows.run import init_run_wf
from bidsapp.workflows.workers import WorkersPlugin

if TYPE_CHECKING:
    from pathlib import Path

TASKS = [task.name for task in registry.tasks_of('dwi')]
LABELLED = [task.name for task in registry.tasks_of('dwi') if task.label]
SURVEY = Survey(
    Acquisition(60, ((1000.0, 30), (2000.0, 30)), 1.5, True, (1000.0, 2000.0), (2.0, 2.0, 2.0)),
    Size(96 * 96 * 60, 65),
)
METADATA = {'PhaseEncodingDirection': 'j-', 'TotalReadoutTime': 0.05, 'PartialFourier': 1}


def empty(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


@pytest.fixture
def place(tmp_path):
    roots = {'raw': tmp_path / 'bids', 'qsiprep': tmp_path / 'qsiprep'}
    return Place(roots, tmp_path / 'out', seed=0, device='cpu', omp_nthreads=2)


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / 'model'
    folder.mkdir()
    return Model(folder, 'ab' * 32)


def run_of(place, origin='raw', t1w=True, **more) -> DwiRun:
    folder = place.roots[origin] / 'sub-01' / 'dwi'
    stem = 'sub-01_dwi' if origin == 'raw' else 'sub-01_space-ACPC_desc-preproc_dwi'
    files = {k: empty(folder / f'{stem}.{e}') for k, e in
             {'dwi': 'nii.gz', 'bval': 'bval', 'bvec': 'bvec'}.items()}  # fmt: skip
    if t1w:
        files['t1w'] = empty(place.roots['raw'] / 'sub-01' / 'anat' / 'sub-01_T1w.nii.gz')
    taken = None if origin == 'raw' else origin
    case = Case({'subject': '01', 'datatype': 'dwi'}, files)
    return DwiRun('dwi', case, METADATA, taken_from=taken, **more)


def names_of(workflow) -> list[str]:
    return [name.rpartition('.')[2] for name in workflow.list_node_names()]


@pytest.mark.parametrize('t1w', [True, False])
@pytest.mark.parametrize('origin', ['raw', 'qsiprep'])
@pytest.mark.parametrize('task', LABELLED)
def test_a_label_has_its_writer_and_all_that_it_rests_on(place, origin, t1w, task):
    todo = Todo(preproc=True, references={task: 'reference'})
    workflow = init_run_wf('run_wf', run_of(place, origin, t1w), todo, SURVEY, place)
    names = names_of(workflow)
    assert 'ds_preproc' in names
    assert f'ds_{task}_reference' in names
    reads = registry.task(task).label.reads
    assert ('fibres' in names) == ('fibres' in reads)
    assert ('segment' in names) == (t1w and bool(reads))
    assert ('motion' in names) == (origin == 'raw')


@pytest.mark.parametrize('task', TASKS)
def test_a_prediction_needs_the_input_the_model_and_its_writer_only(place, model, task):
    run = run_of(place)
    for path in prepared_files(registry.files('dwi').prepared, run.case.entities).values():
        empty(place.out_root / path)
    todo = Todo(predictions={task: model})
    workflow = init_run_wf('run_wf', run, todo, SURVEY, place)
    assert set(names_of(workflow)) == {
        'preprocessed', 'network_input', 'model_abababab', f'ds_{task}_prediction',
    }  # fmt: skip


def test_tasks_of_one_model_share_its_pass_and_other_models_have_their_own(place, model, tmp_path):
    (tmp_path / 'other').mkdir()
    other = Model(tmp_path / 'other', 'cd' * 32, seen_by_label=True)
    todo = Todo(preproc=True, predictions={'tissue': model, 'restore': model, 'crossings': other})
    workflow = init_run_wf('run_wf', run_of(place), todo, SURVEY, place)
    assert workflow.get_node('model_abababab').interface.inputs.tasks == ['tissue', 'restore']
    assert workflow.get_node('model_cdcdcdcd').interface.inputs.tasks == ['crossings']


def everything(place, model, **more):
    todo = Todo(True, dict.fromkeys(LABELLED, 'reference'), dict.fromkeys(TASKS, model))
    return init_run_wf('run_wf', run_of(place, **more), todo, SURVEY, place)


def test_every_step_says_how_much_memory_it_needs(place, model):
    """0.2 GB is what Nipype assumes of a step that says nothing."""
    workflow = everything(place, model)
    steps = [workflow.get_node(name) for name in workflow.list_node_names()]
    real = [s for s in steps if type(s.interface).__name__ != 'IdentityInterface']
    assert real
    assert all(step.mem_gb >= 0.3 for step in real)
    largest = max(real, key=lambda step: step.mem_gb)
    assert largest.name == 'motion' or largest.name.startswith('model_')


def test_every_output_of_the_preparation_is_connected(place, model):
    workflow = everything(place, model)
    flat = workflow._create_flat_graph()
    node = next(n for n in flat.nodes() if n.name == 'preprocessed')
    given = {dest for *_, data in flat.in_edges(node, data=True) for _, dest in data['connect']}
    assert given == set(registry.files('dwi').prepared.names)


def test_steps_that_are_told_nothing_that_they_must_know_would_be_seen(place, model):
    """Every mandatory input of every step is set or connected."""
    flat = everything(place, model)._create_flat_graph()
    for node in flat.nodes():
        given = {dest for *_, data in flat.in_edges(node, data=True) for _, dest in data['connect']}
        told = {k for k, v in node.interface.inputs.get().items() if str(v) != '<undefined>'}
        needed = set(node.interface.inputs.traits(mandatory=True))
        assert needed <= given | told, (node.name, needed - given - told)


@pytest.mark.parametrize('origin', ['raw', 'qsiprep'])
def test_every_step_is_one_of_those_whose_versions_are_recorded(place, model, origin):
    """Else a step could give other results, and outputs made by it would be taken for right."""
    preparation = registry.preparation('dwi')
    run = run_of(place, origin)
    workflow = everything(place, model, origin=origin)
    steps = {name: type(workflow.get_node(name).interface) for name in workflow.list_node_names()}
    declared = {
        'dwi_preproc_wf': set(preparation.steps(run)),
        **{
            f'{kind.partition("_")[0]}_wf': set(aid.steps) for kind, aid in preparation.aids.items()
        },
    }
    for name, step in steps.items():
        graph = name.partition('.')[0]
        if graph in declared and issubclass(step, Step):
            assert step in declared[graph], name
    assert type(workflow.get_node('correct_t1w').interface) in declared['tissue_wf']


def test_what_writers_record_is_the_basis_of_their_part(place):
    bases = {'preprocessing': {'steps': {'a': 1}}, 'tissue label': {'steps': {'b': 2}}}
    todo = Todo(preproc=True, references={'tissue': 'reference'}, bases=bases)
    workflow = init_run_wf('run_wf', run_of(place), todo, SURVEY, place)
    assert workflow.get_node('dwi_preproc_wf.ds_preproc').inputs.basis == {'steps': {'a': 1}}
    assert workflow.get_node('ds_tissue_reference').inputs.basis == {'steps': {'b': 2}}


def test_a_step_of_another_version_goes_on_from_nothing(place, model, monkeypatch):
    """Nipype takes what lies in the work folder by a hash of the inputs: the version is in it."""

    def hashed():
        return everything(place, model).get_node('dwi_preproc_wf.denoise').inputs.get_hashval()[1]

    before = hashed()
    assert hashed() == before
    monkeypatch.setattr(Denoise, 'version', 2)
    assert hashed() != before


def test_writers_run_again_whenever_they_are_in_the_graph(place, model):
    workflow = everything(place, model)
    writers = [workflow.get_node(n) for n in workflow.list_node_names() if '.ds_' in f'.{n}']
    assert len(writers) == 1 + len(LABELLED) + len(TASKS)
    assert all(writer.overwrite for writer in writers)


def test_the_t1w_is_corrected_once_for_all_who_read_it(place, model):
    assert names_of(everything(place, model)).count('correct_t1w') == 1
    assert 'correct_t1w' not in names_of(everything(place, model, t1w=False))


def test_a_reversed_pair_is_tried_before_the_t1w(place, model):
    files = {'opposite': empty(place.roots['raw'] / 'sub-01' / 'fmap' / 'sub-01_dir-PA_epi.nii.gz')}
    known = {name: {'PhaseEncodingDirection': d} for name, d in (('run', 'j-'), ('opposite', 'j'))}
    pair = FieldmapSource('pair', files, known, 'linked')
    workflow = everything(place, model, fieldmaps=(pair,))
    ways = workflow.get_node('dwi_preproc_wf.distortion').interface.inputs.candidates
    assert [way['method'] for way in ways] == ['pair', 't1w', 'none']


def test_unringing_only_where_k_space_was_sampled_in_full(place, model):
    assert 'unring' in names_of(everything(place, model))
    partial = run_of(place)
    partial = DwiRun('dwi', partial.case, {**METADATA, 'PartialFourier': 0.75})
    workflow = init_run_wf('run_wf', partial, Todo(preproc=True), SURVEY, place)
    assert 'unring' not in names_of(workflow)


def test_each_participant_works_in_a_folder_of_its_own(place, tmp_path):
    run = run_of(place)
    workflow = init_participant_wf([(run, Todo(preproc=True), SURVEY)], tmp_path / 'work', place)
    assert f'{node_name(run)}.dwi_preproc_wf.motion' in workflow.list_node_names()
    assert run_folder(tmp_path / 'work', run).parts[-3] == 'sub-01'
    assert workflow.largest_need() > 1


def test_sigterm_that_a_graph_swallows_is_looked_for(monkeypatch):
    """As where Nipype takes whatever is raised for a step's failure, or nobody hears of it."""
    monkeypatch.setattr('bidsapp.workflows.execution.end_workers', lambda: None)

    class Graph:
        def run(self, **options):
            with suppress(BaseException):
                os.kill(os.getpid(), signal.SIGTERM)

        def _create_flat_graph(self):
            return nx.DiGraph()

    with pytest.raises(Stopped, match='goes on'):
        run_graph(Graph(), Engine('Linear', {}, Limit(8, 'x')))


def test_every_step_that_computes_on_a_card_says_so(place, model):
    """Nipype lets as many steps onto a card as it has slots, if it knows which they are."""
    for device, expected in (('cuda:0', True), ('cpu', False)):
        workflow = everything(replace(place, device=device), model)
        steps = [workflow.get_node(name) for name in workflow.list_node_names()]
        told = [s for s in steps if getattr(s.interface.inputs, 'device', 'cpu') == 'cuda:0']
        assert bool(told) == expected
        assert [s for s in steps if s.is_gpu_node()] == told
    assert engine(None, 4, Limit(8, 'x')).args['n_gpu_procs'] == 1


def test_steps_of_the_first_run_go_first(place, model):
    """Else all runs are under way together, and lie on the disk together."""
    plugin = WorkersPlugin({}, Limit(8, 'x'))
    named = ['wf.b_wf.one', 'wf.a_wf.one', 'wf.a_wf.two', 'wf.b_wf.two']
    plugin.procs = [SimpleNamespace(fullname=name) for name in named]
    assert plugin._sort_jobs([1, 2, 3]) == [3, 1, 2]


def test_a_run_is_finished_when_all_its_steps_have_succeeded():
    named = ('a.one', 'a.two', 'b.one')
    nodes = [SimpleNamespace(fullname=f'wf.{name}', interface=None) for name in named]
    graph = SimpleNamespace(_create_flat_graph=lambda: SimpleNamespace(nodes=lambda: nodes))
    found = []
    watch = Watch(graph, found.append)
    with heard():
        for node, status in zip(nodes, ('end', 'end', 'exception'), strict=True):
            watch(node, 'start')
            watch(node, status)
    assert found == ['a']


@pytest.mark.parametrize('inside', [True, False])
def test_a_full_disk_that_only_nipype_met_is_said_so(inside):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    class Graph:
        base_dir = '/scratch/work'

        def run(self, **options):
            if inside:
                raise RuntimeError('4 raised') from full
            raise full

        def _create_flat_graph(self):
            return nx.DiGraph()

    problem = run_graph(Graph(), Engine('Linear', {}, Limit(8, 'x')))
    assert problem.exit_code == 74
    assert '/scratch/work' in str(problem)
    assert 'Make room' in str(problem)
