"""Preparation of one raw scan, and its classical reconstructions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nipype import Node, Workflow
from nipype.interfaces.utility import IdentityInterface

from bidsapp.modalities.kspace.bids.prepared import PREPARED
from bidsapp.modalities.kspace.interfaces.reconstruction import Reconstruct
from bidsapp.modalities.kspace.interfaces.scan import ReadScan, WriteScan
from bidsapp.workflows.basis import uris
from bidsapp.workflows.preparation import Aid

if TYPE_CHECKING:
    from bidsapp.bids.runs import Size, Survey
    from bidsapp.modalities.kspace.bids.runs import KspaceRun
    from bidsapp.modalities.kspace.physics.acquisition import Acquisition
    from bidsapp.workflows.preparation import Place, Steps

#: What a slice, or the slab, takes at the most, in copies of its samples as float32: sums, their
#: counts, and transforms of complex numbers; and iterations on them.
READ, SOLVE = 8, 24
#: Of a scan's own JSON, what belongs to its images too.
SAID = (
    'AnatomicalPart', 'BodyPart', 'CoilCombined', 'MagneticFieldStrength', 'Manufacturer',
    'ManufacturersModelName', 'EchoTime', 'RepetitionTime', 'InversionTime', 'FlipAngle',
)  # fmt: skip


def steps(run: KspaceRun) -> Steps:
    """Every step that the graph of ``run`` may hold."""
    return (ReadScan, WriteScan)


def init_preparation_wf(
    run: KspaceRun, survey: Survey[Acquisition], place: Place, name: str = 'kspace_wf'
) -> Workflow:
    """Read slice by slice → combine coils → write.

    Outputs
    -------
    image : the zero-filled image; of a full scan that of all lines
    """
    workflow = Workflow(name=name)
    outputnode = Node(IdentityInterface(fields=list(PREPARED.names)), name='outputnode')
    threads = place.omp_nthreads
    left = {'undersample': run.undersample, 'seed': place.seed}
    read = ReadScan(
        raw=str(run.path), number=run.number, full='desc' in run.case.entities,
        n_threads=threads, **left,
    )  # fmt: skip
    scan = Node(read, name='scan', mem_gb=READ * survey.size.run_gb + 0.5, n_procs=threads)
    write = WriteScan(
        out_root=str(place.out_root), entities=dict(run.case.entities), notes=list(run.notes),
        sources=list(uris(run.sources(), place.roots)),
        scan={key: run.metadata[key] for key in SAID if key in run.metadata}, **left,
    )  # fmt: skip
    ds_scan = Node(write, name='ds_scan', mem_gb=0.5, overwrite=True)
    workflow.connect([
        (scan, ds_scan, [(k, k) for k in ('full', 'zerofilled', 'quality', 'warnings')]),
        (ds_scan, outputnode, [('image', 'image')]),
    ])  # fmt: skip
    return workflow


def init_reconstructions_wf(run: KspaceRun, size: Size, place: Place) -> Workflow:
    """The classical reconstructions, judged by the scan's own lines.

    Inputs
    ------
    image : the prepared run

    Outputs
    -------
    reconstructions : (X, Y, Z, 2) in the order of `interfaces.reconstruction.METHODS`
    quality : what to say of them
    """
    workflow = Workflow(name='reconstructions_wf')
    kinds = list(PREPARED.names)
    inputnode = Node(IdentityInterface(fields=kinds), name='inputnode')
    outputnode = Node(IdentityInterface(fields=['reconstructions', 'quality']), name='outputnode')
    threads = place.omp_nthreads
    step = Reconstruct(
        kinds, modality='kspace', entities=dict(run.case.entities), n_threads=threads,
        out_root=str(place.out_root), seed=place.seed,
    )  # fmt: skip
    reconstruct = Node(step, name='reconstruct', mem_gb=SOLVE * size.run_gb + 0.5, n_procs=threads)
    workflow.connect([
        (inputnode, reconstruct, [(kind, kind) for kind in kinds]),
        (reconstruct, outputnode, [(k, k) for k in ('reconstructions', 'quality')]),
    ])  # fmt: skip
    return workflow


RECONSTRUCTIONS = Aid(init_reconstructions_wf, (Reconstruct,))
