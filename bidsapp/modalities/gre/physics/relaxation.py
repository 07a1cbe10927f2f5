"""R2* and T2* from the magnitudes of several echoes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bidsapp.core import BoolArray, FloatArray

#: Steps of Gauss-Newton from the logarithm's line.
STEPS = 6
#: 1/s; faster decay is gone before the second echo.
FASTEST = 1000.0


def r2star(
    magnitude: FloatArray, echo_times: Sequence[float], mask: BoolArray, sigma: float
) -> np.ndarray:
    """R2* (X, Y, Z) in 1/s from ``magnitude`` (E, X, Y, Z), two echoes or more; 0 outside ``mask``.

    First the line of log |S| over TE with weights |S|², which are its inverse variances; of two
    echoes it is their ratio. Then, from three echoes on, the squared signal with its noise floor,
    E |S|² = A² exp(-2 R2* TE) + 2 σ² (Miller & Joseph, Magn Reson Imaging 11:1051, 1993), by
    Gauss-Newton with the weights that the model predicts. ``sigma`` is the noise of each channel.
    """
    times = np.asarray(echo_times, float)
    if len(times) < 2:
        raise ValueError('R2* needs two echoes')
    signal = np.asarray(magnitude, float)[:, mask]  # (E, N)
    t = times[:, None]
    power = np.maximum(signal, 1e-6 * signal.max()) ** 2
    level, rate = _line(np.log(power) / 2, power, t)
    floor = 2 * sigma**2
    for _ in range(STEPS if len(times) > 2 else 0):
        decay = np.exp(2 * (level - rate * t))
        expected = decay + floor
        # The variance of |S|² is 4 σ² (decay + σ²); its logarithm's derivatives are the model's.
        weight = decay**2 / (decay + floor / 2)
        step_level, step_rate = _line((signal**2 - expected) / (2 * decay), weight, t)
        level, rate = level + np.clip(step_level, -1, 1), rate + np.clip(step_rate, -50, 50)
        rate = np.clip(rate, 0, FASTEST)
    found = np.zeros(mask.shape)
    found[mask] = np.clip(rate, 0, FASTEST)
    return found


def _line(y: FloatArray, weight: FloatArray, t: FloatArray) -> tuple[np.ndarray, np.ndarray]:
    """Level and falling slope (N,) of y (E, N) over t (E, 1) by weighted least squares."""
    total = np.maximum(weight.sum(0), np.finfo(float).tiny)
    middle, mean = (weight * t).sum(0) / total, (weight * y).sum(0) / total
    spread = np.maximum((weight * (t - middle) ** 2).sum(0), np.finfo(float).tiny)
    slope = (weight * (t - middle) * (y - mean)).sum(0) / spread
    return mean - slope * middle, -slope


def t2star(rate: FloatArray) -> np.ndarray:
    """T2* in s, 0 where R2* is."""
    return np.where(rate > 0, 1 / np.maximum(rate, 1 / FASTEST), 0.0)
