"""Q-space: one closed-form linear map from any gradient table to a fixed set of channels.

The signal of a voxel is treated as a sample of a Gaussian process over (b, direction) whose mean
and covariance are those of a dictionary of axially symmetric tensors, orientations uniform on the
sphere (source paper 2 interpolates through a dictionary; here the dictionary is the prior, so the
interpolation is one matrix and comes with its variance). With orientations uniform, the
covariance between two measurements depends on their b-values and the angle between them only:

    K(b, g; b', g') = Σ_l k_l(b, b') P_l(g·g')

so it is rotation-equivariant by construction. All frames are the caller's: directions in, and
spherical harmonics out, share the axes of the table.

Over 300 lines, for prior, map and the channels that it fills are one derivation.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from bidsapp.modalities.dwi.physics import fixed_response_fod, log_tensor
from bidsapp.modalities.dwi.physics.harmonics import (
    basis,
    degrees,
    fibonacci_hemisphere,
    largest_order,
    legendre,
    n_coefficients,
    zonal_coefficients,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from bidsapp.core import BoolArray, FloatArray
    from bidsapp.modalities.dwi.physics.gradients import GradientTable

#: Lower and upper b (s/mm²) of the b-value bins (slots) of the canonical input; the ends take what
#: lies beyond.
SLOTS = ((700.0, 1300.0), (1300.0, 2300.0), (2300.0, 3300.0))
#: Order of the spherical harmonics in each bin, and how many coefficients that is.
ORDER = 6
N_SH = n_coefficients(ORDER)
#: Channels of a bin: harmonics, then filled?, predictive standard deviation, log(b / 1000).
SLOT_CHANNELS = N_SH + 3
#: Channels of the canonical input: the bins, then S0 (z-scored in the brain), log voxel size, and
#: the density of fibres by deconvolution of the slots (`physics.fixed_response_fod`), mass 1 as 1.
S0_CHANNEL = len(SLOTS) * SLOT_CHANNELS
SIZE_CHANNELS = slice(S0_CHANNEL + 1, S0_CHANNEL + 4)
DENSITY_CHANNELS = slice(SIZE_CHANNELS.stop, SIZE_CHANNELS.stop + fixed_response_fod.N)
#: Channels that models made before did not have; theirs are the first ones, as they were: the
#: tensor in the log domain (`physics.log_tensor`), and how strong the noise is.
TENSOR_CHANNELS = slice(DENSITY_CHANNELS.stop, DENSITY_CHANNELS.stop + log_tensor.N)
NOISE_CHANNEL = TENSOR_CHANNELS.stop
N_CHANNELS = NOISE_CHANNEL + 1
#: What a network must know of it.
LAYOUT = {
    'slots': len(SLOTS), 'slot_channels': SLOT_CHANNELS, 'harmonics': N_SH,
    'density': fixed_response_fod.N, 'appended': N_CHANNELS - DENSITY_CHANNELS.stop,
}  # fmt: skip
#: Decades of the noise's standard deviation: the one that is 0 in its channel, and those to 1.
USUAL_NOISE, NOISE_SPREAD = -1.3, 0.5
#: mm; the voxel size whose logarithm is 0.
USUAL_VOXEL = 2.0


#: (axial, radial) diffusivity in µm²/ms and weight of the prior's single-fibre atoms.
_ZEPPELINS = ((1.7, 0.2), (1.7, 0.5), (1.3, 0.3), (2.0, 0.3), (2.2, 0.7), (1.2, 0.7))
#: Isotropic diffusivities of the prior, µm²/ms.
_BALLS = (0.3, 0.6, 0.8, 1.0, 1.5, 2.2, 3.0)


@cache
def _quadrature() -> tuple[np.ndarray, np.ndarray]:
    nodes, weights = np.polynomial.legendre.leggauss(64)
    return nodes, weights


@cache
def _mixtures() -> np.ndarray:
    """(M, A) volume fractions of the prior's voxels over zeppelins then balls; rows sum to 1.

    A fixed, seeded draw: fibre content from none to all, the rest isotropic. It states how much
    of the variance is anisotropy (voxels with one zeppelin population) and how much is diffusivity.
    """
    rng = np.random.default_rng(0)
    n = 512
    zeppelin = np.eye(len(_ZEPPELINS))[rng.integers(len(_ZEPPELINS), size=n)]
    ball = rng.dirichlet(np.full(len(_BALLS), 0.5), size=n)
    fibre = rng.beta(0.7, 0.7, size=(n, 1))
    return np.hstack([fibre * zeppelin, (1 - fibre) * ball])


def _atoms(bvals: FloatArray) -> np.ndarray:
    """(A, B, L) Legendre coefficients of each atom's attenuation at each b (s/mm²)."""
    nodes, weights = _quadrature()
    b = np.asarray(bvals, float)[:, None] * 1e-3
    zeppelins = [np.exp(-b * (r + (a - r) * nodes**2)) for a, r in _ZEPPELINS]
    balls = [np.exp(-b * d) * np.ones_like(nodes) for d in _BALLS]
    return zonal_coefficients(np.stack(zeppelins + balls), nodes, weights)


def prior(b: FloatArray, b_other: FloatArray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (B,) of the attenuation at ``b`` and covariance coefficients k_l (B, B', L)."""
    own = np.einsum('ma,abl->mbl', _mixtures(), _atoms(b))
    other = np.einsum('ma,abl->mbl', _mixtures(), _atoms(b_other))
    mean, mean_other = own[..., 0].mean(0), other[..., 0].mean(0)
    own = own.copy()
    other = other.copy()
    own[..., 0] -= mean
    other[..., 0] -= mean_other
    # Averaging a_l P_l(g·u) · a_l' P_l'(g'·u) over all u leaves P_l(g·g') / (2 l + 1).
    degree = np.arange(0, 2 * own.shape[-1], 2)
    return mean, np.einsum('mbl,mcl->bcl', own, other) / len(own) / (2 * degree + 1)


def covariance(gtab: GradientTable, other: GradientTable) -> tuple[np.ndarray, np.ndarray]:
    """Prior mean (N,) and covariance (N, N') of attenuation between two weighted tables."""
    b, row = np.unique(gtab.bvals, return_inverse=True)
    b_other, column = np.unique(other.bvals, return_inverse=True)
    mean, coefficients = prior(b, b_other)
    mean, coefficients = mean[row], coefficients[row][:, column]
    polynomials = legendre(8, np.clip(gtab.bvecs @ other.bvecs.T, -1, 1))
    return mean, np.einsum('nml,nml->nm', coefficients, polynomials)


def noise_covariance(n_weighted: int, n_b0: int, variance: float) -> np.ndarray:
    """(N, N) covariance of the noise of S/S0: its own, and that of the S0 which all share."""
    return np.asarray(variance * (np.eye(n_weighted) + np.ones((n_weighted, n_weighted)) / n_b0))


@dataclass(frozen=True, slots=True, eq=False)
class LinearMap:
    """x ↦ matrix · (x - centre) + offset, from attenuation (N, …) to (M, …)."""

    matrix: FloatArray
    centre: FloatArray
    offset: FloatArray
    variance: FloatArray  #: (M,) predictive variance of each output

    def __call__(self, attenuation: FloatArray) -> np.ndarray:
        """Apply to the first axis."""
        flat = attenuation.reshape(len(attenuation), -1)
        constant = self.offset - self.matrix @ self.centre
        mapped = self.matrix.astype(flat.dtype) @ flat + constant.astype(flat.dtype)[:, None]
        return np.asarray(mapped.reshape(-1, *attenuation.shape[1:]))


def interpolation(
    source: GradientTable, target: GradientTable, variance: float, n_b0: int = 1
) -> LinearMap:
    """Attenuation on ``source`` (weighted volumes only) → expected attenuation on ``target``.

    E_t = m_t + K_ts (K_ss + σ²(I + 11ᵀ/n_b0))⁻¹ (E_s - m_s); ``variance`` is σ², about 1/SNR².
    """
    mean_s, k_ss = covariance(source, source)
    mean_t, k_ts = covariance(target, source)
    _, k_tt = covariance(target, target)
    k_ss = k_ss + noise_covariance(len(source), n_b0, variance) + 1e-8 * np.eye(len(source))
    matrix = np.linalg.solve(k_ss, k_ts.T).T
    return LinearMap(matrix, mean_s, mean_t, np.diag(k_tt) - np.einsum('ts,ts->t', matrix, k_ts))


def leave_one_out(source: GradientTable, variance: float, n_b0: int = 1) -> LinearMap:
    """Each weighted volume predicted from all the others, as one (N, N) map with zero diagonal.

    With A = (K + noise)⁻¹ the prediction errors are (A x)_i / A_ii, hence I - diag(A)⁻¹ A.
    """
    mean, k = covariance(source, source)
    noise = noise_covariance(len(source), n_b0, variance) + 1e-8 * np.eye(len(source))
    inverse = np.linalg.inv(k + noise)
    scale = np.diag(inverse)
    matrix = np.eye(len(source)) - inverse / scale[:, None]
    return LinearMap(matrix, mean, mean, 1 / scale)


def slot_of(b: float) -> int:
    """Which b-value bin (slot) a shell belongs to; beyond the ends it is the nearest."""
    return sum(b >= lower for lower, _ in SLOTS[1:])


def in_two_ranges(shells: Iterable[float]) -> bool:
    """Whether shells (s/mm²) lie in two of the ranges of b, so that a network sees two."""
    return len({slot_of(b) for b in shells}) >= 2


def filled_slots(gtab: GradientTable) -> dict[int, float]:
    """b-value bin (slot) → the b (s/mm²) that stands for it: most volumes, then highest."""
    best: dict[int, tuple[int, float]] = {}
    for b, members in gtab.shells():
        slot = slot_of(b)
        best[slot] = max(best.get(slot, (0, 0.0)), (len(members), b))
    return {slot: b for slot, (_, b) in sorted(best.items())}


@dataclass(frozen=True, slots=True, eq=False)
class CanonicalMap:
    """How one scan's attenuation becomes the canonical channels."""

    matrices: dict[int, LinearMap]  #: slot → map to standardised harmonics
    b: dict[int, float]
    deviation: dict[int, float]  #: slot → predictive s.d. of attenuation, as a share of the prior's


def canonical_map(gtab: GradientTable, variance: float) -> CanonicalMap:
    """The map for one table in the axes of the grid (all volumes, b0 too).

    Harmonics are divided by their prior standard deviation at that b, one number a degree, so
    that every channel has a comparable scale and rotations still act as on harmonics.
    """
    weighted, n_b0 = gtab[~gtab.b0], int(gtab.b0.sum())
    directions = fibonacci_hemisphere(200)
    to_sh = np.linalg.pinv(basis(directions, ORDER))
    matrices, deviation = {}, {}
    b_of_slot = filled_slots(gtab)
    for slot, b in b_of_slot.items():
        target = type(gtab)(directions, np.full(len(directions), b))
        on_sphere = interpolation(weighted, target, variance, n_b0)
        _, spread = standard(b)
        matrix = (to_sh / spread[:, None]) @ on_sphere.matrix
        nothing = np.zeros(N_SH)  # harmonics stand as deviations from the prior mean
        matrices[slot] = LinearMap(matrix, on_sphere.centre, nothing, nothing)
        prior_variance = np.diag(covariance(target, target)[1]).mean()
        deviation[slot] = float(np.sqrt(max(on_sphere.variance.mean(), 0) / prior_variance))
    return CanonicalMap(matrices, b_of_slot, deviation)


def prior_deviation(b: float) -> np.ndarray:
    """(ORDER/2 + 1,) prior standard deviation of a harmonic coefficient of each degree at ``b``.

    K = Σ k_l P_l and P_l(g·g') = 4π/(2l+1) Σ_m Y Y, so each coefficient varies by 4π k_l/(2l+1).
    """
    _, k = prior(np.array([b]), np.array([b]))
    degree = np.arange(0, ORDER + 1, 2)
    variance = 4 * np.pi * k[0, 0, : len(degree)] / (2 * degree + 1)
    return np.asarray(np.sqrt(np.maximum(variance, 1e-8)))


@cache
def standard(b: float) -> tuple[float, np.ndarray]:
    """What canonical harmonics at ``b`` are standardised by, a priori.

    The mean of S/S0, and (N_SH,) the standard deviations of its harmonics.
    """
    mean, _ = prior(np.array([b]), np.array([b]))
    spread = prior_deviation(b)[degrees(ORDER) // 2]
    spread.flags.writeable = False
    return float(mean[0]), spread


def of_signal(harmonics: FloatArray, b: float) -> np.ndarray:
    """Harmonics (N_SH, …) of S/S0 itself from canonical ones at ``b``, which are standardised."""
    mean, spread = standard(b)
    natural = harmonics * spread.reshape(-1, *[1] * (harmonics.ndim - 1)).astype(harmonics.dtype)
    natural[0] += mean * np.sqrt(4 * np.pi)
    return np.asarray(natural)


def canonical_channels(
    attenuation: FloatArray,
    s0: FloatArray,
    mask: BoolArray,
    gtab: GradientTable,
    variance: float,
    voxel_mm: FloatArray,
) -> np.ndarray:
    """The network's input (N_CHANNELS, X, Y, Z) float32; zero outside ``mask`` (X, Y, Z) bool.

    ``attenuation`` (N, X, Y, Z) of the weighted volumes in the table's order, ``s0`` (X, Y, Z) in
    any unit, ``gtab`` of all volumes in the axes of this grid, ``voxel_mm`` (3,) its voxel edges.
    """
    mapping = canonical_map(gtab, variance)
    channels = np.zeros((N_CHANNELS, *mask.shape), np.float32)
    inside = attenuation[:, mask].astype(np.float32)
    seen = {}
    for slot, linear in mapping.matrices.items():
        first = slot * SLOT_CHANNELS
        channels[first : first + N_SH, mask] = harmonics = linear(inside)
        seen[mapping.b[slot]] = of_signal(harmonics, mapping.b[slot])
        channels[first + N_SH, mask] = 1
        channels[first + N_SH + 1, mask] = mapping.deviation[slot]
        channels[first + N_SH + 2, mask] = np.log(mapping.b[slot] / 1000)
    brightness = np.log(np.maximum(s0[mask], 1e-6 * max(float(s0[mask].max()), 1e-12)))
    spread = max(float(brightness.std()), 1e-6)
    channels[S0_CHANNEL, mask] = np.clip((brightness - brightness.mean()) / spread, -4, 4)
    density = fixed_response_fod.fibre_density(seen, ORDER)
    channels[DENSITY_CHANNELS, mask] = np.sqrt(4 * np.pi) * density
    channels[SIZE_CHANNELS, mask] = np.log(np.asarray(voxel_mm) / USUAL_VOXEL)[:, None]
    channels[TENSOR_CHANNELS, mask] = log_tensor.tensor_channels(inside, gtab, variance)
    decades = 0.5 * np.log10(max(variance, 1e-12))
    channels[NOISE_CHANNEL, mask] = (decades - USUAL_NOISE) / NOISE_SPREAD
    return channels


def input_harmonics(image: Tensor) -> Tensor:
    """(N_CHANNELS, X, Y, Z) canonical input → (84, X, Y, Z) its harmonics, slot after slot."""
    slots = image[: len(SLOTS) * SLOT_CHANNELS].unflatten(0, (len(SLOTS), SLOT_CHANNELS))
    return slots[:, :N_SH].flatten(0, 1)


def slots_in_use(image: Tensor) -> list[int]:
    """Which b-value bins (slots) of a canonical input (N_CHANNELS, X, Y, Z) are filled."""
    return [s for s in range(len(SLOTS)) if image[s * SLOT_CHANNELS + N_SH].any()]


def sh64_channels(attenuation: FloatArray, gtab: GradientTable, order: int = 8) -> np.ndarray:
    """The source paper's input: attenuation on 64 directions by spherical harmonics (64, …).

    Source paper 1, section 2.1: least squares up to the 8th order; the order is lowered where the
    directions do not carry it. ``attenuation`` (N, …) of one shell, ``gtab`` its volumes.
    """
    order = largest_order(len(gtab), order)
    resample = basis(fibonacci_hemisphere(64), order) @ np.linalg.pinv(basis(gtab.bvecs, order))
    flat = attenuation.reshape(len(gtab), -1)
    return np.clip(resample @ flat, 0, 1).reshape(64, *attenuation.shape[1:])
