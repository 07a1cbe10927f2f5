"""From a T1w image to tissue probabilities on the grid of one run."""

from __future__ import annotations

from nipype import Node, Workflow
from nipype.interfaces.utility import IdentityInterface

from bidsapp.interfaces.anat import CorrectT1w, RegisterT1w, SegmentTissue

#: The steps from a raw T1w image to the tissues, the correction before this graph among them.
ANATOMY = (CorrectT1w, RegisterT1w, SegmentTissue)


def init_anat_wf(seed: int, name: str = 'anat_wf') -> Workflow:
    """Rigid registration to an image of the run → three tissues.

    Inputs
    ------
    t1w, t1w_quality : the bias-corrected T1w image, or why it cannot be used
    image : (X, Y, Z) of the run, by which the T1w finds its place
    mask : the brain on the run's grid

    Outputs
    -------
    tissue_posteriors : (X, Y, Z, 3) GM, WM, CSF on the run's grid
    quality : what to say of registration and segmentation; where the T1w image cannot be used there
        are no posteriors, and it says why
    """
    workflow = Workflow(name=name)
    fields = ['t1w', 't1w_quality', 'image', 'mask']
    inputnode = Node(IdentityInterface(fields=fields), name='inputnode')
    outputnode = Node(IdentityInterface(fields=['tissue_posteriors', 'quality']), name='outputnode')
    register = Node(RegisterT1w(seed=seed), name='register', mem_gb=1.5)
    segment = Node(SegmentTissue(seed=seed), name='segment', mem_gb=2.5)
    workflow.connect([
        (inputnode, register, [('t1w', 't1w'), ('t1w_quality', 'quality')]),
        (inputnode, register, [('image', 'image'), ('mask', 'mask')]),
        (inputnode, segment, [('t1w', 't1w'), ('mask', 'mask')]),
        (register, segment, [('matrix', 'matrix'), ('quality', 'quality')]),
        (segment, outputnode, [('posteriors', 'tissue_posteriors'), ('quality', 'quality')]),
    ])  # fmt: skip
    return workflow
