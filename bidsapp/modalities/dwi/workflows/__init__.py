"""Nipype graphs of diffusion MRI."""

from __future__ import annotations

from bidsapp.modalities.dwi.workflows.aids import FIBRES, TISSUE
from bidsapp.modalities.dwi.workflows.combined import init_dwi_wf, steps
from bidsapp.modalities.dwi.workflows.like import LIKENESS
from bidsapp.workflows.preparation import Preparation

preparation = Preparation(
    graph=init_dwi_wf,
    steps=steps,
    aids={'tissue_posteriors': TISSUE, 'fibres': FIBRES},
    likeness=LIKENESS,
)
