"""How strong the noise was that the magnitude was taken of, from the spread of magnitudes.

Where there is little signal a magnitude varies less than its noise does: 0.655 σ in air (Koay and
Basser 2006). The spread that denoising finds is corrected for it, voxel by voxel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy import ndimage

from bidsapp.modalities.dwi.physics.spherical_mean import FLOOR, LEAST_VARIANCE, without_floor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bidsapp.core import FloatArray

#: Rounds of correction; the level hardly changes after the third.
ROUNDS = 4
#: Voxels worked on together.
_CHUNK = 20_000


def noise_floor(spread: FloatArray, means: FloatArray, window: Sequence[int]) -> FloatArray:
    """(X, Y, Z) σ of the noise before the magnitude was taken; 0 where ``spread`` is.

    ``spread`` (X, Y, Z) is the standard deviation of magnitudes, the mean over the patches of
    ``window`` voxels that hold a voxel; ``means`` (X, Y, Z, N) are the magnitudes without noise.
    """
    known = spread > 0
    weight = _over_patches(known.astype(np.float32), window)
    # From above: air is right at once, and where there is signal the level falls quickly.
    sigma = np.array(spread / np.sqrt(LEAST_VARIANCE), np.float32)
    for _ in range(ROUNDS):
        share = np.zeros_like(sigma)
        share[known] = _variance_share(means[known], sigma[known])
        mixed = _over_patches(share, window) / np.maximum(weight, 1e-6)
        sigma = np.where(known, spread / np.sqrt(np.clip(mixed, LEAST_VARIANCE, 1)), 0)
    return sigma.astype(np.float32)


def _variance_share(means: FloatArray, sigma: FloatArray) -> FloatArray:
    """(V,) variance of magnitudes with mean (V, N) over that of their noise, mean of volumes.

    A mean below that of noise alone is one by chance: the share goes on falling as it does just
    above, or chance would always raise it.
    """
    found = np.empty(len(means), np.float32)
    for first in range(0, len(means), _CHUNK):
        part = slice(first, first + _CHUNK)
        mean, level = torch.from_numpy(means[part]), torch.from_numpy(sigma[part])[:, None]
        above = 2 + (without_floor(mean, level) ** 2 - mean**2) / level**2
        below = LEAST_VARIANCE + (4 / FLOOR - 2 * FLOOR) * (mean / level - FLOOR)
        share = torch.where(mean < FLOOR * level, below, above)
        found[part] = share.clamp(max=1).mean(1).numpy()
    return found


def _over_patches(volume: FloatArray, window: Sequence[int]) -> FloatArray:
    """The mean of ``volume`` over a patch, and of that over the patches that hold a voxel."""
    once = ndimage.uniform_filter(volume, window, mode='nearest')
    return np.asarray(ndimage.uniform_filter(once, window, mode='nearest'))
