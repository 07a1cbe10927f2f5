"""Simulated diffusion MRI."""

from __future__ import annotations

from bidsapp.modalities.dwi.simulate.dataset import DATASET
from bidsapp.modalities.dwi.simulate.objectives import material
from bidsapp.simulate.material import Pretraining

pretraining = Pretraining(material=material, dataset=DATASET)
