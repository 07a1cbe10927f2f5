"""Everything for one dMRI run: only what is not there yet becomes part of the graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nipype import Node, Workflow
from nipype.interfaces.utility import IdentityInterface

from bidsapp import registry
from bidsapp.bids.derivatives import raw_uri
from bidsapp.interfaces.anat import CorrectT1w
from bidsapp.interfaces.labels import ApplyModel, CanonicalInput, WritePrediction, WriteReference
from bidsapp.modalities.dwi.bids.prepared import preprocessed_files
from bidsapp.modalities.dwi.interfaces.fibres import FindFibres
from bidsapp.modalities.dwi.workflows.preparation import preprocessing_wf
from bidsapp.workflows.anat import init_anat_wf

if TYPE_CHECKING:
    from bidsapp.bids.runs import Run
    from bidsapp.core import Case
    from bidsapp.workflows.plan import Todo
    from bidsapp.workflows.preparation import Place, Size

DERIVATIVES = ['dwi', 'bval', 'bvec', 'mask']


def init_run_wf(name: str, run: Run, todo: Todo, size: Size, place: Place) -> Workflow:
    """Preprocess, derive reference labels, apply models.

    Writers (``ds_``) run whenever they are in the graph, for then what they write is not there;
    other steps take what an earlier call has left in the work folder.

    Parameters
    ----------
    run : files dwi, bval, bvec, and t1w where there is one; mask of an ingested run
    todo : what is missing
    size : of the run
    """
    workflow = Workflow(name=name)
    size_gb = size.run_gb
    case = run.case
    preprocessed = Node(IdentityInterface(fields=DERIVATIVES), name='preprocessed')
    correct_t1w = None
    if 't1w' in case.files and (todo.preproc or todo.references):
        t1w = str(case.files['t1w'])
        correct_t1w = Node(CorrectT1w(t1w=t1w), name='correct_t1w', mem_gb=1.5)
    if todo.preproc:
        dwi_preproc_wf = preprocessing_wf(run, size_gb, place)
        connections = [(f'outputnode.{kind}', kind) for kind in DERIVATIVES]
        workflow.connect([(dwi_preproc_wf, preprocessed, connections)])
        if correct_t1w is not None and run.preprocessed is None:
            workflow.connect([(correct_t1w, dwi_preproc_wf, [('t1w', 'inputnode.t1w')])])
    else:
        files = preprocessed_files(case.entities)
        for kind in DERIVATIVES:
            setattr(preprocessed.inputs, kind, str(place.out_root / files[kind]))
    if todo.references:
        add_references(workflow, preprocessed, correct_t1w, case, todo, size_gb, place)
    if todo.predictions:
        add_predictions(workflow, preprocessed, case, todo, size, place)
    return workflow


def add_references(
    workflow: Workflow,
    preprocessed: Node,
    correct_t1w: Node | None,
    case: Case,
    todo: Todo,
    size_gb: float,
    place: Place,
) -> None:
    """One writer a task, and before them the steps that several labels rest on."""
    entities = dict(case.entities)
    threads = place.omp_nthreads
    anat_wf = None
    if correct_t1w is not None:
        anat_wf = init_anat_wf(place.seed)
        workflow.connect([
            (correct_t1w, anat_wf, [('t1w', 'inputnode.t1w')]),
            (preprocessed, anat_wf, [(k, f'inputnode.{k}') for k in ('dwi', 'bval', 'mask')]),
        ])  # fmt: skip
    fibres = Node(
        FindFibres(entities=entities, device=place.device, n_threads=threads),
        name='fibres', mem_gb=4 * size_gb + 1, n_procs=threads,
    )  # fmt: skip
    reads = {task: registry.get(task).reads for task in todo.references}
    if any('fibres' in kinds for kinds in reads.values()):
        workflow.connect([(preprocessed, fibres, [(k, k) for k in DERIVATIVES])])
        if anat_wf is not None:
            posteriors = [('outputnode.posteriors', 'tissue_posteriors')]
            workflow.connect([(anat_wf, fibres, posteriors)])
    for task, source in todo.references.items():
        node = Node(
            WriteReference(
                task=task,
                source=source,
                out_root=str(place.out_root),
                entities=entities,
                n_threads=threads,
            ),
            name=f'ds_{task}_reference',
            mem_gb=4 * size_gb + 0.8,
            overwrite=True,
        )
        workflow.connect([(preprocessed, node, [(k, k) for k in DERIVATIVES])])
        if 'fibres' in reads[task]:
            workflow.connect([(fibres, node, [('fibres', 'fibres')])])
        if anat_wf is not None and reads[task]:
            node.inputs.more_sources = [raw_uri(case.files['t1w'], place.roots['raw'])]
            workflow.connect([
                (anat_wf, node, [('outputnode.posteriors', 'tissue_posteriors'),
                                 ('outputnode.quality', 'quality')]),
            ])  # fmt: skip


def add_predictions(
    workflow: Workflow,
    preprocessed: Node,
    case: Case,
    todo: Todo,
    size: Size,
    place: Place,
) -> None:
    """The canonical input once, each model once, and one writer a task."""
    entities = dict(case.entities)
    canonical = Node(
        CanonicalInput(entities=entities), name='canonical', mem_gb=5 * size.run_gb + 1
    )
    workflow.connect([(preprocessed, canonical, [(k, k) for k in DERIVATIVES])])
    for model in dict.fromkeys(todo.predictions.values()):
        told = {'model': str(model.folder), 'model_sha256': model.sha256}
        names = [task for task, own in todo.predictions.items() if own == model]
        apply_model = Node(
            ApplyModel(
                tasks=names,
                device=place.device,
                use_gpu=place.device != 'cpu',
                n_threads=place.omp_nthreads,
                **told,
            ),
            name=f'model_{model.sha256[:8]}',
            mem_gb=size.network_gb + 0.5,
            n_procs=place.omp_nthreads,
        )
        workflow.connect([(canonical, apply_model, [('canonical', 'canonical')])])
        for task in names:
            node = Node(
                WritePrediction(
                    task=task,
                    seen_in_training=model.seen_in_training,
                    out_root=str(place.out_root),
                    entities=entities,
                    **told,
                ),
                name=f'ds_{task}_prediction',
                mem_gb=5 * size.run_gb + 1.5,
                overwrite=True,
            )
            workflow.connect([
                (preprocessed, node, [(k, k) for k in DERIVATIVES]),
                (canonical, node, [('canonical', 'canonical')]),
                (apply_model, node, [('applied', 'applied'), ('applied_on', 'applied_on')]),
            ])  # fmt: skip
