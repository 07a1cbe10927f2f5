"""Diffusion attenuation of tissue at any b and direction.

White matter is a stick (intracellular) and a zeppelin (hindered) along each fibre, both spread by
a Watson distribution of orientations. Each is an axially symmetric function of x = g·µ, and so is
a Legendre series; spreading it multiplies the term of degree l by the Watson mean of P_l:

    E(g) = Σ_l [f C_l(b d) + (1 - f) exp(-b (1 - f) d) C_l(b f d)] w_l(κ) P_l(g·µ)

with f the intracellular fraction, d the axial diffusivity and C_l(s) the coefficients of
exp(-s x²): a zeppelin of tortuous radial diffusivity (1 - f) d is exp(-b (1 - f) d - b f d x²).
Zhang et al., NeuroImage 2012. Diffusivities in µm²/ms, b in ms/µm² (1 = 1000 s/mm²).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from bidsapp.modalities.dwi.physics.harmonics import legendre
from bidsapp.simulate.grids import smooth_field

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Highest degree of the Legendre series.
ORDER = 12
#: µm²/ms.
FREE_WATER = 3.0


@cache
def _quadrature() -> tuple[Tensor, Tensor]:
    """x² (Q,) and P_l(x) · weight (Q, L) at Gauss-Legendre nodes of [0, 1]; float64."""
    nodes, weights = np.polynomial.legendre.leggauss(48)
    x = (nodes + 1) / 2
    table = legendre(ORDER, x) * (weights / 2)[:, None]
    return torch.from_numpy(x**2), torch.from_numpy(table)


def _moments(exponent: Tensor, peak: float) -> Tensor:
    """∫ exp(exponent (x² - peak)) P_l(x) dx over [0, 1]: exponent (…) → (…, L)."""
    squares, table = (t.to(exponent) for t in _quadrature())
    return torch.exp(exponent[..., None] * (squares - peak)) @ table


def gaussian_coefficients(s: Tensor) -> Tensor:
    """C_l of exp(-s x²) = Σ C_l P_l(x) for ``s`` (…) ≥ 0: (…, L), l = 0, 2, …, ORDER."""
    degree = torch.arange(0, ORDER + 1, 2, device=s.device)
    return (2 * degree + 1) * _moments(-s, 0.0)


def watson_coefficients(od: Tensor) -> Tensor:
    """w_l: mean of P_l(n·µ) over a Watson distribution of dispersion ``od`` (…) in (0, 1]: (…, L).

    Density ∝ exp(κ (n·µ)²) with κ = 1 / tan(od π/2); w_0 = 1.
    """
    moments = _moments(1 / torch.tan(od * (torch.pi / 2)), 1.0)
    return moments / moments[..., :1]


def fibre_coefficients(
    b: float, icvf: Tensor, od: Tensor, d_par: Tensor, d_perp: Tensor | None = None
) -> Tensor:
    """Legendre coefficients (…, L) of a dispersed fibre's attenuation at ``b`` (ms/µm²).

    ``d_perp`` is the radial diffusivity of the hindered compartment, by default (1 - icvf) d_par.
    """
    if d_perp is None:
        d_perp = (1 - icvf) * d_par
    stick = gaussian_coefficients(b * d_par)
    zeppelin = gaussian_coefficients(b * (d_par - d_perp))
    hindered = (1 - icvf) * torch.exp(-b * d_perp)
    mixed = icvf[..., None] * stick + hindered[..., None] * zeppelin
    return mixed * watson_coefficients(od)


@cache
def _legendre_to_powers() -> Tensor:
    """(L, L) row l: coefficients of P_l in 1, x², x⁴, …; float64."""
    rows = [
        np.polynomial.legendre.leg2poly(np.eye(ORDER + 1)[deg]) for deg in range(0, ORDER + 1, 2)
    ]
    table = np.zeros((len(rows), len(rows)))
    for i, row in enumerate(rows):
        table[i, : i + 1] = row[::2]
    return torch.from_numpy(table)


def powers(coefficients: Tensor) -> Tensor:
    """Legendre coefficients (V, L) → coefficients of 1, x², x⁴, … as (L, V)."""
    return (coefficients.double() @ _legendre_to_powers().to(coefficients.device)).T.float()


def evaluate(polynomial: Tensor, cosines: Tensor) -> Tensor:
    """Σ_k polynomial[k] x^(2k) at x = ``cosines`` (…, V), by Horner's rule."""
    squares = cosines * cosines
    value = polynomial[-1].expand_as(squares)
    for row in reversed(polynomial[:-1].unbind()):
        value = torch.addcmul(row, value, squares)
    return value


@dataclass(frozen=True, slots=True, eq=False)
class Microstructure:
    """Tissue parameters (X, Y, Z), smooth in space; diffusivities in µm²/ms."""

    icvf: Tensor  #: intracellular share of a fibre's signal
    od: Tensor  #: orientation dispersion
    isovf: Tensor  #: share of free water in the signal of white matter
    d_par: Tensor  #: axial diffusivity
    d_gm: Tensor  #: diffusivity of grey matter


def draw_microstructure(
    axes: Sequence[Tensor], generator: torch.Generator, width: float = 14.0
) -> Microstructure:
    """Parameters at three vectors of positions ``axes`` (mm) that vary over ``width`` mm."""
    icvf, od, isovf, d_par, d_gm = smooth_field(axes, width, 5, generator)
    return Microstructure(
        icvf=(0.60 + 0.10 * icvf).clamp(0.3, 0.85),
        od=(0.12 * torch.exp(0.5 * od)).clamp(0.03, 0.5),
        isovf=(0.03 * torch.exp(0.7 * isovf)).clamp(0, 0.3),
        d_par=(1.95 + 0.10 * d_par).clamp(1.7, 2.2),
        d_gm=(0.80 + 0.05 * d_gm).clamp(0.65, 0.95),
    )
