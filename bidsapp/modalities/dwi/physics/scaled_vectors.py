"""b-values that stand in the lengths of the vectors, under one nominal b for all (b·|g|²).

Some scanners and converters store a scheme of several shells so. Lengths alone are no proof: the
signal has to fall as the b-values say.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from bidsapp.modalities.dwi.physics.gradients import shells

if TYPE_CHECKING:
    from bidsapp.core import FloatArray

#: Lengths belong together while they differ by at most this share, within a group and to the next.
SAME_LENGTH = 0.02
#: A length farther from 1 than this is no inaccuracy.
OTHER_LENGTH = 0.05
#: Volumes that make a group.
GROUP = 3
#: A vector shorter than this has no length.
NO_VECTOR = 1e-6
#: mm²/s; what the mean signal of a head says of diffusion lies between these.
LEAST_DECAY, MOST_DECAY = 5e-5, 4e-3
#: Voxels brighter than this share of the brightest (98 %) at b = 0 are looked at.
BRIGHT = 0.25


def scaled_bvals(bvecs: FloatArray, bvals: FloatArray, b0_threshold: float) -> FloatArray | None:
    """(N,) b·|g|² where the lengths of ``bvecs`` (3, N) form groups under one b; else None.

    Vectors of length zero belong to b = 0 then, but only where no volume says so by its b.
    """
    lengths = np.linalg.norm(bvecs, axis=0)
    scaled = np.array(bvals, float)
    found = False
    without = (bvals > b0_threshold) & (lengths < NO_VECTOR)
    nowhere = bool((bvals > b0_threshold).all())
    for _, members in shells(bvals, b0_threshold):
        own = members[~without[members]]
        groups = length_groups(lengths[own])
        several = len(groups) > 1 and any(abs(g - 1) > OTHER_LENGTH for g in groups)
        if several or (nowhere and len(groups) == 1 and without[members].any()):
            nearest = np.abs(lengths[own, None] - np.array(groups)).argmin(1)
            scaled[own] = bvals[own] * np.array(groups)[nearest] ** 2
            if nowhere:
                scaled[members[without[members]]] = 0
            found = True
    return scaled if found else None


def length_groups(lengths: FloatArray) -> list[float]:
    """The mean of each group of like ``lengths``; none where they are not all in groups."""
    if not lengths.size:
        return []
    ordered = np.sort(lengths)
    breaks = np.flatnonzero(np.diff(ordered) > SAME_LENGTH * ordered[:-1]) + 1
    groups = np.split(ordered, breaks)
    sound = all(len(g) >= GROUP and g[-1] - g[0] <= SAME_LENGTH * g[-1] for g in groups)
    return [float(g.mean()) for g in groups] if sound else []


def decay_agrees(data: FloatArray, bvals: FloatArray) -> bool:
    """Whether the mean signal of (X, Y, Z, N) falls from each b to the next as in a head."""
    levels = [(b, data[..., members]) for b, members in shells(bvals, 0.0)]
    unweighted = data[..., bvals <= 0]
    levels = [(0.0, unweighted), *levels] if unweighted.shape[-1] else levels
    first = levels[0][1].mean(-1)
    bright = first > BRIGHT * np.percentile(first, 98)
    means = [(b, float(volumes[bright].mean())) for b, volumes in levels]
    rates = [
        np.log(max(one, 1e-12) / max(other, 1e-12)) / (b_other - b)
        for (b, one), (b_other, other) in pairwise(means)
    ]
    return all(LEAST_DECAY <= rate <= MOST_DECAY for rate in rates)
