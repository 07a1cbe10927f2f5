"""Everything for one dMRI run: only what is not there yet becomes part of the graph."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nipype import Node, Workflow
from nipype.interfaces.utility import IdentityInterface

from bidsapp import tasks
from bidsapp.bids.fieldmaps import choose_distortion
from bidsapp.bids.write import linked_uri, raw_uri
from bidsapp.interfaces.anat import CorrectT1w
from bidsapp.interfaces.labels import (
    ApplyModel,
    CanonicalInput,
    FindFibres,
    WritePrediction,
    WriteReference,
)
from bidsapp.interfaces.outputs import preprocessed_files
from bidsapp.resources import NETWORK_BYTES
from bidsapp.workflows.anat import init_anat_wf
from bidsapp.workflows.dwi import init_dwi_ingest_wf, init_dwi_preproc_wf

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from bidsapp.bids.fieldmaps import Candidate
    from bidsapp.bids.query import Run
    from bidsapp.core import Case

DERIVATIVES = ['dwi', 'bval', 'bvec', 'mask']


@dataclass(frozen=True, slots=True)
class Todo:
    """What is missing for one run."""

    preproc: bool = False
    references: Mapping[str, str] = field(default_factory=dict)  #: task → source of its label
    predictions: Mapping[str, Model] = field(default_factory=dict)  #: task → model to apply

    def __bool__(self) -> bool:
        return bool(self.preproc or self.references or self.predictions)


@dataclass(frozen=True, slots=True)
class Model:
    """A model on disk, and whether this participant was among those it learnt from."""

    folder: Path
    sha256: str
    seen_in_training: bool


@dataclass(frozen=True, slots=True)
class Place:
    """Where a call reads and writes, and what it may use."""

    roots: Mapping[str, Path]  #: name in BIDS URIs → dataset: 'raw', 'qsiprep'
    out_root: Path
    seed: int
    device: str
    omp_nthreads: int


@dataclass(frozen=True, slots=True)
class Size:
    """What the memory that steps need is estimated from."""

    voxels: int  #: of one volume
    volumes: int

    @property
    def run_gb(self) -> float:
        """GiB of all volumes as float32."""
        return 4 * self.voxels * self.volumes / 2**30

    @property
    def network_gb(self) -> float:
        """GiB that applying the bundled network takes beside the program itself."""
        return NETWORK_BYTES * self.voxels / 2**30


#: Of a run whose header could not be read.
EMPTY = Size(0, 0)


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
        dwi_preproc_wf = _preprocessing(run, size_gb, place)
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


def _preprocessing(run: Run, size_gb: float, place: Place) -> Workflow:
    """All corrections, or none for a run that another pipeline has corrected."""
    files = run.case.files
    origin = run.preprocessed or 'raw'
    written = {
        'out_root': str(place.out_root),
        'entities': dict(run.case.entities),
        'sources': [linked_uri(files['dwi'], origin, place.roots[origin])],
        'metadata': dict(run.metadata),
        'notes': list(run.notes),
    }
    if run.preprocessed is not None:
        return init_dwi_ingest_wf(run.preprocessed, files, written, size_gb)
    choice = choose_distortion(run)
    workflow = init_dwi_preproc_wf(
        run.metadata,
        [described(candidate) for candidate in choice.candidates],
        choice.reasons,
        written,
        size_gb,
        place.seed,
        place.device,
        place.omp_nthreads,
    )
    for kind in ('dwi', 'bval', 'bvec'):
        setattr(workflow.inputs.inputnode, kind, str(files[kind]))
    return workflow


def described(candidate: Candidate) -> dict[str, Any]:
    """A way to correct distortion as plain values, which a step can be told."""
    plain: dict[str, Any] = {'method': candidate.method, 'words': candidate.words}
    if candidate.axis is not None:
        plain['axis'] = candidate.axis
    if candidate.source is not None:
        plain |= {
            'files': {kind: str(path) for kind, path in candidate.source.files.items()},
            'metadata': json.loads(json.dumps(candidate.source.metadata)),
        }
    if candidate.source is not None and candidate.method == 'pair':
        plain['readout_ratio'] = candidate.source.readout_ratio
    return plain


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
    reads = {task: tasks.get(task).reads for task in todo.references}
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
