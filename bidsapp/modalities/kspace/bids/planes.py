"""A scan plane by plane: what every step, and every network, goes through."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from bidsapp.modalities.kspace.bids.scan import onto_grid
from bidsapp.modalities.kspace.physics.planes import planes_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from bidsapp.modalities.kspace.bids.prepared import Samples
    from bidsapp.modalities.kspace.bids.raw import RawImage
    from bidsapp.modalities.kspace.physics.measured import Measured
    from bidsapp.modalities.kspace.physics.planes import Plane, Planes


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """One plane, and what it is of."""

    measured: Measured
    planes: Planes
    plane: Plane
    number: int
    count: int  #: of all planes of the scan


def planes_in(samples: Samples, whole: bool = False) -> Iterator[Seen]:
    """Each slice, or each plane of the slab across readout; no two are in memory.

    ``whole``: with the lines that are left out afterwards.
    """
    for number in range(samples.count):
        measured = samples.whole(number) if whole else samples.read(number)
        planes = planes_of(measured)
        for place in range(planes.count):
            slab = samples.image.three_dimensional
            count = planes.count if slab else samples.count
            yield Seen(measured, planes, planes.at(place), place if slab else number, count)


def assembled(images: Sequence[Tensor], image: RawImage) -> np.ndarray:
    """(X, Y, Z) magnitudes of planes (X, Y), or (Y, Z) across readout, on the image's grid."""
    sizes = [plane.abs().float() for plane in images]
    if image.three_dimensional:
        return onto_grid(torch.stack(sizes), image).numpy()
    return np.stack([onto_grid(plane, image).numpy() for plane in sizes], -1)


def spread(count: int, most: int) -> set[int]:
    """``most`` of ``count`` planes, evenly spread; all where there are fewer."""
    return {int(n) for n in np.linspace(0, count - 1, min(count, most)).round()}


def short(value: float) -> float:
    """Four digits, for a sidecar."""
    return float(f'{value:.4g}')
