"""How far two parts of a run lie apart, by rigid registration of their mean weighted images.

Each mean is geometric and weighted so that it follows no direction (`placement.balanced`; ln S of a
tensor then has none left): parts with other directions else differ by the anisotropy of white
matter, which pulls by a tenth of a millimetre. Both are made finer by splines, since linear
interpolation smooths least on the voxels themselves and would pull the answer to 0; each is
registered to the other, and half of the difference taken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy import ndimage

from bidsapp.modalities.dwi.physics.placement import balanced
from bidsapp.physics.geometry import voxel_sizes
from bidsapp.physics.resampling import N_RIGID, Match, SamplingGrid, Warp, stretches

if TYPE_CHECKING:
    from realscans import Scan

#: Voxels in which both are compared, about; half voxels a voxel.
POINTS, FINER = 40_000, 2
#: Share of the median signal in the brain that a signal is taken to have at least.
LEAST = 0.02


def mean_weighted(scan: Scan) -> np.ndarray:
    """(X, Y, Z) the geometric mean, which follows no direction, of the smoothed weighted volumes.

    Smoothed first, by a voxel (geometric mean edge), or the logarithm would heed the noise.
    """
    table, volumes = scan.gtab[~scan.gtab.b0], scan.data[..., ~scan.gtab.b0]
    edges = voxel_sizes(scan.affine)
    width, least = np.cbrt(edges.prod()) / edges, LEAST * float(np.median(volumes[scan.mask]))
    total = np.zeros(scan.mask.shape)
    for volume, weight in zip(np.moveaxis(volumes, -1, 0), balanced(table), strict=True):
        soft = ndimage.gaussian_filter(volume, width, mode='nearest')
        total += weight * np.log(np.maximum(soft, least))
    return np.asarray(np.exp(total))


def offset(one: Scan, other: Scan) -> float:
    """mm by which ``other`` lies from ``one`` on the same grid: root mean square over the brain."""
    mask = one.mask & other.mask
    images = [_finer(mean_weighted(scan)) for scan in (one, other)]
    voxels = np.argwhere(mask)
    places = voxels @ one.affine[:3, :3].T + one.affine[:3, 3]
    warp = Warp(places.mean(0), stretches(one.affine, None))
    affine = one.affine @ np.diag([1 / FINER] * 3 + [1.0])
    kept = voxels[:: max(len(voxels) // POINTS, 1)]
    grid = SamplingGrid(affine, torch.as_tensor(FINER * kept, dtype=torch.float32), warp)
    rest = np.zeros((1, warp.n_parameters))
    there, back = (
        Match(grid, moving[None], still[None]).solve(rest, rigid=True)[0, :N_RIGID]
        for still, moving in (images, images[::-1])
    )
    shift, turn = np.split((there - back) / 2, 2)
    displaced = shift + np.cross(turn, places - warp.centre)
    return float(np.sqrt(np.square(displaced).sum(1).mean()))


def _finer(image: np.ndarray) -> torch.Tensor:
    """At half voxels too."""
    shape = tuple(FINER * (n - 1) + 1 for n in image.shape)
    values = ndimage.affine_transform(
        image, np.eye(3) / FINER, output_shape=shape, order=3, mode='nearest'
    )
    return torch.as_tensor(values, dtype=torch.float32)
