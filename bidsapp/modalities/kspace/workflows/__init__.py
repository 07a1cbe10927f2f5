"""Nipype graphs of raw k-space."""

from __future__ import annotations

from bidsapp.modalities.kspace.workflows.preparation import (
    RECONSTRUCTIONS,
    init_preparation_wf,
    steps,
)
from bidsapp.workflows.preparation import Preparation

preparation = Preparation(
    graph=init_preparation_wf, steps=steps, aids={'reconstructions': RECONSTRUCTIONS}
)
