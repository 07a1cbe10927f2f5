"""The input of networks that reconstruct, and what is learnt."""

from __future__ import annotations

from bidsapp.learn.inputs import Input, Shape
from bidsapp.modalities.kspace.learn.input import about, parts, sample_of, turned

#: Whole planes: what is told of them cannot be cut.
PATCH = (None, None, 1)

input = Input(
    modality='kspace',
    parts=parts,
    sample=sample_of,
    turned=turned,
    network=Shape('cascades', 'cascades of 2D U-Nets and data consistency', patch=PATCH, batch=1),
    networks={
        'plain_unet2d': Shape('plain_unet2d', '2D U-Net without the data', patch=PATCH, batch=1)
    },
    about=about,
)
