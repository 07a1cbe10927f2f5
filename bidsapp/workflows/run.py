"""Everything for one run: only what is not there yet becomes part of the graph."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nipype import Node, Workflow
from nipype.interfaces.utility import IdentityInterface

from bidsapp import registry
from bidsapp.bids.derivatives import raw_uri
from bidsapp.bids.identity import scans_of_person
from bidsapp.bids.prepared import prepared_files
from bidsapp.interfaces.anat import CorrectT1w
from bidsapp.interfaces.labels import ApplyModel, NetworkInput, WritePrediction, WriteReference
from bidsapp.networks.registry import architecture
from bidsapp.workflows.basis import (
    PREPROCESSING,
    aids_for,
    given_files,
    label_of,
    prediction_of,
    uris,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bidsapp.bids.runs import Run, Survey
    from bidsapp.workflows.plan import Todo
    from bidsapp.workflows.preparation import Place, Preparation


@dataclass(frozen=True, slots=True)
class Parts:
    """What the steps of one run are connected to."""

    workflow: Workflow
    run: Run
    survey: Survey[Any]
    place: Place
    preprocessed: Node  #: an output for each kind of the prepared files
    kinds: tuple[str, ...]
    correct_t1w: Node | None
    bases: Mapping[str, Mapping[str, Any]]  #: what writers record, by part
    aids: dict[str, Workflow] = field(default_factory=dict)  #: those made so far

    def prepared(self) -> list[tuple[str, str]]:
        """Connections of all prepared files to a step that takes them by their own names."""
        return [(kind, kind) for kind in self.kinds]


def init_run_wf(name: str, run: Run, todo: Todo, survey: Survey[Any], place: Place) -> Workflow:
    """Prepare, derive reference labels, apply models.

    Writers (``ds_``) run whenever they are in the graph, for then what they write is not there;
    other steps take what an earlier call has left in the work folder.

    Parameters
    ----------
    run : its files, a T1w image among them where there is one
    todo : what is missing
    survey : what is known of the run without reading a voxel
    """
    workflow = Workflow(name=name)
    case = run.case
    prepared = registry.files(run.modality).prepared
    kinds = tuple(prepared.names)
    preprocessed = Node(IdentityInterface(fields=list(kinds)), name='preprocessed')
    correct_t1w = None
    if 't1w' in case.files and (todo.preproc or todo.references):
        t1w = str(case.files['t1w'])
        correct_t1w = Node(CorrectT1w(t1w=t1w), name='correct_t1w', mem_gb=1.5)
    parts = Parts(workflow, run, survey, place, preprocessed, kinds, correct_t1w, todo.bases)
    if todo.preproc:
        preparation: Preparation = registry.preparation(run.modality)
        graph = preparation.graph(run, survey, place)
        record(graph, todo.bases.get(PREPROCESSING, {}))
        workflow.connect([(graph, preprocessed, [(f'outputnode.{kind}', kind) for kind in kinds])])
        if correct_t1w is not None and 't1w' in fields_of(graph, 'inputnode'):
            give_t1w(workflow, correct_t1w, graph)
    else:
        for kind, path in prepared_files(prepared, case.entities).items():
            setattr(preprocessed.inputs, kind, str(place.out_root / path))
    for task, source in todo.references.items():
        add_reference(parts, task, source)
    if todo.predictions:
        add_predictions(parts, todo)
    return workflow


def record(graph: Workflow, basis: Mapping[str, Any]) -> None:
    """Tell each writer of ``graph`` what its outputs are made from."""
    for name in graph.list_node_names():
        inputs = graph.get_node(name).inputs
        if 'basis' in inputs.copyable_trait_names():
            inputs.basis = dict(basis)


def fields_of(graph: Workflow, name: str) -> list[str]:
    """Fields of a workflow's input or output node; none if it has no such node."""
    node = graph.get_node(name)
    return [] if node is None else list(node.inputs.get())


def give_t1w(workflow: Workflow, correct_t1w: Node | None, graph: Workflow) -> None:
    """To ``graph`` the corrected T1w image and, where it takes that, why it cannot be used."""
    taken = fields_of(graph, 'inputnode')
    given = [('t1w', 't1w'), ('quality', 't1w_quality')]
    wanted = [(name, f'inputnode.{field}') for name, field in given if field in taken]
    workflow.connect([(correct_t1w, graph, wanted)])


def aid_of(parts: Parts, kind: str) -> Workflow:
    """The workflow that makes a file which labels rest on, made once and connected.

    After those that it rests on, as `basis.aids_for` lists them.
    """
    if kind in parts.aids:
        return parts.aids[kind]
    preparation: Preparation = registry.preparation(parts.run.modality)
    own = preparation.aids[kind]
    aid = own.graph(parts.run, parts.survey.size, parts.place)
    taken = fields_of(aid, 'inputnode')
    prepared = [k for k in taken if k in parts.kinds]
    parts.workflow.connect([(parts.preprocessed, aid, [(k, f'inputnode.{k}') for k in prepared])])
    if own.needs_t1w:
        give_t1w(parts.workflow, parts.correct_t1w, aid)
    for other in own.reads:
        if (read := parts.aids.get(other)) is not None:
            given = fields_of(read, 'outputnode')
            passed = [k for k in (other, 'quality') if k in given and k in taken]
            connections = [(f'outputnode.{k}', f'inputnode.{k}') for k in passed]
            parts.workflow.connect([(read, aid, connections)])
    parts.aids[kind] = aid
    return aid


def add_reference(parts: Parts, task: str, source: str) -> None:
    """The writer of a task's reference label, and before it the steps that the label rests on."""
    label = registry.task(task).label
    assert label is not None
    run, place = parts.run, parts.place
    aids = {kind: aid_of(parts, kind) for kind in aids_for(run, label.reads)}
    write = WriteReference(
        parts.kinds,
        label.reads,
        modality=run.modality,
        task=task,
        source=source,
        out_root=str(place.out_root),
        entities=dict(run.case.entities),
        part=dict(run.case.part),
        n_threads=place.omp_nthreads,
        basis=parts.bases.get(label_of(task), {}),
    )
    node = Node(
        write, name=f'ds_{task}_reference', mem_gb=4 * parts.survey.size.run_gb + 0.8,
        overwrite=True,
    )  # fmt: skip
    parts.workflow.connect([(parts.preprocessed, node, parts.prepared())])
    give_files(parts, node, task)
    if described := [aid for aid in aids.values() if 'quality' in fields_of(aid, 'outputnode')]:
        # The last says what those that it reads have said.
        parts.workflow.connect([(described[-1], node, [('outputnode.quality', 'quality')])])
    for kind, aid in aids.items():
        if kind in label.reads:
            parts.workflow.connect([(aid, node, [(f'outputnode.{kind}', kind)])])
        if registry.preparation(run.modality).aids[kind].needs_t1w:
            node.inputs.more_sources += [raw_uri(run.case.files['t1w'], place.roots['raw'])]


def give_files(parts: Parts, node: Node, task: str) -> None:
    """To a writer what the user gave for its ``task``, and what that is called in sidecars."""
    given = given_files(parts.run, task)
    for kind, path in given.items():
        setattr(node.inputs, kind, str(path))
    node.inputs.more_sources = list(uris(given.values(), parts.place.roots))


def add_predictions(parts: Parts, todo: Todo) -> None:
    """The network's input once, each model once, and one writer a task."""
    run, place, size = parts.run, parts.place, parts.survey.size
    shared: dict[str, Any] = {'modality': run.modality, 'entities': dict(run.case.entities)}
    seen = Node(
        NetworkInput(parts.kinds, **shared), name='network_input', mem_gb=5 * size.run_gb + 1
    )
    parts.workflow.connect([(parts.preprocessed, seen, parts.prepared())])
    scans = scans_of_person(run.path, place.roots[run.taken_from or 'raw'])
    network = architecture(run.modality, registry.input(run.modality).network.name)
    for model in dict.fromkeys(todo.predictions.values()):
        by_label = {None: 'unknown', True: 'yes', False: 'no'}[model.seen_by_label]
        told = {'model': str(model.folder), 'model_sha256': model.sha256}
        names = [task for task, own in todo.predictions.items() if own == model]
        apply_model = Node(
            ApplyModel(
                modality=run.modality,
                tasks=names,
                device=place.device,
                n_threads=place.omp_nthreads,
                seen_by_label=by_label,
                scans=[str(path) for path in scans],
                **told,
            ),
            name=f'model_{model.sha256[:8]}',
            mem_gb=size.gb(network.bytes_per_voxel) + 0.5,
            n_procs=place.omp_nthreads,
        )
        parts.workflow.connect([(seen, apply_model, [('network_input', 'network_input')])])
        for task in names:
            write = WritePrediction(
                parts.kinds,
                list(given_files(run, task)),
                part=dict(run.case.part),
                task=task,
                out_root=str(place.out_root),
                basis=parts.bases.get(prediction_of(task), {}),
                **shared,
                **told,
            )
            node = Node(
                write, name=f'ds_{task}_prediction', mem_gb=5 * size.run_gb + 1.5, overwrite=True
            )
            give_files(parts, node, task)
            parts.workflow.connect([
                (parts.preprocessed, node, parts.prepared()),
                (seen, node, [('network_input', 'network_input')]),
                (apply_model, node, [
                    (name, name) for name in ('applied', 'applied_on', 'seen_in_training')
                ]),
            ])  # fmt: skip
