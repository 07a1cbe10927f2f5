"""Density and dispersion from FA and MD alone: NODDI in closed form where there is no free water.

Edwards, Pine, Ellerbrock, Weiskopf and Mohammadi, "NODDI-DTI: estimating neurite orientation and
dispersion parameters from a diffusion tensor in healthy white matter", Front Neurosci 11:720, 2017.
The tensor of the model (`physics.noddi`) at low b, with d along neurites, v their share, tortuosity
and τ the mean of (n·µ)², has the trace d (3 - 4v + 2v²) and, along µ, d v (2 - v) (3τ - 1)/2 more
than across. Hence

    v = 1 - √((3 MD/d - 1) / 2),   (3τ - 1)/2 = 2 MD FA / ((d - MD) √(3 - 2 FA²))

and the dispersion is that of the Watson distribution whose mean of P_2 this is. With water of a
known share f of the signal its isotropic part, f · 3 µm²/ms, is taken from MD first, and the rest
belongs to 1 - f. No correction for kurtosis: MD is what a fit at b ≈ 1000 s/mm² gives.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from bidsapp.modalities.dwi.physics.noddi import AXIAL, FREE_WATER, LEAST_OD

if TYPE_CHECKING:
    from bidsapp.core import FloatArray

#: Of d; MD nearer to it than this leaves no neurites whose dispersion could be told.
_LEAST_ROOM = 1e-3
#: Most of a voxel that may be water.
_MOST_WATER = 0.99


def noddi_of_tensor(
    fa: FloatArray, md: FloatArray, isovf: FloatArray | float = 0.0, axial: float = AXIAL
) -> tuple[np.ndarray, np.ndarray]:
    """icvf and od (…), 0 to 1, of FA and MD (…, mm²/s), for a share ``isovf`` of free water.

    ``axial`` is d in µm²/ms. Values that no neurites give end at the nearest bound.
    """
    measured = np.asarray(md, float) * 1e3
    water = np.clip(np.asarray(isovf, float), 0, _MOST_WATER)
    # What anisotropy there is, is the tissue's: along less across, of all of the signal.
    more = 3 * measured * fa / np.sqrt(3 - 2 * np.square(np.asarray(fa, float)))
    of_tissue = np.clip((measured - water * FREE_WATER) / (1 - water), axial / 3, axial)
    density = 1 - np.sqrt((3 * of_tissue / axial - 1) / 2)
    room = np.maximum(axial - of_tissue, _LEAST_ROOM * axial)
    ordered = np.clip(2 * more / (1 - water) / (3 * room), 0, 1)
    moments, dispersion = _watson()
    return density, np.interp(ordered, moments, dispersion)


@cache
def _watson() -> tuple[np.ndarray, np.ndarray]:
    """Mean of P_2 over a Watson distribution, ascending, and its dispersion."""
    nodes, weights = np.polynomial.legendre.leggauss(96)
    squares = np.square((nodes + 1) / 2)
    dispersion = np.linspace(LEAST_OD, 1, 600)
    kappa = 1 / np.tan(dispersion * np.pi / 2)
    density = np.exp(kappa[:, None] * (squares - 1)) * weights
    moments = (density @ (1.5 * squares - 0.5)) / density.sum(1)
    return moments[::-1], dispersion[::-1]
