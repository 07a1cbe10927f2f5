"""Preprocessing of one dMRI run."""

from __future__ import annotations

from typing import Any

from nipype import Node, Workflow
from nipype.interfaces.utility import IdentityInterface

from bidsapp.interfaces.dwi import (
    BrainMask,
    CorrectBias,
    CorrectMotion,
    ExamineScan,
    TensorMaps,
    WritePreprocessed,
)


def init_dwi_preproc_wf(
    phase_encoding: str | None,
    written: dict[str, Any],
    size_gb: float,
    name: str = 'dwi_preproc_wf',
) -> Workflow:
    """Examine → brain mask → motion and eddy currents → bias field → write.

    Parameters
    ----------
    phase_encoding : 'i', 'j-', … or None where the metadata do not say
    written : constant inputs of the writer (roots, entities, metadata, notes)
    size_gb : memory of the run's voxels as float32

    Inputs
    ------
    dwi, bval, bvec : the raw run

    Outputs
    -------
    dwi, bval, bvec, mask : the written derivatives
    """
    workflow = Workflow(name=name)
    inputnode = Node(IdentityInterface(fields=['dwi', 'bval', 'bvec']), name='inputnode')
    outputnode = Node(IdentityInterface(fields=['dwi', 'bval', 'bvec', 'mask']), name='outputnode')
    examine = Node(ExamineScan(), name='examine', mem_gb=3 * size_gb + 0.3)
    brain_mask = Node(BrainMask(), name='brain_mask', mem_gb=3 * size_gb + 0.5)
    motion = Node(CorrectMotion(), name='motion', mem_gb=6 * size_gb + 0.6)
    if phase_encoding is not None:
        motion.inputs.phase_encoding = phase_encoding
    bias = Node(CorrectBias(), name='bias', mem_gb=3 * size_gb + 0.5)
    maps = Node(TensorMaps(), name='maps', mem_gb=5 * size_gb + 0.5)
    ds_preproc = Node(WritePreprocessed(**written), name='ds_preproc', mem_gb=2 * size_gb + 0.3)
    workflow.connect([
        (inputnode, examine, [('dwi', 'dwi'), ('bval', 'bval'), ('bvec', 'bvec')]),
        (inputnode, brain_mask, [('dwi', 'dwi')]),
        (examine, brain_mask, [('bval', 'bval'), ('bvec', 'bvec')]),
        (inputnode, motion, [('dwi', 'dwi')]),
        (examine, motion, [('bval', 'bval'), ('bvec', 'bvec')]),
        (brain_mask, motion, [('mask', 'mask')]),
        (motion, bias, [('dwi', 'dwi'), ('bval', 'bval')]),
        (brain_mask, bias, [('mask', 'mask')]),
        (bias, maps, [('dwi', 'dwi')]),
        (motion, maps, [('bval', 'bval'), ('bvec', 'bvec')]),
        (brain_mask, maps, [('mask', 'mask')]),
        (inputnode, ds_preproc, [('dwi', 'raw')]),
        (examine, ds_preproc, [('warnings', 'scan_warnings')]),
        (brain_mask, ds_preproc, [('mask', 'mask'), ('warnings', 'mask_warnings')]),
        (motion, ds_preproc, [('bval', 'bval'), ('bvec', 'bvec'), ('quality', 'motion')]),
        (bias, ds_preproc, [('dwi', 'dwi'), ('quality', 'bias')]),
        (maps, ds_preproc, [('fa', 'fa'), ('md', 'md')]),
        (ds_preproc, outputnode, [(k, k) for k in ('dwi', 'bval', 'bvec', 'mask')]),
    ])  # fmt: skip
    return workflow
