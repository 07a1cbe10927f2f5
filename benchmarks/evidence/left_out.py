"""The endpoint that needs no reference: volumes that were left out, predicted, in signal units.

The prediction of a volume is compared with what was measured, whose noise no answer can know: it
is the floor of the squared error, the same for every method. So methods are compared by ratios of
squared errors, noise included, and their excess over the noise stands beside. Where a prediction is
below three standard deviations of the noise, the magnitude that would have been measured is not
it but the mean of Rice's distribution about it; predictions made from magnitudes have that in them
already, those of a network that was taught true signals have not. Each method is therefore scored
both ways and keeps the lower error of the region.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from bidsapp.modalities.dwi.physics.spherical_mean import mean_magnitude

#: Standard deviations of the noise below which a magnitude is not the signal.
LOW = 3.0
#: Times that the left-out volumes are drawn again.
DRAWS = 2000


@dataclass(frozen=True, slots=True, eq=False)
class Left:
    """Mean squared error (L,) of each left-out volume, in the unit of the signal squared."""

    errors: np.ndarray
    as_rician: bool  #: whether low predictions were led to the mean magnitude


def magnitudes(predicted: np.ndarray, sigma: float) -> np.ndarray:
    """``predicted`` (L, V) with what is below ``LOW`` σ as the mean magnitude it would give."""
    result = np.array(predicted, np.float32)
    low = result < LOW * sigma
    signal = torch.from_numpy(result[low]).double().clamp(min=0)
    result[low] = mean_magnitude(signal, torch.full_like(signal, sigma))[0].numpy()
    return result


def left(seen: np.ndarray, predicted: np.ndarray, sigma: float, where: np.ndarray) -> Left:
    """Of left-out volumes ``seen`` (L, V) and their prediction in the voxels ``where`` (V,)."""
    ways = [
        np.square(seen[:, where] - way, dtype=np.float64).mean(1)
        for way in (predicted[:, where], magnitudes(predicted[:, where], sigma))
    ]
    rician = bool(ways[1].sum() < ways[0].sum())
    return Left(ways[rician], rician)


def ratio(ours: Left, theirs: Left, seed: int = 0) -> tuple[float, float, float]:
    """Ratio of the squared errors and its 95 % interval; volumes are drawn again in pairs."""
    rng = np.random.default_rng(seed)
    size = len(ours.errors)
    drawn = rng.integers(size, size=(DRAWS, size))
    ratios = ours.errors[drawn].sum(1) / theirs.errors[drawn].sum(1)
    low, high = np.quantile(ratios, (0.025, 0.975))
    return float(ours.errors.sum() / theirs.errors.sum()), float(low), float(high)
