"""What a network says of regions: χ and the deviation that it states, by label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bidsapp.modalities.gre.physics.regions import means, regions_of

if TYPE_CHECKING:
    from bidsapp.core import BoolArray, FloatArray


@dataclass(frozen=True, slots=True)
class Stated:
    """χ of one label, in ppm."""

    index: int
    voxels: int  #: in which χ is known
    mean: float
    spread: float  #: standard deviation over its voxels
    deviation: float  #: root mean square of what is stated of them


def stated(
    chi: FloatArray, deviation: FloatArray, labels: FloatArray, mask: BoolArray
) -> list[Stated]:
    """Each label of ``labels`` (X, Y, Z) of which enough is in ``mask``, by two maps in ppm.

    The root mean square is that of an error in one voxel. Errors of neighbours go together, so that
    of a mean is smaller, by an unknown factor that is less than √voxels.
    """
    from scipy import ndimage

    index = regions_of(labels, mask)
    if not index:
        return []
    inside = np.where(mask, labels, 0)
    return [
        Stated(i, int(n), float(m), float(s), float(d))
        for i, n, m, s, d in zip(
            index,
            ndimage.sum(mask, inside, index),
            means(chi, labels, mask, index),
            ndimage.standard_deviation(chi, inside, index),
            np.sqrt(means(np.square(deviation), labels, mask, index)),
            strict=True,
        )
    ]
