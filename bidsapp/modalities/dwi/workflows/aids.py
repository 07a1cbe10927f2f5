"""Files that several labels of a dMRI run rest on: tissue probabilities, and fibre directions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nipype import Node, Workflow
from nipype.interfaces.utility import IdentityInterface

from bidsapp.modalities.dwi.bids.prepared import PREPARED
from bidsapp.modalities.dwi.interfaces.fibres import FindFibres
from bidsapp.modalities.dwi.interfaces.files import MeanB0
from bidsapp.workflows.anat import ANATOMY, init_anat_wf
from bidsapp.workflows.preparation import Aid

if TYPE_CHECKING:
    from bidsapp.bids.runs import Run, Size
    from bidsapp.workflows.preparation import Place


def init_tissue_wf(run: Run, size: Size, place: Place) -> Workflow:
    """Tissue probabilities from the T1w image, which finds its place by the mean b=0 image.

    Inputs
    ------
    t1w, t1w_quality : the bias-corrected T1w image, or why it cannot be used
    dwi, bval, mask : the preprocessed run

    Outputs
    -------
    tissue_posteriors : (X, Y, Z, 3) GM, WM, CSF on the run's grid
    quality : what to say of registration and segmentation
    """
    workflow = Workflow(name='tissue_wf')
    fields = ['t1w', 't1w_quality', 'dwi', 'bval', 'mask']
    inputnode = Node(IdentityInterface(fields=fields), name='inputnode')
    outputnode = Node(IdentityInterface(fields=['tissue_posteriors', 'quality']), name='outputnode')
    b0 = Node(MeanB0(), name='b0', mem_gb=0.5)
    anat_wf = init_anat_wf(place.seed)
    workflow.connect([
        (inputnode, b0, [('dwi', 'dwi'), ('bval', 'bval')]),
        (inputnode, anat_wf, [(k, f'inputnode.{k}') for k in ('t1w', 't1w_quality', 'mask')]),
        (b0, anat_wf, [('image', 'inputnode.image')]),
        (anat_wf, outputnode, [(f'outputnode.{k}', k) for k in ('tissue_posteriors', 'quality')]),
    ])  # fmt: skip
    return workflow


def init_fibres_wf(run: Run, size: Size, place: Place) -> Workflow:
    """Fibre directions in white matter.

    Inputs
    ------
    dwi, bval, bvec, mask : the preprocessed run
    tissue_posteriors : where there are any; without them white matter is found by anisotropy
    quality : what to say of them

    Outputs
    -------
    fibres : (X, Y, Z, 3 or 9 + K) unit vectors in world axes; of deconvolution also its density
    quality : what to say of them too
    """
    workflow = Workflow(name='fibres_wf')
    kinds, aids = list(PREPARED.names), ['tissue_posteriors']
    fields = [*kinds, *aids, 'quality']
    inputnode = Node(IdentityInterface(fields=fields), name='inputnode')
    outputnode = Node(IdentityInterface(fields=['fibres', 'quality']), name='outputnode')
    threads = place.omp_nthreads
    find = FindFibres(
        kinds, aids, modality='dwi', entities=dict(run.case.entities), device=place.device,
        n_threads=threads,
    )  # fmt: skip
    fibres = Node(find, name='fibres', mem_gb=4 * size.run_gb + 1, n_procs=threads)
    workflow.connect(
        [
            (inputnode, fibres, [(field, field) for field in fields]),
            (fibres, outputnode, [(k, k) for k in ('fibres', 'quality')]),
        ]
    )
    return workflow


TISSUE = Aid(init_tissue_wf, (MeanB0, *ANATOMY), needs_t1w=True)
FIBRES = Aid(init_fibres_wf, (FindFibres,), reads=('tissue_posteriors',))
