"""The MNI maps that nilearn carries in its wheel: the only part of this room that reads files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from bidsapp.core import FloatArray


def template_maps(
    resolution_mm: float = 1.0,
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray, FloatArray]:
    """(t1, gm, wm, csf, affine) of the ICBM 152 2009a symmetric template, without the skull.

    The maps are (X, Y, Z) float32 in [0, 1] on a grid of ``resolution_mm``, axes RAS; ``affine``
    (4, 4) takes voxel indices to MNI mm. A coarser grid holds averages over its voxels. CSF is
    what GM and WM leave of the brain, so outside the brain all four are 0.
    """
    # These three read the wheel's own files and never ask the network.
    from nilearn.datasets import (
        load_mni152_gm_template,
        load_mni152_template,
        load_mni152_wm_template,
    )

    images = [
        load(resolution=1)
        for load in (load_mni152_template, load_mni152_gm_template, load_mni152_wm_template)
    ]
    t1, gm, wm = (np.asarray(image.dataobj, np.float32) for image in images)
    csf = np.clip((t1 > 0) - gm - wm, 0, 1)
    maps = [_averaged(volume, resolution_mm) for volume in (t1, gm, wm, csf)]
    first = np.asarray(images[0].affine, float)
    affine = np.diag([resolution_mm, resolution_mm, resolution_mm, 1.0])
    affine[:3, 3] = first[:3, 3] + (resolution_mm - 1) / 2
    return maps[0], maps[1], maps[2], maps[3], affine


def _averaged(volume: FloatArray, size: float) -> FloatArray:
    """Mean of a 1 mm volume over voxels of ``size`` mm that start at its corner."""
    for axis in range(3):
        overlap = _overlap(volume.shape[axis], size)
        volume = np.moveaxis(np.tensordot(overlap, volume, (1, axis)), 0, axis)
    return np.clip(volume, 0, 1)


def _overlap(n: int, size: float) -> np.ndarray:
    """(M, n) share of each of ``n`` unit cells in each cell of ``size``; rows sum to at most 1."""
    lower = np.arange(int(np.ceil(n / size)))[:, None] * size
    cells = np.arange(n)[None]
    shared = np.minimum(lower + size, cells + 1) - np.maximum(lower, cells)
    return (np.clip(shared, 0, None) / size).astype(np.float32)
