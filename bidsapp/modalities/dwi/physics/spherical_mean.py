"""The multi-compartment spherical mean technique: neurite density whatever the orientations.

The mean signal over all directions does not depend on how fibres are oriented, cross or disperse.
With a share v of neurites (sticks of diffusivity λ) in tissue of axial diffusivity λ and radial
diffusivity λ(1 - v), the mean of a shell is (Kaden et al., NeuroImage 2016)

    ē(b) = v h(bλ) + (1 - v) exp(-bλ(1 - v)) h(bλv),    h(x) = ∫₀¹ exp(-x t²) dt.

v, λ and S0 are fitted by least squares: the best of a table, then damped Gauss-Newton steps.
Within this module diffusivities are in µm²/ms and b in ms/µm² (1 = 1000 s/mm²).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import pi, sqrt
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from bidsapp.modalities.dwi.physics.acquisition import acquisition
from bidsapp.modalities.dwi.physics.harmonics import basis, largest_order
from bidsapp.modalities.dwi.physics.qspace import covariance
from bidsapp.problems import Unavailable

if TYPE_CHECKING:
    from bidsapp.core import BoolArray, FloatArray
    from bidsapp.modalities.dwi.physics.acquisition import Acquisition
    from bidsapp.modalities.dwi.physics.gradients import GradientTable

#: A shell counts with at least this b (s/mm²) and so many directions.
MIN_B, MIN_DIRECTIONS = 500.0, 12
#: The highest shell must have this many times the b of the lowest that counts.
CONTRAST = 1.5
#: µm²/ms; λ lies between these. The greatest is that of free water.
LEAST_DIFFUSIVITY, MOST_DIFFUSIVITY = 0.1, 3.0


#: The mean magnitude of noise alone, in units of its standard deviation.
FLOOR = sqrt(pi / 2)
#: Above this ratio of signal to noise the mean magnitude is sqrt(signal² + σ²).
_HIGH = 12.0
#: Volumes for each harmonic that signals are smoothed with: what is left over tells the noise.
_VOLUMES_A_HARMONIC = 1.5
#: Variance of S/S0 by noise that the mean over few directions allows for.
_NOISE = 1e-4
#: The variance of a magnitude without signal, in units of the noise's.
LEAST_VARIANCE = 2 - pi / 2
#: Steps in v and in λ of the table; Gauss-Newton steps from its best.
_TABLE, _STEPS = 48, 8
#: Of S0; less noise than this is none.
_LEAST_SIGMA = 1e-6
#: Voxels fitted together.
_CHUNK = 2000


@dataclass(frozen=True, slots=True, eq=False)
class SphericalMean:
    """Maps on a grid, all zero outside the mask. Free water is ``icvf`` 0, 3e-3 mm²/s."""

    icvf: FloatArray  #: (X, Y, Z) float32, neurites' share, 0 to 1
    diffusivity: FloatArray  #: (X, Y, Z) float32, mm²/s, along neurites


def supports_smt(facts: Acquisition) -> str | None:
    """Why an acquisition cannot tell neurite density from diffusivity; None if it can."""
    usable = [b for b, n in facts.shells if b >= MIN_B and n >= MIN_DIRECTIONS]
    if len(usable) >= 2 and usable[-1] >= CONTRAST * usable[0]:
        return None
    listing = ', '.join(f'{n} directions at b = {b:.0f}' for b, n in facts.shells) or 'nothing'
    return (
        f'neurite density needs two shells of b >= {MIN_B:.0f} s/mm², the higher at least '
        f'{CONTRAST:g} times the lower, with {MIN_DIRECTIONS} directions each; found {listing}'
    )


def fit_smt(
    data: FloatArray,
    gtab: GradientTable,
    mask: BoolArray,
    device: str = 'cpu',
    sigma: FloatArray | float | None = None,
) -> SphericalMean:
    """Neurite density and diffusivity in ``mask`` (X, Y, Z) from signals (X, Y, Z, N), any unit.

    The axes of ``gtab`` do not matter. ``sigma``, a number or (X, Y, Z) in the unit of ``data``,
    is the noise that the magnitude was taken of: give it where ``data`` was denoised since;
    without it each voxel's own residuals tell. Voxels whose signal is not finite or whose S0 is
    not positive stay zero. Raises Unavailable where ``supports_smt`` gives a reason.
    """
    if (reason := supports_smt(acquisition(gtab))) is not None:
        raise Unavailable(reason)
    scale = data[..., gtab.b0].mean(-1) if gtab.b0.any() else data.max(-1)
    inside = np.asarray(mask, bool) & np.isfinite(data).all(-1) & (scale > 0)
    groups = [_Shell.of(gtab, members, device) for _, members in _usable(gtab)]
    unweighted = float(gtab.bvals[gtab.b0].mean()) if gtab.b0.any() else 0.0
    b = torch.tensor([unweighted / 1000, *(b / 1000 for b, _ in _usable(gtab))], device=device)
    counts = torch.tensor([float(gtab.b0.sum()), *(len(s.volumes) for s in groups)], device=device)
    noise = None if sigma is None else np.broadcast_to(sigma, inside.shape)
    maps = np.zeros((*inside.shape, 2), np.float32)
    voxels = np.flatnonzero(inside)
    for first in range(0, len(voxels), _CHUNK):
        at = np.unravel_index(voxels[first : first + _CHUNK], inside.shape)
        relative = np.asarray(data[at] / scale[at][:, None], np.float32)
        level = None if noise is None else torch.tensor(noise[at] / scale[at], device=device)
        means = _shell_means(torch.from_numpy(relative).to(device), groups, level)
        maps[at] = _fit(means, b, counts.sqrt()).cpu().numpy()
    return SphericalMean(maps[..., 0], maps[..., 1] * np.float32(1e-3))


def _usable(gtab: GradientTable) -> list[tuple[float, np.ndarray]]:
    """(b, volumes) of the shells that count."""
    kept = gtab.shells()
    return [(b, at) for b, at in kept if b >= MIN_B and len(at) >= MIN_DIRECTIONS]


@dataclass(frozen=True, slots=True, eq=False)
class _Shell:
    """The volumes of a shell of n directions, smoothed and averaged."""

    volumes: Tensor  #: (n,)
    smooth: Tensor  #: (n, n) what harmonics keep of a signal
    average: Tensor  #: (n,) weights of the mean over the sphere; they sum to 1
    spare: int  #: directions beyond the harmonics

    @classmethod
    def of(cls, gtab: GradientTable, members: np.ndarray, device: str) -> _Shell:
        """The shell of the volumes ``members`` of ``gtab``.

        Of all weights that sum to 1, those of ``average`` leave the least error of the mean for
        the signals that qspace expects at this b (kriging), however uneven the directions are.
        """
        table, n = gtab[members], len(members)
        harmonics = basis(table.bvecs, largest_order(int(n / _VOLUMES_A_HARMONIC)))
        smooth = harmonics @ np.linalg.pinv(harmonics)
        average = np.linalg.solve(covariance(table, table)[1] + _NOISE * np.eye(n), np.ones(n))
        arrays = (members, smooth.astype(np.float32), (average / average.sum()).astype(np.float32))
        at, kept, weights = (torch.from_numpy(array).to(device) for array in arrays)
        return cls(at, kept, weights, n - harmonics.shape[1])


def _shell_means(observed: Tensor, groups: list[_Shell], sigma: Tensor | None) -> Tensor:
    """(V, 1 + S) mean over the sphere of S/S0 (V, N), first 1 for S0, noise's floor taken off."""
    kept = [observed[:, s.volumes] @ s.smooth.T for s in groups]
    if sigma is None:
        sigma = _noise(observed, kept, groups)
    sigma = sigma.to(observed).clamp(min=_LEAST_SIGMA)[:, None]
    signals = [without_floor(k, sigma) for k in kept]
    means = [signal @ s.average for signal, s in zip(signals, groups, strict=True)]
    return torch.stack([torch.ones_like(means[0]), *means], 1)


def _noise(observed: Tensor, kept: list[Tensor], groups: list[_Shell]) -> Tensor:
    """(V,) noise level that explains what of S/S0 the harmonics do not keep.

    A magnitude near the floor varies less than its noise does (Koay and Basser 2006), which is
    accounted for with the level found before.
    """
    pairs = list(zip(groups, kept, strict=True))
    left = torch.stack([(observed[:, s.volumes] - k).square().sum(1) for s, k in pairs]).sum(0)
    variance = left / sum(s.spare for s in groups)
    for _ in range(2):
        level = variance.sqrt().clamp(min=_LEAST_SIGMA)[:, None]
        share = [
            s.spare
            * (2 + (without_floor(k, level) ** 2 - k**2) / level**2)
            .clamp(LEAST_VARIANCE, 1)
            .mean(1)
            for s, k in pairs
        ]
        variance = left / torch.stack(share).sum(0)
    return variance.sqrt()


def mean_magnitude(signal: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Mean magnitude of ``signal`` with complex noise of ``sigma``, and its slope (Rice 1944)."""
    u = (signal / sigma) ** 2 / 4
    i0, i1 = torch.special.i0e(u), torch.special.i1e(u)
    slope = sqrt(pi / 8) * (signal / sigma) * (i0 + i1)
    return FLOOR * sigma * ((1 + 2 * u) * i0 + 2 * u * i1), slope


def without_floor(magnitude: Tensor, sigma: Tensor) -> Tensor:
    """The signal whose mean magnitude is ``magnitude``; 0 where that is below noise alone."""
    ratio = magnitude / sigma
    table = _inverse_magnitude().to(ratio)
    place = (ratio - FLOOR).clamp(0, _HIGH) * ((len(table) - 1) / _HIGH)
    left = place.long().clamp(max=len(table) - 2)
    near = torch.lerp(table[left], table[left + 1], place - left)
    far = (ratio**2 - 1).clamp(min=0).sqrt()
    return sigma * torch.where(ratio < FLOOR + _HIGH, near, far)


@cache
def _inverse_magnitude() -> Tensor:
    """Signal for mean magnitudes from FLOOR to FLOOR + _HIGH, evenly spaced, noise 1."""
    signal = torch.linspace(0, _HIGH + 2, 20001, dtype=torch.float64)
    magnitude, _ = mean_magnitude(signal, torch.ones_like(signal))
    even = np.linspace(FLOOR, FLOOR + _HIGH, 1001)
    return torch.from_numpy(np.interp(even, magnitude.numpy(), signal.numpy()))


def _stick_mean(x: Tensor) -> tuple[Tensor, Tensor]:
    """h(x) = ∫₀¹ exp(-x t²) dt = √π erf(√x) / (2√x) and its slope, for x ≥ 0."""
    x = x.clamp(min=1e-4)
    root = x.sqrt()
    value = sqrt(pi) / 2 * torch.erf(root) / root
    return value, (torch.exp(-x) - value) / (2 * x)


def _model(v: Tensor, diffusivity: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """ē (V, S) and its slopes by v and λ, for v and λ (V,) and b (S,)."""
    v, s = v[:, None], b * diffusivity[:, None]
    stick, stick_slope = _stick_mean(s)
    along, along_slope = _stick_mean(s * v)
    across = torch.exp(-s * (1 - v))
    outer = (1 - v) * across
    by_v = stick - across * along + outer * s * (along + along_slope)
    by_s = v * stick_slope + outer * (v * along_slope - (1 - v) * along)
    return v * stick + outer * along, by_v, by_s * b


def _fit(means: Tensor, b: Tensor, weights: Tensor) -> Tensor:
    """(V, 2) v and λ for ``means`` (V, S) at ``b`` (S,), whose noise is as 1 / ``weights``."""
    means, b, weights = means.double(), b.double(), weights.double()
    observed = means * weights
    parameters = _nearest(observed, b, weights)
    low = parameters.new_tensor([0.0, LEAST_DIFFUSIVITY, 0.0])
    high = parameters.new_tensor([1.0, MOST_DIFFUSIVITY, torch.inf])
    damping = torch.full((len(means), 1), 1e-4, dtype=torch.float64, device=means.device)
    residual, jacobian = _compare(parameters, observed, b, weights)
    for _ in range(_STEPS):
        gradient = (jacobian.mT @ residual[..., None])[..., 0]
        beyond = (parameters <= low) & (gradient < 0) | (parameters >= high) & (gradient > 0)
        free = (~beyond).double()
        normal = jacobian.mT @ jacobian * free[:, :, None] * free[:, None]
        diagonal = normal.diagonal(dim1=1, dim2=2) * damping + 1e-12 + (1 - free)
        step = torch.linalg.solve(normal + torch.diag_embed(diagonal), gradient * free)
        trial = (parameters + step).clamp(low, high)
        trial_residual, trial_jacobian = _compare(trial, observed, b, weights)
        lower = trial_residual.square().sum(1, True) < residual.square().sum(1, True)
        parameters = torch.where(lower, trial, parameters)
        residual = torch.where(lower, trial_residual, residual)
        jacobian = torch.where(lower[..., None], trial_jacobian, jacobian)
        damping = torch.where(lower, damping / 5, damping * 8)
    return parameters[:, :2]


def _compare(
    parameters: Tensor, observed: Tensor, b: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Weighted residuals (V, S) of v, λ, S0 (V, 3), and the slopes (V, S, 3) of the model."""
    v, diffusivity, s0 = parameters.unbind(1)
    mean, by_v, by_d = (a * weights for a in _model(v, diffusivity, b))
    s0 = s0[:, None]
    return observed - s0 * mean, torch.stack([s0 * by_v, s0 * by_d, mean], -1)


def _nearest(observed: Tensor, b: Tensor, weights: Tensor) -> Tensor:
    """(V, 3) v, λ and S0 of the nearest entry of a table, S0 by least squares."""
    v = torch.linspace(0.01, 0.99, _TABLE, dtype=b.dtype, device=b.device)
    diffusivity = torch.linspace(
        LEAST_DIFFUSIVITY, MOST_DIFFUSIVITY, _TABLE, dtype=b.dtype, device=b.device
    )
    entries = torch.cartesian_prod(v, diffusivity)
    signals = _model(entries[:, 0], entries[:, 1], b)[0] * weights
    lengths = torch.linalg.norm(signals, dim=1)
    along, best = (observed @ (signals / lengths[:, None]).T).max(1)
    return torch.cat([entries[best], (along / lengths[best])[:, None]], 1)
