"""The input and the losses of diffusion networks."""

from __future__ import annotations

from bidsapp.learn.inputs import Input, Shape
from bidsapp.modalities.dwi.learn.input import about, parts, sample_of, turned
from bidsapp.modalities.dwi.physics.qspace import LAYOUT

input = Input(
    modality='dwi',
    parts=parts,
    sample=sample_of,
    turned=turned,
    network=Shape('unet3d', options={**LAYOUT, 'by_deviation': ('restore',)}),
    about=about,
)
