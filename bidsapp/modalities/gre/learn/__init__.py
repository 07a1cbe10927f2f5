"""The input of susceptibility networks, and what is learnt."""

from __future__ import annotations

from bidsapp.learn.inputs import Input, Shape
from bidsapp.modalities.gre.learn.input import about, sample_of, turned
from bidsapp.modalities.gre.learn.published import PUBLISHED

#: Voxels of a patch: as large as a block of pretraining, for the dipole reaches far.
PATCH = (48, 48, 48)

input = Input(
    modality='gre',
    sample=sample_of,
    turned=turned,
    network=Shape('dipole_unet', 'data-consistent 3D U-Net', {'widths': [16, 32, 64]}, patch=PATCH),
    networks={
        'adaptive_unet': Shape('adaptive_unet', '3D U-Net with adaptive convolution', patch=PATCH),
        'conventional_unet': Shape('adaptive_unet', '3D U-Net', {'adaptive': False}, patch=PATCH),
    },
    about=about,
    published=PUBLISHED,
)
