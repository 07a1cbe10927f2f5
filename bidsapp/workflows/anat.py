"""From a T1w image to tissue probabilities on the grid of one dMRI run."""

from __future__ import annotations

from nipype import Node, Workflow
from nipype.interfaces.utility import IdentityInterface

from bidsapp.interfaces.anat import RegisterT1w, SegmentTissue


def init_anat_wf(seed: int, name: str = 'anat_wf') -> Workflow:
    """Rigid registration to the b=0 image → three tissues.

    Inputs
    ------
    t1w : the bias-corrected T1w image
    dwi, bval, mask : the preprocessed run

    Outputs
    -------
    posteriors : (X, Y, Z, 3) GM, WM, CSF on the run's grid
    quality : what to say of registration and segmentation
    """
    workflow = Workflow(name=name)
    inputnode = Node(IdentityInterface(fields=['t1w', 'dwi', 'bval', 'mask']), name='inputnode')
    outputnode = Node(IdentityInterface(fields=['posteriors', 'quality']), name='outputnode')
    register = Node(RegisterT1w(seed=seed), name='register', mem_gb=1.5)
    segment = Node(SegmentTissue(seed=seed), name='segment', mem_gb=2.5)
    workflow.connect([
        (inputnode, register, [('t1w', 't1w')]),
        (inputnode, register, [('dwi', 'dwi'), ('bval', 'bval'), ('mask', 'mask')]),
        (inputnode, segment, [('t1w', 't1w')]),
        (register, segment, [('matrix', 'matrix'), ('quality', 'quality')]),
        (inputnode, segment, [('dwi', 'dwi'), ('mask', 'mask')]),
        (segment, outputnode, [('posteriors', 'posteriors'), ('quality', 'quality')]),
    ])  # fmt: skip
    return workflow
