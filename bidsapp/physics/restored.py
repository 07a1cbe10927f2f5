"""From the harmonics of the canonical input back to the volumes of a scan, and what is left over.

Harmonics (slots · N_SH, V) are those of ``qspace``: slot after slot, deviations from the prior mean
in units of the prior's standard deviation. Tables hold all volumes of a run, b = 0 too, in the axes
that the harmonics are in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bidsapp.physics.harmonics import basis, degrees
from bidsapp.physics.qspace import (
    N_SH,
    ORDER,
    canonical_map,
    filled_slots,
    prior,
    prior_deviation,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bidsapp.core import BoolArray, FloatArray, GradientTable

#: A volume is described by the harmonics of a slot if its b is that of the slot within this share.
B_TOLERANCE = 0.05
#: Standard deviation of the factor by which a prediction misses the strength of a voxel's contrast.
GAIN = 0.3


def slots_of_volumes(gtab: GradientTable) -> NDArray[np.intp]:
    """(N,) the slot whose harmonics describe each volume; -1 for b = 0 and other shells."""
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
    spread = prior_deviation(b)[degrees(ORDER) // 2]
    mean, _ = prior(np.array([b]), np.array([b]))
    return basis(directions, ORDER) * spread, float(mean[0])


@dataclass(frozen=True, slots=True, eq=False)
class Residual:
    """What a prediction leaves of the data, in standard deviations of the noise."""

    voxels: FloatArray  #: (V,) root mean square over volumes
    volumes: FloatArray  #: (N',) root mean square over voxels


def residual(observed: FloatArray, predicted: FloatArray, deviation: float) -> Residual:
    """Of signals (N', V) and their prediction, for noise of standard ``deviation`` in their unit.

    Degrees of freedom are not counted: see ``expected_residual``.
    """
    square = np.square((observed - predicted) / np.float32(deviation), dtype=np.float32)
    return Residual(np.sqrt(square.mean(0)), np.sqrt(square.mean(1)))


def restored_volumes(
    observed: FloatArray,
    predicted: FloatArray,
    slots: NDArray[np.intp],
    deviation: float,
    inside: BoolArray,
) -> tuple[np.ndarray, np.ndarray]:
    """Signals (N', V) between prediction and data, and the share (V,) of the data in them.

    ``slots`` (N',) tell the shells of the volumes apart, ``inside`` (X, Y, Z) bool are the V
    voxels. The prediction says how the signal varies over directions, the voxel's own data how
    high and how strong (`matched`); of what is then left the data get what stands above the noise
    (`weighed`).
    """
    own = matched(observed, predicted, slots, deviation)
    return weighed(observed, own, deviation, inside, spent=2 * len(np.unique(slots)))


def matched(
    observed: FloatArray, predicted: FloatArray, slots: NDArray[np.intp], deviation: float
) -> np.ndarray:
    """``predicted`` (N', V) with the mean and the strength of contrast of ``observed``, a shell.

    What a network has not met it draws towards what is usual: too much anisotropy in a lesion, too
    little in healthy white matter. Both are one number a shell and voxel, which N' volumes tell
    far better than one direction. The factor is the least-squares one under a prior of 1 ± GAIN,
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


def weighed(
    observed: FloatArray,
    predicted: FloatArray,
    deviation: float,
    inside: BoolArray,
    spent: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Signals (N', V) between prediction and data, and the share (V,) of the data in them.

    ``inside`` (X, Y, Z) bool are the V voxels. The positive-part estimator of James and Stein
    (1961), which draws data towards a guess g by r = data - g: g + max(0, 1 - σ²/mean(r²)) r. In
    squared error it beats the data whatever the guess is, so a network that has not met the like
    of a lesion cannot take it away: what it leaves unexplained stands above the noise and comes
    back. The mean is over the volumes of a voxel and its 26 neighbours in the brain; ``spent`` of
    a voxel's N' degrees of freedom have gone into the guess.
    """
    from scipy.ndimage import uniform_filter

    left = observed - predicted
    freedom = max(1, len(left) - spent)
    square = np.zeros(inside.shape, np.float32)
    square[inside] = np.square(left / np.float32(deviation)).sum(0) / freedom
    near = uniform_filter(square, 3, mode='constant')[inside]
    near /= uniform_filter(inside.astype(np.float32), 3, mode='constant')[inside]
    share = np.clip(1 - 1 / np.maximum(near, 1e-6), 0, 1)
    return predicted + share * left, share


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
