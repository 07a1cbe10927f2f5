"""Everything for one dMRI run: only what is not there yet becomes part of the graph."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nipype import Node, Workflow
from nipype.interfaces.utility import IdentityInterface

from bidsapp.bids.write import raw_uri
from bidsapp.interfaces.labels import CanonicalInput, WritePrediction, WriteReference
from bidsapp.interfaces.outputs import preprocessed_files
from bidsapp.workflows.anat import init_anat_wf
from bidsapp.workflows.dwi import init_dwi_preproc_wf

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

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


def init_run_wf(
    name: str,
    case: Case,
    metadata: Mapping[str, Any],
    notes: tuple[str, ...],
    todo: Todo,
    raw_root: Path,
    out_root: Path,
    size_gb: float,
    seed: int,
    device: str,
    omp_nthreads: int,
) -> Workflow:
    """Preprocess, derive reference labels, apply models.

    Parameters
    ----------
    case : files of the raw run: dwi, bval, bvec, and t1w where there is one
    todo : what is missing
    size_gb : memory of the run's voxels as float32
    """
    workflow = Workflow(name=name)
    entities = dict(case.entities)
    preprocessed = Node(IdentityInterface(fields=DERIVATIVES), name='preprocessed')
    if todo.preproc:
        written = {
            'raw_root': str(raw_root),
            'out_root': str(out_root),
            'entities': entities,
            'metadata': dict(metadata),
            'notes': list(notes),
        }
        dwi_preproc_wf = init_dwi_preproc_wf(
            metadata.get('PhaseEncodingDirection'), written, size_gb
        )
        for kind in ('dwi', 'bval', 'bvec'):
            setattr(dwi_preproc_wf.inputs.inputnode, kind, str(case.files[kind]))
        connections = [(f'outputnode.{kind}', kind) for kind in DERIVATIVES]
        workflow.connect([(dwi_preproc_wf, preprocessed, connections)])
    else:
        files = preprocessed_files(entities)
        for kind in DERIVATIVES:
            setattr(preprocessed.inputs, kind, str(out_root / files[kind]))
    add_references(workflow, preprocessed, case, todo, raw_root, out_root, size_gb, seed)
    add_predictions(workflow, preprocessed, case, todo, out_root, size_gb, device, omp_nthreads)
    return workflow


def add_references(
    workflow: Workflow,
    preprocessed: Node,
    case: Case,
    todo: Todo,
    raw_root: Path,
    out_root: Path,
    size_gb: float,
    seed: int,
) -> None:
    """One writer a task, and the anatomical steps if there is a T1w to use."""
    if not todo.references:
        return
    anat_wf = None
    if 't1w' in case.files:
        anat_wf = init_anat_wf(seed)
        anat_wf.inputs.inputnode.t1w = str(case.files['t1w'])
        workflow.connect(
            [(preprocessed, anat_wf, [(k, f'inputnode.{k}') for k in ('dwi', 'bval', 'mask')])]
        )
    for task, source in todo.references.items():
        node = Node(
            WriteReference(
                task=task, source=source, out_root=str(out_root), entities=dict(case.entities)
            ),
            name=f'ds_{task}_reference',
            mem_gb=4 * size_gb + 0.8,
        )
        workflow.connect([(preprocessed, node, [(k, k) for k in DERIVATIVES])])
        if anat_wf is not None:
            node.inputs.more_sources = [raw_uri(case.files['t1w'], raw_root)]
            workflow.connect([
                (anat_wf, node, [('outputnode.posteriors', 'tissue_posteriors'),
                                 ('outputnode.quality', 'quality')]),
            ])  # fmt: skip


def add_predictions(
    workflow: Workflow,
    preprocessed: Node,
    case: Case,
    todo: Todo,
    out_root: Path,
    size_gb: float,
    device: str,
    omp_nthreads: int,
) -> None:
    """The canonical input once, and one writer a task."""
    if not todo.predictions:
        return
    entities = dict(case.entities)
    canonical = Node(CanonicalInput(entities=entities), name='canonical', mem_gb=5 * size_gb + 1)
    workflow.connect([(preprocessed, canonical, [(k, k) for k in DERIVATIVES])])
    for task, model in todo.predictions.items():
        node = Node(
            WritePrediction(
                task=task,
                model=str(model.folder),
                model_sha256=model.sha256,
                seen_in_training=model.seen_in_training,
                out_root=str(out_root),
                entities=entities,
                device=device,
                use_gpu=device != 'cpu',
                n_threads=omp_nthreads,
            ),
            name=f'ds_{task}_prediction',
            mem_gb=6 * size_gb + 1.5,
            n_procs=omp_nthreads,
        )
        workflow.connect(
            [
                (preprocessed, node, [(k, k) for k in DERIVATIVES]),
                (canonical, node, [('canonical', 'canonical')]),
            ]
        )
