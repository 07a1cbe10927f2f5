"""Preprocessing of one dMRI run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nipype import Node, Workflow
from nipype.interfaces.utility import IdentityInterface

from bidsapp.bids.derivatives import linked_uri
from bidsapp.bids.masks import MASKS
from bidsapp.interfaces.anat import CorrectT1w
from bidsapp.modalities.dwi.bids.fieldmaps import choose_distortion
from bidsapp.modalities.dwi.interfaces.corrections import (
    CorrectBias,
    Denoise,
    ExamineScan,
    TensorMaps,
    Unring,
)
from bidsapp.modalities.dwi.interfaces.distortion import EstimateDistortion
from bidsapp.modalities.dwi.interfaces.masks import BrainMask, GivenMask
from bidsapp.modalities.dwi.interfaces.motion import ApplyCorrections, EstimateMotion
from bidsapp.modalities.dwi.interfaces.noise import CarryNoise
from bidsapp.modalities.dwi.interfaces.outputs import NONE, WritePreprocessed
from bidsapp.modalities.dwi.workflows.ingest import INGESTED, OUTPUTS, init_dwi_ingest_wf
from bidsapp.physics.ringing import interpolated, may_unring, slice_axes
from bidsapp.workflows.basis import uris

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bidsapp.bids.runs import Survey
    from bidsapp.modalities.dwi.bids.fieldmaps import Candidate
    from bidsapp.modalities.dwi.bids.runs import DwiRun
    from bidsapp.modalities.dwi.physics.acquisition import Acquisition
    from bidsapp.workflows.preparation import Place, Steps

#: Steps of a raw run.
RAW = (
    ExamineScan, Denoise, Unring, BrainMask, GivenMask, EstimateMotion, EstimateDistortion,
    ApplyCorrections, CorrectBias, CarryNoise, TensorMaps, WritePreprocessed, CorrectT1w,
)  # fmt: skip


def init_dwi_preproc_wf(
    metadata: Mapping[str, Any],
    candidates: Sequence[Mapping[str, Any]],
    reasons: Sequence[str],
    written: Mapping[str, Any],
    size_gb: float,
    seed: int,
    device: str,
    omp_nthreads: int,
    mask: Path | None = None,
    name: str = 'dwi_preproc_wf',
) -> Workflow:
    """Examine → denoise → unring → mask → motion, eddy, distortion at once → bias → write.

    Motion and eddy currents are estimated first, then the distortion from their mean b=0 image;
    the volumes are interpolated once, through both.

    Parameters
    ----------
    metadata : of the run
    candidates : ways to know the susceptibility distortion, the best first
    reasons : why better ones are not among them
    written : constant inputs of the writer (roots, entities, metadata, notes)
    size_gb : memory of the run's voxels as float32
    mask : the brain on the raw run, where the user has drawn it

    Inputs
    ------
    dwi, bval, bvec : the raw run
    t1w, t1w_quality : the bias-corrected T1w image, if one may have to guide the correction, or
        why it cannot be used

    Outputs
    -------
    dwi, bval, bvec, mask : the written derivatives
    """
    workflow = Workflow(name=name)
    many = {'device': device, 'n_threads': omp_nthreads}
    fields = ['dwi', 'bval', 'bvec', 't1w', 't1w_quality']
    inputnode = Node(IdentityInterface(fields=fields), name='inputnode')
    outputnode = Node(IdentityInterface(fields=list(OUTPUTS)), name='outputnode')
    examine = Node(ExamineScan(), name='examine', mem_gb=4 * size_gb + 0.3)
    denoise = Node(Denoise(**many), name='denoise', mem_gb=4 * size_gb + 0.6, n_procs=omp_nthreads)
    if (finer := interpolated(metadata)) is not None:
        denoise.inputs.interpolated = finer
    brain_mask, final_mask = _masks(mask, size_gb)
    motion = Node(
        EstimateMotion(slice_axis=_slice_axis(metadata), **many),
        name='motion', mem_gb=6 * size_gb + 0.6, n_procs=omp_nthreads,
    )  # fmt: skip
    axis = metadata.get('PhaseEncodingDirection') or metadata.get('PhaseEncodingAxis')
    if axis is not None:
        motion.inputs.phase_encoding = axis
    distortion = Node(
        EstimateDistortion(
            candidates=[dict(c) for c in candidates], reasons=list(reasons), seed=seed, **many
        ),
        name='distortion', mem_gb=1.5, n_procs=omp_nthreads,
    )  # fmt: skip
    correct = Node(
        ApplyCorrections(n_threads=omp_nthreads),
        name='correct', mem_gb=4 * size_gb + 0.6, n_procs=omp_nthreads,
    )  # fmt: skip
    bias = Node(CorrectBias(), name='bias', mem_gb=3 * size_gb + 0.5)
    noise = Node(CarryNoise(), name='noise', mem_gb=0.5)
    maps = Node(TensorMaps(), name='maps', mem_gb=3 * size_gb + 0.8)
    ds_preproc = Node(
        WritePreprocessed(**written), name='ds_preproc', mem_gb=2 * size_gb + 0.3, overwrite=True
    )
    clean = _add_unringing(workflow, denoise, ds_preproc, metadata, size_gb, many)
    workflow.connect([
        (inputnode, examine, [('dwi', 'dwi'), ('bval', 'bval'), ('bvec', 'bvec')]),
        (examine, denoise, [('dwi', 'dwi')]),
        (clean, motion, [('dwi', 'dwi')]),
        (examine, motion, [(k, k) for k in ('bval', 'bvec', 'kept', 'left_out')]),
        (brain_mask, motion, [('mask', 'mask')]),
        (motion, distortion, [('b0', 'b0')]),
        (brain_mask, distortion, [('mask', 'mask')]),
        (motion, correct, [('dwi', 'dwi'), ('motion', 'motion')]),
        (distortion, correct, [('displacement', 'displacement'), ('axis', 'axis')]),
        (correct, bias, [('dwi', 'dwi')]),
        (motion, bias, [('bval', 'bval')]),
        (final_mask, bias, [('mask', 'mask')]),
        (bias, maps, [('dwi', 'dwi')]),
        (motion, maps, [('bval', 'bval'), ('bvec', 'bvec')]),
        (final_mask, maps, [('mask', 'mask')]),
        (inputnode, ds_preproc, [('dwi', 'like')]),
        (examine, ds_preproc, [('warnings', 'scan_warnings'),
                               ('gradient_check', 'gradient_check')]),
        (denoise, ds_preproc, [('quality', 'denoising')]),
        (final_mask, ds_preproc, [('mask', 'mask'), ('warnings', 'mask_warnings')]),
        (motion, ds_preproc, [('bval', 'bval'), ('bvec', 'bvec'), ('quality', 'motion'),
                              ('confounds', 'confounds'), ('left_out', 'left_out'),
                              ('warnings', 'motion_warnings')]),
        (distortion, ds_preproc, [('quality', 'distortion')]),
        (bias, ds_preproc, [('dwi', 'dwi'), ('quality', 'bias')]),
        (denoise, noise, [('noise', 'noise')]),
        (distortion, noise, [('displacement', 'displacement'), ('axis', 'axis')]),
        (bias, noise, [('field', 'field')]),
        (noise, ds_preproc, [('noise', 'noise')]),
        (maps, ds_preproc, [('fa', 'fa'), ('md', 'md'), ('warnings', 'map_warnings')]),
        (ds_preproc, outputnode, [(k, k) for k in OUTPUTS]),
    ])  # fmt: skip
    if mask is None:
        workflow.connect([
            (examine, brain_mask, [('bval', 'bval'), ('bvec', 'bvec')]),
            (clean, brain_mask, [('dwi', 'dwi')]),
            (correct, final_mask, [('dwi', 'dwi')]),
            (motion, final_mask, [('bval', 'bval'), ('bvec', 'bvec')]),
        ])  # fmt: skip
    else:
        moved = [('displacement', 'displacement'), ('axis', 'axis')]
        workflow.connect([(distortion, final_mask, moved)])
    if any(c['method'] == 't1w' for c in candidates):
        workflow.connect([(inputnode, distortion, [(k, k) for k in ('t1w', 't1w_quality')])])
    return workflow


def _masks(given: Path | None, size_gb: float) -> tuple[Node, Node]:
    """The nodes of the brain before and after the correction."""
    steps = [BrainMask() if given is None else GivenMask(mask=str(given)) for _ in range(2)]
    first, last = (
        Node(step, name=name, mem_gb=3 * size_gb + 0.5)
        for step, name in zip(steps, ('brain_mask', 'final_mask'), strict=True)
    )
    return first, last


def _slice_axis(metadata: Mapping[str, Any]) -> int:
    first, second = slice_axes(metadata)
    return 3 - first - second


def _add_unringing(
    workflow: Workflow,
    denoise: Node,
    ds_preproc: Node,
    metadata: Mapping[str, Any],
    size_gb: float,
    many: Mapping[str, Any],
) -> Node:
    """The node that the cleaned run comes from: unringing where it is allowed, else denoising."""
    reason = may_unring(metadata)
    if reason is not None:
        ds_preproc.inputs.unringing = {'Method': NONE, 'Reason': reason}
        return denoise
    unring = Node(
        Unring(axes=slice_axes(metadata), **many),
        name='unring', mem_gb=3 * size_gb + 0.6, n_procs=many['n_threads'],
    )  # fmt: skip
    workflow.connect([
        (denoise, unring, [('dwi', 'dwi')]),
        (unring, ds_preproc, [('quality', 'unringing')]),
    ])  # fmt: skip
    return unring


def steps_of(run: DwiRun) -> Steps:
    """Every step that the graph of ``run`` may hold."""
    return RAW if run.taken_from is None else INGESTED


def init_preparation_wf(
    run: DwiRun, survey: Survey[Acquisition], place: Place, name: str = 'dwi_preproc_wf'
) -> Workflow:
    """All corrections of ``run``, or none where another pipeline has corrected it.

    Where ``place.out_root`` is Path(), the writer writes into its own folder.
    """
    files, size_gb = run.case.files, survey.size.run_gb
    origin = run.taken_from or 'raw'
    sources = [linked_uri(files['dwi'], origin, place.roots[origin])]
    if MASKS in place.roots and 'mask' in files:
        sources += [u for u in uris([files['mask']], place.roots) if u.startswith(f'bids:{MASKS}:')]
    written = {
        'out_root': '' if place.out_root == Path() else str(place.out_root),
        'entities': dict(run.case.entities),
        'sources': sources,
        'metadata': dict(run.metadata),
        'notes': list(run.notes),
    }
    if run.taken_from is not None:
        return _told(init_dwi_ingest_wf(run.taken_from, files, written, size_gb), run, survey)
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
        files.get('mask'),
        name,
    )
    for kind in ('dwi', 'bval', 'bvec'):
        setattr(workflow.inputs.inputnode, kind, str(files[kind]))
    return _told(workflow, run, survey)


def _told(workflow: Workflow, run: DwiRun, survey: Survey[Acquisition]) -> Workflow:
    """``workflow``, each of whose steps knows which volumes of ``run`` count as b = 0."""
    for name in workflow.list_node_names():
        inputs = workflow.get_node(name).inputs
        if 'b0_threshold' in inputs.copyable_trait_names():
            inputs.b0_threshold = survey.acquisition.b0_threshold
    examine = workflow.get_node('examine').inputs
    examine.b0_threshold, examine.doubts = run.b0_threshold, list(run.doubts)
    examine.excluded = list(run.excluded)
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
