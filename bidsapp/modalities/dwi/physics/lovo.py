"""Leave-one-volume-out prediction: what a volume should look like, as the others have it.

Linear in the signals, so volumes may be whole images or voxels of them, smoothed or not. The map
for S/S0 is affine, so times S0 it is linear in S and S0: nothing is ever divided by the S0 of a
voxel without signal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from bidsapp.modalities.dwi.physics import qspace
from bidsapp.modalities.dwi.physics.noise import noise_variance

if TYPE_CHECKING:
    from torch import Tensor

    from bidsapp.core import FloatArray
    from bidsapp.modalities.dwi.physics.gradients import GradientTable


def predicted(
    volumes: Tensor, gtab: GradientTable, variance: float, isotropic: bool = False
) -> Tensor:
    """Each of ``volumes`` (N, …) as the others have it; b = 0: the mean of the others, if any.

    ``gtab`` is in the frame of the head, ``variance`` that of the noise of S/S0. An ``isotropic``
    prediction follows b but no direction.
    """
    b0 = torch.as_tensor(gtab.b0, device=volumes.device)
    n_b0 = int(b0.sum())
    s0 = volumes[b0].mean(0)
    linear = _isotropic if isotropic else qspace.leave_one_out
    mapping = linear(gtab[~gtab.b0], variance, n_b0)
    matrix = torch.as_tensor(mapping.matrix).to(volumes)
    constant = torch.as_tensor(mapping.offset - mapping.matrix @ mapping.centre).to(volumes)
    result = torch.empty_like(volumes)
    weighted = torch.tensordot(matrix, volumes[~b0], dims=1)
    for row, share in zip(weighted, constant, strict=True):
        row += share * s0
    result[~b0] = weighted
    result[b0] = (n_b0 * s0 - volumes[b0]) / (n_b0 - 1) if n_b0 > 1 else volumes[b0]
    return result


def residual(inside: Tensor, gtab: GradientTable, variance: float) -> np.ndarray:
    """(N,) RMS of each volume of ``inside`` (N, M) less its prediction, over its own RMS.

    0 for a b = 0 volume that has no other to compare with.
    """
    misfit = (inside - predicted(inside, gtab, variance)).square().mean(1)
    return np.asarray((misfit / inside.square().mean(1).clamp_min(1e-12)).sqrt().cpu())


def noise(volumes: FloatArray, mask: np.ndarray, gtab: GradientTable) -> float:
    """Variance of the noise of S/S0, from ``volumes`` (N, X, Y, Z) in units of the mean S0."""
    s0 = np.maximum(volumes[gtab.b0].mean(0), 0.05)
    attenuation = volumes[~gtab.b0] / s0
    return noise_variance(attenuation, mask, gtab[~gtab.b0])


def _isotropic(weighted: GradientTable, variance: float, n_b0: int) -> qspace.LinearMap:
    """`qspace.leave_one_out` for a prior whose anisotropy is noise: nothing follows direction."""
    mean, k = qspace.prior(weighted.bvals, weighted.bvals)
    anisotropy = np.diag(np.einsum('nnl->n', k[..., 1:]))
    covariance = qspace.noise_covariance(len(weighted), n_b0, variance) + anisotropy
    inverse = np.linalg.inv(k[..., 0] + covariance + 1e-8 * np.eye(len(weighted)))
    matrix = np.eye(len(weighted)) - inverse / np.diag(inverse)[:, None]
    return qspace.LinearMap(matrix, mean, mean, 1 / np.diag(inverse))
