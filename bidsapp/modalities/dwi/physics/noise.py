"""How noisy a scan is, from its volumes alone: the variance of S/S0 for the canonical map."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bidsapp.modalities.dwi.physics.qspace import covariance, prior

if TYPE_CHECKING:
    from bidsapp.core import BoolArray, FloatArray
    from bidsapp.modalities.dwi.physics.gradients import GradientTable

#: Weighted volumes from which q-space tells noise from signal.
MIN_ANGULAR = 10
#: Variance of S/S0 where a scan does not tell it: that of a signal-to-noise ratio of 20.
USUAL = 1 / 20**2


def map_noise(
    attenuation: FloatArray, mask: BoolArray, gtab: GradientTable, at_zero: FloatArray
) -> float:
    """σ² of the attenuation (N, X, Y, Z), weighted volumes, ``gtab`` theirs, in the brain.

    The larger of what the finest detail in space says and what q-space says: noise that
    interpolation or a finer reconstruction has spread over neighbours hides from the first.
    Fewer than MIN_ANGULAR directions fit anything; there the volumes at b = 0 tell it, S/S0 in
    ``at_zero`` (N₀, X, Y, Z), where there are several. With one of them, noise that neighbours
    share is told too low. (Detail of voxels farther apart would hold it, and as much anatomy: of
    six directions of two real scans it said 0.046 and 0.033 where 0.013 and 0.016 were right.)
    """
    spatial = noise_variance(attenuation, mask, gtab)
    if len(gtab) < MIN_ANGULAR:
        return max(spatial, repeat_noise(at_zero, mask))
    return max(spatial, angular_noise(attenuation, mask, gtab, len(at_zero)))


def repeat_noise(repeats: FloatArray, mask: BoolArray) -> float:
    """σ² of volumes (N, X, Y, Z) of one contrast, by what tells them apart; 0 for one alone.

    Noise that neighbours share counts in full. The median absolute deviation over the brain, each
    volume less its own median, takes neither pulsating fluid nor a drift of the scanner for noise.
    """
    if len(repeats) < 2:
        return 0.0
    left = (repeats - repeats.mean(0))[:, mask]
    spread = np.median(np.abs(left - np.median(left, axis=1, keepdims=True))) / 0.6745
    return float(np.clip(spread**2 * len(repeats) / (len(repeats) - 1), 1e-5, 0.25))


def angular_noise(
    attenuation: FloatArray, mask: BoolArray, gtab: GradientTable, n_b0: int
) -> float:
    """σ² at which the prior of `covariance` makes the brain's voxels most likely.

    Their mean and their anisotropy may vary by another factor than the prior's; the latter is
    fitted along. The mean of (E - m)(E - m)ᵀ over voxels is all that the likelihood needs:
    Σ_i log(λ_i + σ²) + e_i/(λ_i + σ²) in the eigenvectors of the covariance relative to the
    noise's own, I + Ē² 11ᵀ/n_b0. Noise that neighbours share counts in full.
    """
    inside = attenuation[:, mask].astype(np.float64)
    mean, whole = covariance(gtab, gtab)
    level = _isotropic_covariance(gtab)
    deviation = inside - mean[:, None]
    moment = deviation @ deviation.T / inside.shape[1]
    shared = float(np.square(inside.mean(1)).mean()) / n_b0
    inverse = np.linalg.inv(np.linalg.cholesky(np.eye(len(gtab)) + shared))
    moment = inverse @ moment @ inverse.T
    variances = np.exp(np.linspace(np.log(1e-5), np.log(0.25), 120))
    best = (np.inf, 0.0)
    for share in np.exp(np.linspace(np.log(0.05), np.log(2), 14)):
        relative = inverse @ (level + share * (whole - level)) @ inverse.T
        values, vectors = np.linalg.eigh(relative)
        energy = np.einsum('in,ij,jn->n', vectors, moment, vectors)
        total = np.maximum(values, 0) + variances[:, None]
        cost = (np.log(total) + energy / total).sum(1)
        least = int(cost.argmin())
        best = min(best, (float(cost[least]), float(variances[least])))
    return best[1]


def _isotropic_covariance(gtab: GradientTable) -> np.ndarray:
    """(N, N) the part of the prior's covariance that does not depend on directions."""
    b, row = np.unique(gtab.bvals, return_inverse=True)
    return np.asarray(prior(b, b)[1][..., 0][row][:, row])


def noise_variance(attenuation: FloatArray, mask: BoolArray, gtab: GradientTable) -> float:
    """σ² of the attenuation (N, X, Y, Z), weighted volumes, from its finest detail in the brain.

    In each shell the mean volume is taken off, so that anatomy which volumes share cancels; then
    the second mixed difference in the plane, (a - b - c + d)/2, has the noise's own standard
    deviation where the signal is smooth, and the median absolute deviation ignores the rest.
    A brain one voxel wide in the plane has no such detail, and gets what is usual.
    """
    groups = [members for _, members in gtab.shells() if len(members) > 1]
    whole = mask[:-1, :-1] & mask[1:, :-1] & mask[:-1, 1:] & mask[1:, 1:]
    if not groups or not whole.any():
        return USUAL
    estimates = []
    for members in groups:
        part = attenuation[members] - attenuation[members].mean(0)
        detail = part[:, :-1, :-1] - part[:, 1:, :-1] - part[:, :-1, 1:] + part[:, 1:, 1:]
        spread = np.median(np.abs(detail[:, whole])) / 0.6745 / 2
        estimates.append(spread**2 * len(members) / (len(members) - 1))
    return float(np.clip(np.mean(estimates), 1e-5, 0.25))


def fine_variance(left: FloatArray, mask: BoolArray) -> float:
    """σ² of volumes (N, X, Y, Z) that hold little but noise, by second differences in the brain.

    (a - 2b + c)/√6 along each axis has the noise's own standard deviation where the rest is smooth
    and neighbours' noise is apart. Interpolation within slices brings neighbours together in the
    plane only, so the mean over the three axes is less deceived than the plane.
    """
    estimates = []
    for axis in range(3):
        brain = np.moveaxis(mask, axis, 0)
        whole = brain[2:] & brain[1:-1] & brain[:-2]
        detail = np.diff(np.moveaxis(left, axis + 1, 1), 2, axis=1)[:, whole]
        if detail.shape[1]:
            spread = np.median(np.abs(detail), axis=1) / 0.6745
            estimates.append(float(np.square(spread).mean()) / 6)
    return float(np.clip(np.mean(estimates), 1e-8, 0.25)) if estimates else USUAL
