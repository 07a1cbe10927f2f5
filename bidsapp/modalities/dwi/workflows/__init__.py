"""Nipype graphs of diffusion MRI."""

from __future__ import annotations

from bidsapp.modalities.dwi.workflows.aids import FIBRES, TISSUE
from bidsapp.modalities.dwi.workflows.preparation import init_preparation_wf, steps_of
from bidsapp.workflows.preparation import Preparation

preparation = Preparation(
    graph=init_preparation_wf,
    steps=steps_of,
    aids={'tissue_posteriors': TISSUE, 'fibres': FIBRES},
)
