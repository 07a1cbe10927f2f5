"""χ of regions: means by label, the constant that is removed, and how sure a mean is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bidsapp.problems import BadData

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bidsapp.core import BoolArray, FloatArray

#: Draws of the noise that a region's deviation is from.
DRAWS = 8
#: Fewer voxels of a label are no region.
FEWEST = 4


def referenced(
    chi: FloatArray, where: BoolArray | None, mask: BoolArray
) -> tuple[np.ndarray, float]:
    """``chi`` (X, Y, Z) in ``mask`` less its mean ``where``, and that mean; 0 outside ``mask``.

    χ is known up to a constant. ``where`` None is all of the mask. Raises BadData where ``where``
    holds nothing of it.
    """
    inside = mask if where is None else where & mask
    if not inside.any():
        raise BadData(
            'The region of --reference holds no voxel in which χ is known; expected some. Choose '
            'another label, or leave --reference out.'
        )
    offset = float(chi[inside].mean())
    return np.where(mask, chi - offset, 0), offset


@dataclass(frozen=True, slots=True)
class Region:
    """χ of one label, in ppm."""

    index: int
    voxels: int  #: in which χ is known
    mean: float
    spread: float  #: standard deviation over its voxels
    deviation: float  #: of its mean by noise alone (`statistics`), or of one voxel (`stated`)


def regions_of(labels: FloatArray, mask: BoolArray) -> list[int]:
    """Indices of the labels of which enough lies within ``mask``."""
    index, count = np.unique(labels[mask].astype(int), return_counts=True)
    return [int(i) for i, n in zip(index, count, strict=True) if i > 0 and n >= FEWEST]


def means(chi: FloatArray, labels: FloatArray, mask: BoolArray, index: Sequence[int]) -> np.ndarray:
    """(R,) mean of ``chi`` in each label ``index`` within ``mask``."""
    from scipy import ndimage

    return np.asarray(ndimage.mean(chi, np.where(mask, labels, 0), index))


def statistics(
    chi: FloatArray,
    labels: FloatArray,
    mask: BoolArray,
    invert: Callable[[FloatArray], np.ndarray],
    field: FloatArray,
    noise: FloatArray,
    draws: int = DRAWS,
    seed: int = 0,
) -> list[Region]:
    """Each label of ``labels`` (X, Y, Z) in ``mask``, with the deviation of its mean.

    That is the spread of the means over ``draws`` maps that ``invert`` makes of ``field`` with its
    ``noise`` (standard deviation of each voxel) added once more: errors of neighbours go together
    in an inversion, so voxels' deviations over √n would be too small.
    """
    index = regions_of(labels, mask)
    if not index:
        return []
    rng = np.random.default_rng(seed)
    again = [
        means(invert(field + noise * rng.standard_normal(field.shape)), labels, mask, index)
        for _ in range(draws)
    ]
    return described(chi, labels, mask, index, np.std(again, axis=0, ddof=1))


def described(
    chi: FloatArray,
    labels: FloatArray,
    mask: BoolArray,
    index: Sequence[int],
    deviations: FloatArray,
) -> list[Region]:
    """Each label ``index`` of ``labels`` (X, Y, Z) in ``mask``, with ``deviations`` (R,)."""
    from scipy import ndimage

    inside = np.where(mask, labels, 0)
    return [
        Region(i, int(n), float(m), float(s), float(d))
        for i, n, m, s, d in zip(
            index,
            ndimage.sum(mask, inside, index),
            means(chi, labels, mask, index),
            ndimage.standard_deviation(chi, inside, index),
            deviations,
            strict=True,
        )
    ]


def stated(
    chi: FloatArray, deviation: FloatArray, labels: FloatArray, mask: BoolArray
) -> list[Region]:
    """Each label of ``labels`` (X, Y, Z) of which enough is in ``mask``, by two maps in ppm.

    Its deviation is the root mean square of what is stated of an error in one voxel. Errors of
    neighbours go together, so that of a mean is smaller, by an unknown factor less than √voxels.
    """
    index = regions_of(labels, mask)
    if not index:
        return []
    rms = np.sqrt(means(np.square(deviation), labels, mask, index))
    return described(chi, labels, mask, index, rms)
