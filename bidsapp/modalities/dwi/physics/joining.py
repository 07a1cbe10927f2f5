"""One run laid onto another of the same head: where the head was, and how bright."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bidsapp.physics import brain
from bidsapp.physics.alignment import similarity_of

if TYPE_CHECKING:
    from bidsapp.core import BoolArray, FloatArray

#: mm around the brain that help, scales and points of the search.
_AROUND, _COARSE, _FINE, _POINTS = 10.0, 4.0, 2.0, 30_000


def between(
    first: FloatArray, other: FloatArray, affine: FloatArray, mask: BoolArray, seed: int
) -> np.ndarray:
    """(4, 4) from a point of the first head to the same point of the other, world (RAS+) mm.

    Both are mean b=0 images (X, Y, Z) on the grid ``affine``; ``mask`` is the brain of the first.
    Normalised mutual information, from where the scanner says that both are.
    """
    from bidsapp.physics.alignment import motion_matrix

    rng = np.random.default_rng(seed)
    region = brain.dilated(mask, affine, _AROUND)
    parameters = np.zeros(6)
    for mm in (_COARSE, _FINE):
        similarity = similarity_of(first, affine, region, other, affine, mm, _POINTS, rng)
        parameters, _ = similarity.best(parameters)
    return motion_matrix(parameters, similarity.centre)


def gain(first: FloatArray, other: FloatArray, mask: BoolArray) -> float:
    """By what the other run is multiplied to be as bright as the first, in the brain."""
    usable = mask & (first > 0) & (other > 0)
    return float(np.exp(np.median(np.log(first[usable] / other[usable]))))
