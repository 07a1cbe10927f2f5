"""Heads with a susceptibility, in the scanner: multi-echo gradient echoes with their truth."""

from __future__ import annotations

from bidsapp.modalities.gre.simulate.dataset import DATASET
from bidsapp.modalities.gre.simulate.pretraining import material
from bidsapp.simulate.material import Pretraining

pretraining = Pretraining(material=material, dataset=DATASET)
