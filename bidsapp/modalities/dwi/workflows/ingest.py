"""A run that another pipeline has preprocessed: looked at, and written as ours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nipype import Node, Workflow
from nipype.interfaces.utility import IdentityInterface

from bidsapp.modalities.dwi.interfaces.corrections import ExamineIngested, TensorMaps
from bidsapp.modalities.dwi.interfaces.masks import BrainMask
from bidsapp.modalities.dwi.interfaces.outputs import WritePreprocessed

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

OUTPUTS = ('dwi', 'bval', 'bvec', 'mask')
#: Its steps.
INGESTED = (ExamineIngested, BrainMask, TensorMaps, WritePreprocessed)


def init_dwi_ingest_wf(
    pipeline: str,
    files: Mapping[str, Path],
    written: Mapping[str, Any],
    size_gb: float,
    name: str = 'dwi_preproc_wf',
) -> Workflow:
    """A run that another pipeline has preprocessed: examine → mask if there is none → write.

    Parameters
    ----------
    files : that pipeline's dwi, bval, bvec, and, where it has them, b and mask
    written : constant inputs of the writer
    size_gb : memory of the run's voxels as float32

    Outputs
    -------
    dwi, bval, bvec, mask : the written derivatives
    """
    workflow = Workflow(name=name)
    known = {k: str(p) for k, p in files.items() if k in ('dwi', 'bval', 'bvec', 'b')}
    dwi = str(files['dwi'])
    outputnode = Node(IdentityInterface(fields=list(OUTPUTS)), name='outputnode')
    examine = Node(ExamineIngested(**known), name='examine', mem_gb=4 * size_gb + 0.3)
    maps = Node(TensorMaps(), name='maps', mem_gb=3 * size_gb + 0.8)
    ds_preproc = Node(
        WritePreprocessed(corrected_by=pipeline, like=dwi, **written),
        name='ds_preproc', mem_gb=2 * size_gb + 0.3, overwrite=True,
    )  # fmt: skip
    workflow.connect([
        (examine, maps, [(k, k) for k in ('dwi', 'bval', 'bvec')]),
        (examine, ds_preproc, [(k, k) for k in ('dwi', 'bval', 'bvec', 'gradient_check')]),
        (examine, ds_preproc, [('warnings', 'scan_warnings'), ('left_out', 'left_out')]),
        (maps, ds_preproc, [('fa', 'fa'), ('md', 'md'), ('warnings', 'map_warnings')]),
        (ds_preproc, outputnode, [(k, k) for k in OUTPUTS]),
    ])  # fmt: skip
    if 'mask' in files:
        maps.inputs.mask = ds_preproc.inputs.mask = str(files['mask'])
        return workflow
    brain_mask = Node(BrainMask(), name='brain_mask', mem_gb=3 * size_gb + 0.5)
    workflow.connect([
        (examine, brain_mask, [(k, k) for k in ('dwi', 'bval', 'bvec')]),
        (brain_mask, maps, [('mask', 'mask')]),
        (brain_mask, ds_preproc, [('mask', 'mask'), ('warnings', 'mask_warnings')]),
    ])  # fmt: skip
    return workflow
