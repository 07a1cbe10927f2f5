"""From the phase of one echo or many to a field in Hz with its noise.

φ(TE) = φ₀ + 2π f TE: the phase offset φ₀ of the coils is found from two echoes and removed
(Eckstein et al., MRM 79:2996, 2018), the first echo is unwrapped in space, later ones by what the
ones before predict (Dymerska et al., MRM 85:2294, 2021), and the field is the line's slope, each
echo weighted by the inverse variance of its phase, |S|² / σ².
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from bidsapp.modalities.gre.physics.acquisition import check_times
from bidsapp.physics import brain
from bidsapp.physics.phase import TURN, radians, unwrap, wrapped
from bidsapp.problems import BadData

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bidsapp.core import BoolArray, FloatArray

#: mm; offsets of coils are smooth over as much.
OFFSET_MM = 6.0
#: How often what smoothing leaves of an offset is smoothed again.
ROUNDS = 4
#: Share of the range at each of its ends, and how full each is to be of what an even spread would
#: put there, for the ends of the range to be -π and π.
END, EVENLY = 0.02, 0.3
#: A step to a neighbour of so much of the range is a wrap, and this share of all steps is to be.
JUMP, JUMPS = 0.8, 2e-4
#: Mean cosine between slices, of the opposite sign, from which on they alternate.
OPPOSITE = 0.3
#: 1 - mean cosine of the even echoes' own phase from which on they are read backwards: 0.2 rad.
BACKWARDS = 0.02
#: A range of radians that fills less than this share of a turn says nothing of its ends.
WHOLE_TURN = 0.98


def phase_radians(phase: FloatArray) -> tuple[np.ndarray, str]:
    """The ``phase`` (E, X, Y, Z) of all echoes as written, in radians, and its scale in words.

    Where values fill a known scale (`physics.phase.radians`), it is that. Else a range at whose
    ends there are values, and between them steps from one voxel to the next, is one turn, whatever
    a header's slope has made of it: noise has every phase alike, and what wraps does so there.
    Values that are not finite have phase 0. Raises BadData for a constant and for a range that is
    neither.
    """
    finite = np.isfinite(phase)
    values = np.asarray(phase, float)[finite]
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 0.0)
    if low == high:
        raise BadData(
            f'Phase image: {low:g} in every voxel; phase between -π and π was expected. Check that '
            'the right image is named part-phase.'
        )
    filled = np.where(finite, phase, 0.0)
    turns = whole_turn(np.where(finite, phase, np.nan), low, high)
    if high - low > WHOLE_TURN * TURN or not turns:
        try:
            return radians(filled), f'{low:g} to {high:g}, a known scale'
        except BadData:
            if not turns:
                raise
    span = (high - low) * (1 + 1 / max(len(np.unique(values[:100_000])), 2))
    stretched = wrapped((filled - (low + high) / 2) * (TURN / span))
    return np.where(finite, stretched, 0.0), f'{low:g} to {high:g} taken for one turn'


def whole_turn(phase: FloatArray, low: float, high: float) -> bool:
    """Whether ``phase`` (…, X, Y, Z), NaN where it is unknown, wraps from ``low`` to ``high``."""
    values = phase[np.isfinite(phase)]
    counts, _ = np.histogram(values, round(1 / END), (low, high))
    even = (len(values) - counts.max()) / len(counts)  # the fullest may be a background
    steps = np.abs(np.diff(phase, axis=-3))
    jumps = (steps > JUMP * (high - low)).sum() / max(np.isfinite(steps).sum(), 1)
    return bool(min(counts[0], counts[-1]) > EVENLY * even and jumps > JUMPS)


def slices_turned_back(phase: FloatArray, magnitude: FloatArray) -> tuple[np.ndarray, bool]:
    """``phase`` (E, X, Y, Z) in radians without alternating slices, and whether it had them.

    Images from GE's real and imaginary parts may have the opposite sign in every other slice, half
    a turn: neighbours along the last axis then differ by about π wherever there is signal.
    """
    step = np.exp(1j * np.diff(phase, axis=-1))
    weight = magnitude[..., 1:] * magnitude[..., :-1]
    coherence = float((weight * step.real).sum() / max(float(weight.sum()), 1e-30))
    if coherence > -OPPOSITE:
        return phase, False
    slices = np.pi * (np.arange(phase.shape[-1]) % 2)
    return wrapped(phase + slices), True


@dataclass(frozen=True, slots=True, eq=False)
class Field:
    """The field of a multi-echo scan, (X, Y, Z) on its grid, 0 outside the mask."""

    hertz: FloatArray  #: above the scanner's frequency
    noise: FloatArray  #: Hz, standard deviation
    residual: FloatArray  #: what the line leaves of the phase, over its noise; 1 is noise alone
    unwrapped: FloatArray  #: (E, X, Y, Z) radians, less the offset
    sigma: float  #: of the signal in each channel, units of the magnitude


def total_field(
    phase: FloatArray,
    magnitude: FloatArray,
    echo_times: Sequence[float],
    mask: BoolArray,
    affine: FloatArray,
    bipolar: bool = False,
) -> Field:
    """The field by ``phase`` in radians and ``magnitude`` (E, X, Y, Z), within ``mask``.

    ``echo_times`` in s, rising. Of one echo the offset remains in the field, for background removal
    to take. ``bipolar``: even echoes are read backwards and have an offset of their own. Raises
    BadData for echo times that do not rise or are no seconds, and for two bipolar echoes.
    """
    times = np.asarray(echo_times, float)
    check_times(times, bipolar)
    signal = np.where(mask, magnitude * np.exp(1j * phase), 0)
    if len(times) > 1:
        signal = signal * np.exp(-1j * _offset(signal, times, mask, affine, 1 + bipolar))
    if bipolar:
        signal[1::2] *= np.exp(-1j * _even_offset(signal, times, mask, affine))
    unwrapped = unwrapped_echoes(signal, times, mask)
    power = np.abs(signal) ** 2
    t = times[:, None, None, None]
    weight = np.maximum((power * t**2).sum(0), np.finfo(float).tiny)
    slope = (power * t * unwrapped).sum(0) / weight
    misfit = (power * (unwrapped - slope * t) ** 2).sum(0)
    sigma = noise_of(np.abs(signal), mask, misfit)
    freedom = max(len(times) - 1, 1)
    return Field(
        hertz=np.where(mask, slope / TURN, 0),
        noise=np.where(mask, sigma / (TURN * np.sqrt(weight)), 0),
        residual=np.where(mask, np.sqrt(misfit / freedom) / max(sigma, 1e-30), 0),
        unwrapped=unwrapped,
        sigma=sigma,
    )


def read_backwards(
    phase: FloatArray,
    magnitude: FloatArray,
    echo_times: Sequence[float],
    mask: BoolArray,
    affine: FloatArray,
) -> bool:
    """Whether even echoes have an offset of their own, as of a bipolar readout; by three echoes.

    Echoes 1 and 3 predict the phase of echo 2 whatever the coils' offset is. Of fewer than three it
    cannot be told, and is taken not to be. Arguments as of `total_field`.
    """
    if len(echo_times) < 3:
        return False
    times = np.asarray(echo_times, float)
    signal = np.where(mask, magnitude * np.exp(1j * phase), 0)[:3]
    signal = signal * np.exp(-1j * _offset(signal, times, mask, affine, 2))
    power = np.abs(signal[1]) ** 2
    own = np.cos(_even_offset(signal, times, mask, affine))
    return bool(1 - (power * own).sum() / max(float(power.sum()), 1e-30) > BACKWARDS)


def weighting(magnitude: FloatArray, echo_times: Sequence[float]) -> tuple[np.ndarray, float]:
    """√(Σ |S|² TE² / Σ TE²) (X, Y, Z), and what the noise of the field in Hz is of σ over it.

    The noise of `total_field` is that factor times its σ over this magnitude.
    """
    times = np.asarray(echo_times, float)
    total = float((times**2).sum())
    power = (magnitude**2 * times[:, None, None, None] ** 2).sum(0) / total
    return np.sqrt(power), float(1 / (TURN * np.sqrt(total)))


def _offset(
    signal: np.ndarray, times: FloatArray, mask: BoolArray, affine: FloatArray, step: int
) -> np.ndarray:
    """(X, Y, Z) φ₀ = φ₁ - TE₁ / (TE₂ - TE₁) unwrap(φ₂ - φ₁), smooth; by echoes 1 and 1 + step."""
    difference = unwrap(np.angle(signal[step] * signal[0].conj()), mask)
    rate = times[0] / (times[step] - times[0])
    return _smooth_angle(signal[0] * np.exp(-1j * rate * difference), affine)


def _even_offset(
    signal: np.ndarray, times: FloatArray, mask: BoolArray, affine: FloatArray
) -> np.ndarray:
    """(X, Y, Z) phase of echo 2 that echoes 1 and 3 do not predict, smooth."""
    difference = unwrap(np.angle(signal[2] * signal[0].conj()), mask)
    rate = times[1] / (times[2] - times[0])
    return _smooth_angle(signal[1] * np.exp(-1j * rate * difference), affine)


def _smooth_angle(phasor: np.ndarray, affine: FloatArray) -> np.ndarray:
    """(X, Y, Z) the angle of ``phasor``, smoothed as a complex number.

    What the smoothing leaves is smoothed again: once alone it would level every curve, and at the
    surface, where neighbours are on one side only, every slope.
    """
    angle = np.zeros(phasor.shape)
    for _ in range(ROUNDS):
        left = phasor * np.exp(-1j * angle)
        real, imaginary = (
            brain.smoothed(part, affine, OFFSET_MM) for part in (left.real, left.imag)
        )
        angle += np.arctan2(imaginary, real)
    return angle


def unwrapped_echoes(signal: np.ndarray, times: FloatArray, mask: BoolArray) -> np.ndarray:
    """(E, X, Y, Z) phase of ``signal`` plus whole turns: the first echo by space, others by time.

    A later echo takes the turns that bring it nearest to the line through the ones before.
    """
    phase, power = np.angle(signal), np.abs(signal) ** 2
    found = [unwrap(phase[0], mask)]
    above = power[0] * times[0] * found[0]
    below = np.maximum(power[0] * times[0] ** 2, np.finfo(float).tiny)
    for own, weight, time in zip(phase[1:], power[1:], times[1:], strict=True):
        predicted = time * above / below
        found.append(np.where(mask, own + TURN * np.rint((predicted - own) / TURN), 0))
        above = above + weight * time * found[-1]
        below = below + weight * time**2
    return np.stack(found)


def noise_of(magnitude: FloatArray, mask: BoolArray, misfit: FloatArray) -> float:
    """The noise of each channel, in units of ``magnitude`` (E, X, Y, Z).

    Of three echoes and more by the median over the mask of ``misfit`` (X, Y, Z), Σ |S|² δφ², which
    over σ² has the distribution χ² of E - 1 degrees of freedom. Else by second differences of the
    last echo along the axis where they are least, which tissue's edges make too large if anything.
    """
    from scipy.stats import chi2

    if len(magnitude) >= 3:
        return float(np.sqrt(np.median(misfit[mask]) / chi2.median(len(magnitude) - 1)))
    inner, spreads = ndimage.binary_erosion(mask), []
    for axis in range(3):
        if mask.shape[axis] < 3:
            continue
        bend = ndimage.convolve1d(magnitude[-1], [1.0, -2.0, 1.0], axis) / np.sqrt(6)
        where = inner if inner.any() else mask
        spreads.append(1.4826 * np.median(np.abs(bend[where])))
    return float(min(spreads, default=0.0))


def residues(phase: FloatArray, mask: BoolArray) -> int:
    """How many open loops the wrapped ``phase`` (X, Y, Z) has around 2 × 2 voxels of ``mask``.

    Where there are none any way of unwrapping gives the same; they lie along lines that noise and
    strong fields leave (Cusack & Papadakis, NeuroImage 16:754, 2002).
    """
    count = 0
    for one, other in ((0, 1), (0, 2), (1, 2)):
        along, across = (wrapped(np.diff(phase, axis=axis)) for axis in (one, other))
        loop = np.diff(across, axis=one) - np.diff(along, axis=other)
        inside = mask
        for axis in (one, other):
            size = inside.shape[axis]
            inside = inside.take(range(size - 1), axis) & inside.take(range(1, size), axis)
        count += int((np.abs(loop[inside]) > np.pi).sum())
    return count
