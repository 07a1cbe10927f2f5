"""Spherical harmonics as MRtrix3 has them, from ours: what tractography starts from.

Both are real, even and orthonormal; degree l and order m stand at place l(l+1)/2 + m, and negative
orders hold the sine. MRtrix3's are √2 Im Y_l^|m| for m < 0, Y_l^0, and √2 Re Y_l^m for m > 0
(Tournier et al., NeuroImage 2019; its manual, 'Spherical harmonics'; BEP016 takes them over), where
Y_l^m holds the Condon-Shortley sign (-1)^m. `harmonics.basis` is without: odd orders change sign.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bidsapp.modalities.dwi.physics.harmonics import largest_order, orders, turning

if TYPE_CHECKING:
    from bidsapp.core import FloatArray


def mrtrix_coefficients(density: FloatArray, axes: FloatArray | None = None) -> np.ndarray:
    """Harmonics (…, K) of `harmonics.basis`, K for an order up to 8 → (…, K) of MRtrix3's.

    MRtrix3 has them in world axes (RAS+). ``axes`` (3, 3) are the orthonormal axes of ``density``
    in the world, one a column (`geometry.grid_axes`); None: they are those of the world.
    """
    order = largest_order(density.shape[-1])
    sign = np.where(orders(order) % 2, -1.0, 1.0).astype(density.dtype)
    if axes is not None:
        density = density @ turning(axes, order).T.astype(density.dtype)
    return np.asarray(density * sign)
