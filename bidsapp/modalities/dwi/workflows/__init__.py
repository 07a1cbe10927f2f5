"""Nipype graphs of diffusion MRI."""

from __future__ import annotations

from bidsapp.modalities.dwi.workflows.aids import init_fibres_wf, init_tissue_wf
from bidsapp.modalities.dwi.workflows.preparation import init_preparation_wf
from bidsapp.workflows.preparation import Preparation

preparation = Preparation(
    graph=init_preparation_wf,
    aids={'tissue_posteriors': init_tissue_wf, 'fibres': init_fibres_wf},
)
