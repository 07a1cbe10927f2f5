"""Real, even spherical harmonics and axially symmetric kernels."""

from __future__ import annotations

from functools import cache
from math import factorial, pi, sqrt
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from bidsapp.core import FloatArray


def n_coefficients(order: int) -> int:
    """Number of even harmonics up to ``order``: (order + 1)(order + 2)/2."""
    return (order + 1) * (order + 2) // 2


def largest_order(n_directions: int, limit: int = 8) -> int:
    """Largest even order whose coefficients are at most ``n_directions``."""
    return max((o for o in range(0, limit + 1, 2) if n_coefficients(o) <= n_directions), default=0)


def degrees(order: int) -> np.ndarray:
    """(K,) the degree l of each coefficient."""
    return np.concatenate([np.full(2 * deg + 1, deg) for deg in range(0, order + 1, 2)])


def orders(order: int) -> np.ndarray:
    """(K,) the m of each coefficient, from -l to l within a degree l."""
    return np.concatenate([np.arange(-deg, deg + 1) for deg in range(0, order + 1, 2)])


def _associated_legendre(order: int, x: FloatArray) -> dict[tuple[int, int], FloatArray]:
    """P_l^m(x) without the Condon-Shortley sign, by the standard upward recurrences."""
    table: dict[tuple[int, int], FloatArray] = {(0, 0): np.ones_like(x)}
    sine = np.sqrt(np.clip(1 - x**2, 0, None))
    for m in range(order + 1):
        if m:
            table[m, m] = (2 * m - 1) * sine * table[m - 1, m - 1]
        if m < order:
            table[m + 1, m] = (2 * m + 1) * x * table[m, m]
        for deg in range(m + 2, order + 1):
            table[deg, m] = (
                (2 * deg - 1) * x * table[deg - 1, m] - (deg + m - 1) * table[deg - 2, m]
            ) / (deg - m)
    return table


def basis(directions: FloatArray, order: int) -> np.ndarray:
    """Orthonormal real even harmonics at ``directions`` (N, 3): (N, K) float64.

    Within a degree, m runs from -l to l; negative m carries the sine. Directions need not have
    unit length but must not be zero.
    """
    unit = np.asarray(directions, float)
    unit = unit / np.linalg.norm(unit, axis=-1, keepdims=True)
    phi = np.arctan2(unit[:, 1], unit[:, 0])
    table = _associated_legendre(order, unit[:, 2])
    columns = []
    for deg in range(0, order + 1, 2):
        for m in range(-deg, deg + 1):
            a = abs(m)
            norm = sqrt((2 * deg + 1) / (4 * pi) * factorial(deg - a) / factorial(deg + a))
            wave = 1.0 if m == 0 else sqrt(2) * (np.sin(a * phi) if m < 0 else np.cos(a * phi))
            columns.append(norm * table[deg, a] * wave)
    return np.stack(columns, axis=1)


def turning(turn: FloatArray, order: int) -> np.ndarray:
    """(K, K) coefficients of f(Q⁻¹u) from those of f(u), for a rotation or mirror Q (3, 3)."""
    directions = fibonacci_hemisphere(200)
    turned = basis(directions @ turn, order)
    return np.asarray(np.linalg.pinv(basis(directions, order)) @ turned)


@cache
def _monomials(order: int) -> tuple[tuple[tuple[int, int, int], ...], np.ndarray]:
    """Exponents of x, y, z of the monomials of degree ``order``, and (K, K) from them to harmonics.

    On the sphere the even harmonics up to an order are exactly the polynomials homogeneous of that
    degree, and there are as many of them as monomials.
    """
    exponents = tuple((a, b, order - a - b) for a in range(order + 1) for b in range(order + 1 - a))
    points = fibonacci_hemisphere(20 * len(exponents))
    powers = np.stack([(points ** np.array(e)).prod(1) for e in exponents], axis=1)
    return exponents, np.linalg.lstsq(powers, basis(points, order), rcond=None)[0].T


def harmonics_at(vectors: Tensor, order: int) -> Tensor:
    """`basis` for ``vectors`` (3, …) of unit length, as torch: (K, …); 0 for a zero vector."""
    import torch

    exponents, matrix = _monomials(order)
    powers = [torch.ones_like(vectors)]
    for _ in range(order):
        powers.append(powers[-1] * vectors)
    terms = torch.stack([powers[a][0] * powers[b][1] * powers[c][2] for a, b, c in exponents])
    return torch.tensordot(torch.from_numpy(matrix).to(terms), terms, dims=1)


def legendre(order: int, x: FloatArray) -> np.ndarray:
    """Even Legendre polynomials P_0, P_2, …, P_order at ``x`` (…): (…, order/2 + 1)."""
    table = _associated_legendre(order, np.asarray(x, float))
    return np.stack([table[deg, 0] for deg in range(0, order + 1, 2)], axis=-1)


def zonal_coefficients(profile: FloatArray, cosines: FloatArray, weights: FloatArray) -> np.ndarray:
    """Legendre coefficients a_l of f(cos) = Σ a_l P_l(cos), l = 0, 2, …, 8, by quadrature.

    ``profile`` (…, Q) holds f at Gauss-Legendre nodes ``cosines`` (Q,) on [-1, 1].
    """
    polynomials = legendre(8, cosines)
    scale = (2 * np.arange(0, 9, 2) + 1) / 2
    return np.asarray(scale * np.einsum('...q,q,ql->...l', profile, weights, polynomials))


def fibonacci_hemisphere(n: int) -> np.ndarray:
    """(n, 3) nearly uniform directions with z > 0 (golden-angle spiral)."""
    z = (np.arange(n) + 0.5) / n
    phi = np.arange(n) * pi * (3 - sqrt(5))
    radius = np.sqrt(1 - z**2)
    return np.stack([radius * np.cos(phi), radius * np.sin(phi), z], axis=1)
