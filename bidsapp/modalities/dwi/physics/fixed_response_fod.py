"""Fibre orientation densities (FOD) with a fixed response, from the canonical harmonics.

They make crossings visible to a network. Constrained deconvolution (Tournier et al., NeuroImage
2007) with a response that is the same for every scan, so that it needs no white matter to learn one
from, and solved by the alternating direction method of multipliers, so that all voxels share one
matrix: the smallest squared error of density * response + isotropic parts against the harmonics of
all shells, where the density shall be nowhere negative. `physics.csd` derives labels, with the
scan's own response.
"""

from __future__ import annotations

from functools import lru_cache
from math import pi, sqrt
from typing import TYPE_CHECKING

import numpy as np

from bidsapp.modalities.dwi.physics.harmonics import (
    basis,
    degrees,
    fibonacci_hemisphere,
    n_coefficients,
    zonal_coefficients,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bidsapp.core import FloatArray

#: Order of the density.
ORDER = 8
N = n_coefficients(ORDER)
#: Axial and radial diffusivity of the response, and those of isotropic tissue and fluid, µm²/ms.
AXIAL, RADIAL, ISOTROPIC = 1.7, 0.3, (0.8, 3.0)
#: Directions in which the density is kept from being negative.
DIRECTIONS = 100
#: Weight of the squared density relative to the mean eigenvalue of the problem; weight of the
#: constraint; iterations. With these both fibres of an equal crossing at 60 degrees stand apart (64
#: directions, b 1000, SNR 30); more iterations or a heavier constraint blur them again.
RIDGE, STIFFNESS, ITERATIONS = 1e-3, 0.01, 20
#: Voxels solved at a time, so that they stay in the processor's cache.
_CHUNK = 2048


@lru_cache(maxsize=64)
def _matrices(b: tuple[float, ...], order: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """From data to the unconstrained density; from what the constraint says to it; its values."""
    nodes, weights = np.polynomial.legendre.leggauss(64)
    low, extra = n_coefficients(order), len(ISOTROPIC)
    rows = []
    for ms in np.array(b) * 1e-3:
        profile = np.exp(-ms * (RADIAL + (AXIAL - RADIAL) * nodes**2))
        response = zonal_coefficients(profile, nodes, weights)[degrees(order) // 2]
        block = np.zeros((low, N + extra))
        block[np.arange(low), np.arange(low)] = 4 * pi / (2 * degrees(order) + 1) * response
        block[0, N:] = sqrt(4 * pi) * np.exp(-ms * np.array(ISOTROPIC))
        rows.append(block)
    forward = np.concatenate(rows)
    values = np.zeros((DIRECTIONS + extra, N + extra))
    values[:DIRECTIONS, :N] = basis(fibonacci_hemisphere(DIRECTIONS), ORDER) * sqrt(pi / DIRECTIONS)
    values[DIRECTIONS:, N:] = np.eye(extra)
    normal = forward.T @ forward
    level = np.trace(normal) / len(normal)
    stiffness = STIFFNESS * level * len(normal) / np.trace(values.T @ values)
    inverse = np.linalg.inv(
        normal + RIDGE * level * np.eye(len(normal)) + stiffness * values.T @ values
    )
    data, said = inverse @ forward.T, stiffness * inverse @ values.T
    return data.astype(np.float32), said.astype(np.float32), values.astype(np.float32)


def fibre_density(harmonics: Mapping[float, FloatArray], order: int) -> np.ndarray:
    """b (s/mm²) → harmonics (K, V) of S/S0 up to ``order``; gives (N, V), mass one a fibre of 1.7.

    The first coefficient times √4π is the amount of fibres, in units of S0.
    """
    data, said, values = _matrices(tuple(harmonics), order)
    seen = np.concatenate(list(harmonics.values())).astype(np.float32)
    density = np.empty((N, seen.shape[1]), np.float32)
    for first in range(0, seen.shape[1], _CHUNK):
        part = slice(first, first + _CHUNK)
        free = data @ seen[:, part]
        found = free
        kept = np.zeros((len(values), free.shape[1]), np.float32)
        away = np.zeros_like(kept)
        for _ in range(ITERATIONS):
            found = free + said @ (kept - away)
            away += values @ found
            kept = np.maximum(away, 0)
            away -= kept
        density[:, part] = found[:N]
    return density
