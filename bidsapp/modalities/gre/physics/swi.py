"""Susceptibility-weighted images: veins dark in the magnitude, darker by their phase."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from bidsapp.physics.geometry import grid_axes, voxel_sizes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bidsapp.core import BoolArray, FloatArray

#: How often the phase mask is multiplied in.
POWER = 4
#: mm of a slab whose darkest voxel is shown.
SLAB = 14.0


def weighted(
    magnitude: FloatArray, local: FloatArray, echo_times: Sequence[float], mask: BoolArray
) -> np.ndarray:
    """(X, Y, Z) mean over echoes of |S| times its phase mask to the fourth power; 0 outside.

    ``magnitude`` (E, X, Y, Z), ``local`` (X, Y, Z) the local field in Hz, 0 where it is not known;
    there the image is the magnitude. The mask falls from 1 at phase 0 to 0 at π, on the side of
    paramagnetic matter (Haacke et al., MRM 52:612, 2004); of several echoes the images are averaged
    (Denk & Rauscher, JMRI 31:185, 2010). The local field stands in for the filtered phase: it has
    no wraps, and large structures are gone from it.
    """
    times = np.asarray(echo_times, float)[:, None, None, None]
    phase = 2 * np.pi * times * local
    darkening = np.clip(1 - phase / np.pi, 0, 1) ** POWER
    return np.where(mask, (magnitude * darkening).mean(0), 0)


def projected(image: FloatArray, mask: BoolArray, affine: FloatArray) -> np.ndarray:
    """(X, Y, Z) the least value of ``image`` in a slab of 14 mm around each slice; 0 outside.

    Slices are those nearest to axial. What lies outside ``mask`` darkens nothing.
    """
    axis = int(np.abs(grid_axes(affine)[2]).argmax())
    size = max(1, round(SLAB / float(voxel_sizes(affine)[axis])))
    bright = np.where(mask, image, np.inf)
    return np.where(mask, ndimage.minimum_filter1d(bright, size, axis, mode='nearest'), 0)
