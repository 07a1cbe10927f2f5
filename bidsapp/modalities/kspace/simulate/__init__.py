"""Objects in several coils, and files of raw k-space as a scanner writes them."""

from __future__ import annotations

from bidsapp.modalities.kspace.simulate.pretraining import material
from bidsapp.simulate.material import Pretraining

pretraining = Pretraining(material)
