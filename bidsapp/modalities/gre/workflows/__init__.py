"""Nipype graphs of gradient-echo MRI."""

from __future__ import annotations

from bidsapp.modalities.gre.workflows.preparation import CHIMAPS, init_preparation_wf, steps
from bidsapp.workflows.preparation import Preparation

preparation = Preparation(graph=init_preparation_wf, steps=steps, aids={'chimaps': CHIMAPS})
