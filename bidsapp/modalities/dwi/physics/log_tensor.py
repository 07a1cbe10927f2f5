"""The weighted tensor of a scan in the log domain, as channels beside the harmonics of the signal.

From few directions the axis of the signal's order-2 harmonics is worse than that of the tensor:
the logarithm makes of one Gaussian exactly order 2, whatever the directions. A network that starts
from both has the better of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bidsapp.modalities.dwi.physics.harmonics import basis, n_coefficients

if TYPE_CHECKING:
    from bidsapp.core import FloatArray
    from bidsapp.modalities.dwi.physics.gradients import GradientTable

#: Coefficients of the diffusivity along a direction: even harmonics up to order 2.
ORDER = 2
N = n_coefficients(ORDER)
#: µm²/ms; mean and standard deviation of a brain's mean diffusivity, and the deviation of a
#: coefficient of degree 2: what 0 and 1 are in a channel, and a prior weak beside six directions.
MEAN, SPREAD, ANISOTROPY = 0.8, 0.5, 0.8
#: s/mm²; beyond this b the signal of tissue is no longer that of one Gaussian (kurtosis).
GAUSSIAN_LIMIT = 1550.0
#: A signal is taken to be at least this share of its voxel's own S0 (ln S needs S > 0).
SIGNAL_FLOOR = 1e-3
#: Values of channels lie between these.
_LIMIT = 5.0
#: Voxels solved together; bounds the memory for weights.
_CHUNK = 50_000


def tensor_channels(attenuation: FloatArray, gtab: GradientTable, variance: float) -> np.ndarray:
    """(N, V) float32 standardised harmonics of the diffusivity gᵀDg, in the axes of ``gtab``.

    ``attenuation`` (N', V) of the weighted volumes of ``gtab``, which has b = 0 too; ``variance``
    of its noise. Weighted least squares of -ln S/S0 = b Σ_k c_k Y_k(g) with weights E²/σ²
    (Salvador et al., Hum Brain Mapp 2005), E first as observed, then as fitted, and each c_k
    normal a priori. The volumes are those up to GAUSSIAN_LIMIT; all, where these are fewer than N.
    """
    weighted = gtab[~gtab.b0]
    use = weighted.bvals <= GAUSSIAN_LIMIT
    if use.sum() < N:
        use[:] = True
    b = weighted.bvals[use] * 1e-3
    spread = np.full(N, ANISOTROPY)
    spread[0] = SPREAD * np.sqrt(4 * np.pi)
    mean = MEAN * b  # of -ln E: degree 0 at the prior's mean
    design = b[:, None] * basis(weighted.bvecs[use], ORDER) * spread
    parts = np.array_split(attenuation, max(1, -(-attenuation.shape[1] // _CHUNK)), axis=1)
    found = [_fitted(part[use], design, mean, variance) for part in parts]
    return np.clip(np.concatenate(found).T, -_LIMIT, _LIMIT).astype(np.float32)


def _fitted(
    attenuation: FloatArray, design: FloatArray, mean: FloatArray, variance: float
) -> np.ndarray:
    """(V, N) coefficients of S/S0 (N', V), -ln of which is ``mean`` (N',) for coefficients zero."""
    seen = np.clip(attenuation, SIGNAL_FLOOR, None)
    left = -np.log(seen) - mean[:, None].astype(seen.dtype)
    products = (design[:, :, None] * design[:, None, :]).reshape(len(design), -1)
    found = np.zeros((seen.shape[1], N))
    for fitted in (False, True):
        expected = np.exp(-mean[:, None] - design @ found.T) if fitted else seen
        weights = np.square(np.clip(expected, SIGNAL_FLOOR, 1.5)) / max(variance, 1e-6)
        normal = (weights.T @ products).reshape(-1, N, N) + np.eye(N)
        found = np.linalg.solve(normal, ((weights * left).T @ design)[..., None])[..., 0]
    return found
