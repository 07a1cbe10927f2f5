"""How alike two susceptibility maps are: NRMSE, XSIM, slope. Inside a mask, constants removed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from bidsapp.core import BoolArray, FloatArray

#: Of XSIM: edge of the window in voxels, and its two constants in ppm².
WINDOW, MEAN_SCALE, SPREAD_SCALE = 5, 0.01**2, 0.001**2


def demeaned(chi: FloatArray, mask: BoolArray) -> np.ndarray:
    """``chi`` (X, Y, Z) less its mean in ``mask``; 0 outside."""
    return np.where(mask, chi - chi[mask].mean(), 0.0)


def nrmse(found: FloatArray, truth: FloatArray, mask: BoolArray) -> float:
    """100 ‖found - truth‖ / ‖truth‖ in ``mask``, both demeaned there: per cent."""
    a, b = (demeaned(x, mask) for x in (found, truth))
    return float(100 * np.linalg.norm(a - b) / np.linalg.norm(b))


def xsim(found: FloatArray, truth: FloatArray, mask: BoolArray) -> float:
    """Structural similarity in ppm (Milovic et al., MRM 93:411, 2025, doi:10.1002/mrm.30271).

    Windows of 5³ voxels, L = 1, K₁ = 0.01, K₂ = 0.001; the mean over ``mask``, in which both maps
    are demeaned first and outside of which both are 0.
    """
    from scipy import ndimage

    a, b = (demeaned(x, mask) for x in (found, truth))

    def mean(x: FloatArray) -> np.ndarray:
        return np.asarray(ndimage.uniform_filter(x, WINDOW, mode='constant'))

    alike = likeness(a, b, mean)
    return float(alike[mask].mean())


def likeness(a: Any, b: Any, mean: Callable[[Any], Any]) -> Any:
    """XSIM at each voxel of two demeaned maps, arrays or tensors, by a ``mean`` over windows."""
    mean_a, mean_b = mean(a), mean(b)
    spread = WINDOW**3 / (WINDOW**3 - 1)
    var_a, var_b = (spread * (mean(x * x) - m * m) for x, m in ((a, mean_a), (b, mean_b)))
    both = spread * (mean(a * b) - mean_a * mean_b)
    alike = (2 * mean_a * mean_b + MEAN_SCALE) * (2 * both + SPREAD_SCALE)
    return alike / ((mean_a**2 + mean_b**2 + MEAN_SCALE) * (var_a + var_b + SPREAD_SCALE))


def slope(found: FloatArray, truth: FloatArray, mask: BoolArray) -> float:
    """Of the regression line of ``found`` on ``truth``: 1 where contrast is kept."""
    a, b = (demeaned(x, mask) for x in (found, truth))
    return float((a * b).sum() / (b * b).sum())
