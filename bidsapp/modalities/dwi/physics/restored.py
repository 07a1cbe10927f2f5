"""From the harmonics of the canonical input back to the volumes of a scan, and what is left over.

Harmonics (slots · N_SH, V) are those of ``qspace``: slot after slot, deviations from the prior mean
in units of the prior's standard deviation. Tables hold all volumes of a run, b = 0 too, in the axes
that the harmonics are in.

Over 300 lines, for what a prediction says, what of the data comes back and what noise stays are one
estimator.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bidsapp.modalities.dwi.physics.harmonics import basis
from bidsapp.modalities.dwi.physics.noise import MIN_ANGULAR, angular_noise, fine_variance
from bidsapp.modalities.dwi.physics.qspace import (
    N_SH,
    ORDER,
    canonical_map,
    filled_slots,
    prior,
    standard,
)
from bidsapp.modalities.dwi.physics.unweighted import signal_at_zero

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from bidsapp.core import BoolArray, FloatArray
    from bidsapp.modalities.dwi.physics.gradients import GradientTable

#: A volume is described by the harmonics of a slot if its b is that of the slot within this share.
B_TOLERANCE = 0.05
#: Standard deviation of the factor by which a prediction misses the strength of a voxel's contrast.
GAIN = 0.3
#: Full width at half maximum, in mm, of the blurs between which what is left over is divided.
SCALES = (3.0, 5.0)
#: Standard deviations of a Gaussian in its full width at half maximum.
WIDTH = 2.3548


def slots_of_volumes(gtab: GradientTable) -> NDArray[np.intp]:
    """(N,) the b-value bin (slot) that describes each volume; -1 for b = 0 and other shells."""
    slots = np.full(len(gtab), -1)
    for slot, b in filled_slots(gtab).items():
        slots[np.abs(gtab.bvals - b) <= B_TOLERANCE * b] = slot
    return slots


def attenuation_at(harmonics: FloatArray, gtab: GradientTable) -> np.ndarray:
    """S/S0 (N', V) of the volumes that ``slots_of_volumes`` gives a slot, in the table's order.

    Each at its own direction, and with b off the slot's own by up to B_TOLERANCE scaled as a
    Gaussian's would be: E(b) = E(b_slot)^(b / b_slot). Never negative.
    """
    slots = slots_of_volumes(gtab)
    signal = np.empty((len(gtab), harmonics.shape[1]), np.float32)
    for slot, b in filled_slots(gtab).items():
        members = np.flatnonzero(slots == slot)
        matrix, mean = _evaluation(gtab.bvecs[members], b)
        own = matrix.astype(np.float32) @ harmonics[slot * N_SH : (slot + 1) * N_SH]
        own += np.float32(mean)
        np.maximum(own, 0, out=own)
        share = gtab.bvals[members] / b
        if not np.allclose(share, 1, atol=1e-4):
            own **= share.astype(np.float32)[:, None]
        signal[members] = own
    return np.asarray(signal[slots >= 0])


def _evaluation(directions: FloatArray, b: float) -> tuple[np.ndarray, float]:
    """(N, N_SH) from standardised harmonics to S/S0 less its prior mean at ``b``; that mean."""
    mean, spread = standard(b)
    return basis(directions, ORDER) * spread, mean


@dataclass(frozen=True, slots=True, eq=False)
class Residual:
    """What a prediction leaves of the data, in standard deviations of the noise."""

    voxels: FloatArray  #: (V,) root mean square over volumes
    volumes: FloatArray  #: (N',) root mean square over voxels


def residual(observed: FloatArray, predicted: FloatArray, deviation: float) -> Residual:
    """Of signals (N', V) and their prediction, for noise of standard ``deviation`` in their unit.

    NaN signals, which were not measured, do not count. Degrees of freedom are not counted: see
    ``expected_residual``.
    """
    square = np.square((observed - predicted) / np.float32(deviation), dtype=np.float32)
    known = np.isfinite(square)
    square[~known] = 0
    means = (square.sum(axis) / np.maximum(known.sum(axis), 1) for axis in (0, 1))
    voxels, volumes = (np.sqrt(mean, dtype=np.float32) for mean in means)
    return Residual(voxels, volumes)


def single_fibre(axes: FloatArray, gtab: GradientTable) -> np.ndarray:
    """S/S0 (N', V) of one fibre along ``axes`` (V, 3) in the volumes that have a slot.

    Of typical diffusivities, 1.6 µm²/ms along and 0.4 across: `shell_gain_corrected` makes it a
    voxel's own.
    """
    table = gtab[slots_of_volumes(gtab) >= 0]
    along = np.square(table.bvecs @ axes.T)
    return np.exp(-1e-3 * table.bvals[:, None] * (0.4 + 1.2 * along)).astype(np.float32)


class Restored(NamedTuple):
    """A run as a prediction restores it."""

    signal: np.ndarray  #: (N, V) its volumes
    share: np.ndarray  #: (V,) of data, in the finest detail
    deviation: float  #: of the noise of the data, in the unit of the signal


def restored_scan(
    signal: FloatArray,
    predicted: FloatArray,
    gtab: GradientTable,
    inside: BoolArray,
    size: FloatArray,
    noise: float,
) -> Restored:
    """A run as a prediction restores it, with what its noise turned out to be.

    ``signal`` (N, V) in any unit, b = 0 too, of the voxels ``inside`` (X, Y, Z) bool; their edges
    ``size`` (3,) in mm; ``predicted`` (N', V) the volumes that have a slot; ``noise`` the standard
    deviation of S/S0 as first estimated. What no slot describes stays. The scanner's noise is as
    strong in dark voxels as in bright ones, so all is done in the unit of the signal.
    """
    slots = slots_of_volumes(gtab)
    use = slots >= 0
    level = float(np.median(signal[gtab.b0].mean(0)))
    own = shell_gain_corrected(signal[use], predicted, slots[use], noise * level)
    deviation = level * float(np.sqrt(residual_noise_variance(signal, own, gtab, inside)))
    restored = signal.copy()
    restored[use], share = restored_volumes(
        signal[use], predicted, slots[use], deviation, inside, size
    )
    return Restored(restored, share, deviation)


def restored_volumes(
    observed: FloatArray,
    predicted: FloatArray,
    slots: NDArray[np.intp],
    deviation: float,
    inside: BoolArray,
    size: FloatArray,
) -> tuple[np.ndarray, np.ndarray]:
    """Signals (N', V) between prediction and data, and the data's share (V,) in the finest detail.

    ``slots`` (N',) tell the shells of the volumes apart; the rest as in `james_stein_shrinkage`.
    The prediction, and of what it leaves the scales that stand above the noise, say how the signal
    varies over directions; the voxel's own data how high and how strong (`shell_gain_corrected`):
    before, so that only another pattern counts as left over, and after, for what came back.
    """
    own = shell_gain_corrected(observed, predicted, slots, deviation)
    dof_used = 2 * len(np.unique(slots))
    between, share = james_stein_shrinkage(observed, own, deviation, inside, size, dof_used)
    return shell_gain_corrected(observed, between, slots, deviation), share


def shell_gain_corrected(
    observed: FloatArray, predicted: FloatArray, slots: NDArray[np.intp], deviation: float
) -> np.ndarray:
    """``predicted`` (N', V) after a gain and offset correction of each shell to ``observed``.

    It gets the mean and the strength of contrast of what was seen. What a network has not met it
    draws towards what is usual: too much anisotropy in a lesion, too little in healthy white
    matter. Both are one number a shell and voxel, which N' volumes tell far better than one
    direction. The factor is the least-squares one under a prior of 1 ± GAIN,
    so that where little varies nothing is scaled, and never negative.
    """
    result = np.empty_like(predicted)
    for slot in np.unique(slots):
        members = slots == slot
        seen, said = observed[members], predicted[members]
        contrast = said - said.mean(0)
        prior_weight = (deviation / GAIN) ** 2
        along = (seen * contrast).sum(0) + prior_weight
        factor = np.maximum(along / (np.square(contrast).sum(0) + prior_weight), 0)
        result[members] = seen.mean(0) + factor * contrast
    return result


def residual_noise_variance(
    signal: FloatArray, own: FloatArray, gtab: GradientTable, inside: BoolArray
) -> float:
    """Residual noise variance, σ² of S/S0, by what a gain-corrected prediction leaves.

    ``own`` (N', V) is the prediction, of the volumes with a slot, ``signal`` (N, V) of all volumes.
    As `map_noise`, but a prediction takes the anatomy off, which in large voxels is finer than the
    noise is strong, so that plain second differences do (`fine_variance`).
    """
    slots = slots_of_volumes(gtab)
    use = slots >= 0
    s0 = signal_at_zero(signal.T, gtab)
    left = np.zeros((int(use.sum()), *inside.shape), np.float32)
    left[:, inside] = (signal[use] - own) / np.median(s0)
    freedom = len(left) - 2 * len(np.unique(slots[use]))
    spatial = fine_variance(left, inside) * len(left) / max(1, freedom)
    weighted = ~gtab.b0
    if weighted.sum() < MIN_ANGULAR:
        return spatial
    floor = 1e-3 * float(np.median(s0))
    attenuation = np.clip(signal[weighted] / np.maximum(s0, floor), 0, 1.5)
    everywhere = np.ones(signal.shape[1], bool)
    return max(spatial, angular_noise(attenuation, everywhere, gtab[weighted], int(gtab.b0.sum())))


def james_stein_shrinkage(
    observed: FloatArray,
    predicted: FloatArray,
    deviation: float,
    inside: BoolArray,
    size: FloatArray,
    dof_used: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Multi-scale James–Stein shrinkage of signals (N', V) towards their prediction.

    And the data's share (V,) in the finest detail. ``inside`` (X, Y, Z) bool are the V voxels,
    their edges ``size`` (3,) mm. What the prediction leaves is divided into scales by Gaussian
    blurs, and of each scale the data get back by the positive-part estimator of James and Stein
    (1961): max(0, 1 - σ²/mean(r²)), σ² the noise of independent voxels in that scale, the mean over
    volumes and the 27 voxels around; what is smoother than the last blur comes back whole. Noise
    lives in the finest scale, what a network gets wrong in coarser ones too: there it is told from
    noise and taken back, so a network that has not met the like of a lesion cannot take it away.
    ``dof_used`` of a voxel's N' degrees of freedom have gone into the prediction.
    """
    from scipy.ndimage import uniform_filter

    left = observed - predicted
    widths = [fwhm / WIDTH / np.asarray(size) for fwhm in SCALES]
    weights = [_blurred(inside.astype(np.float32), width) for width in widths]

    def scales(values: FloatArray) -> list[np.ndarray]:
        volume = np.zeros(inside.shape, np.float32)
        volume[inside] = values
        layers = [values]
        for width, weight in zip(widths, weights, strict=True):
            layers.append((_blurred(volume, width) / np.maximum(weight, 1e-3))[inside])
        return [fine - coarse for fine, coarse in pairwise(layers)] + layers[-1:]

    # A volume's scales are made twice rather than those of all volumes kept at once.
    energy = np.zeros((len(SCALES), int(inside.sum())), np.float32)
    for values in left:
        energy += np.square(scales(values)[:-1]) / np.float32(max(1, len(left) - dof_used))
    voxels = uniform_filter(inside.astype(np.float32), 3, mode='constant')[inside]
    shares = np.ones((len(SCALES) + 1, energy.shape[1]), np.float32)
    for share, own, gain in zip(shares, energy, _noise_of_scales(widths), strict=False):
        volume = np.zeros(inside.shape, np.float32)
        volume[inside] = own
        near = uniform_filter(volume, 3, mode='constant')[inside] / voxels
        share[:] = np.clip(1 - gain * deviation**2 / np.maximum(near, 1e-12), 0, 1)
    back = np.stack([(shares * scales(values)).sum(0) for values in left])
    return predicted + back, shares[0]


def _blurred(volume: FloatArray, width: FloatArray) -> np.ndarray:
    """A Gaussian of standard deviation ``width`` (3,) voxels; nothing lies outside."""
    from scipy.ndimage import gaussian_filter

    return np.asarray(gaussian_filter(volume, width, mode='constant'))


def _noise_of_scales(widths: Sequence[FloatArray]) -> list[float]:
    """Variance of independent unit noise in each scale but the last."""
    half = int(np.ceil(5 * np.max(widths)))
    layers = [np.zeros((2 * half + 1,) * 3, np.float32)]
    layers[0][half, half, half] = 1
    layers += [_blurred(layers[0], width) for width in widths]
    return [float(np.square(fine - coarse).sum()) for fine, coarse in pairwise(layers)]


def expected_residual(gtab: GradientTable, variance: float) -> float:
    """Root mean square residual, over the noise, of harmonics to which nothing was corrected.

    They are a linear map H of S/S0 and follow part of its noise; what they leave of it is
    (I - H) C (I - H)ᵀ, C the noise's own covariance: 1 for each volume, and that of S0, which
    enters with the attenuation (the prior's mean here). A prediction that follows no noise leaves
    about 1, so between the two lies what a prediction that explains the data leaves.
    """
    slots = slots_of_volumes(gtab)
    mapping = canonical_map(gtab, variance)
    weighted = np.flatnonzero(~gtab.b0)
    left = np.eye(len(gtab))[:, weighted]
    for slot, b in mapping.b.items():
        members = np.flatnonzero(slots == slot)
        left[members] -= _evaluation(gtab.bvecs[members], b)[0] @ mapping.matrices[slot].matrix
    left = left[slots >= 0]
    mean, _ = prior(gtab.bvals[weighted], gtab.bvals[weighted])
    own, shared = np.square(left).sum(1), np.square(left @ mean) / gtab.b0.sum()
    return float(np.sqrt((own + shared).mean()))
