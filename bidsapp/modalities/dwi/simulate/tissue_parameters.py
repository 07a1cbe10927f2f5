"""Microstructure parameters of a block's tissues, and the signal and maps that follow from them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import pi, sqrt
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from bidsapp.modalities.dwi.physics.harmonics import basis, degrees, fibonacci_hemisphere
from bidsapp.modalities.dwi.simulate.blocks import ORDER
from bidsapp.modalities.dwi.simulate.microstructure import (
    FREE_WATER,
    fibre_coefficients,
    watson_coefficients,
)
from bidsapp.modalities.dwi.simulate.protocol import DIFFUSIVITY, S0
from bidsapp.simulate.anatomy import AIR, CSF, GM, RIM, TISSUES, WM
from bidsapp.simulate.grids import chance, smooth_field, uniform

if TYPE_CHECKING:
    from bidsapp.modalities.dwi.simulate.blocks import Block
    from bidsapp.simulate.grids import Grid


@dataclass(frozen=True, slots=True, eq=False)
class Neurites:
    """Parameters (X, Y, Z) of one kind of tissue; diffusivities in µm²/ms."""

    icvf: Tensor
    od: Tensor
    isovf: Tensor  #: share of free water in its signal
    d_par: Tensor
    d_perp: Tensor  #: of the hindered compartment; not tied to ``icvf``


@dataclass(frozen=True, slots=True, eq=False)
class TissueParameters:
    """Microstructure parameters of the tissues of a block: what they are made of."""

    white: Neurites
    grey: Neurites
    s0: Tensor  #: (9,) signal at b=0 of each tissue


def draw_tissue_parameters(block: Block, generator: torch.Generator) -> TissueParameters:
    """Microstructure parameters from wide ranges, smooth in space, with up to four lesions."""
    axes = block.grid.axes()
    fields = smooth_field(axes, 14.0, 8, generator).to(block.tissues)

    def neurites(low: tuple[float, ...], high: tuple[float, ...], f: Tensor) -> Neurites:
        icvf, od, iso, d_par, tie = (
            uniform(a, b, generator) for a, b in zip(low, high, strict=True)
        )
        density = (icvf + 0.08 * f[0]).clamp(0.1, 0.9)
        along = (d_par + 0.1 * f[3]).clamp(1.3, 2.5)
        return Neurites(
            density,
            (od * torch.exp(0.4 * f[1])).clamp(0.03, 0.95),
            (iso * torch.exp(0.7 * f[2])).clamp(0, 0.4),
            along,
            (along * (1 - tie * density)).clamp(0.1, 1.3),
        )

    white = neurites((0.4, 0.04, 0.0, 1.5, 0.6), (0.75, 0.25, 0.08, 2.3, 1.2), fields[:4])
    grey = neurites((0.25, 0.4, 0.0, 1.2, 0.5), (0.5, 0.8, 0.12, 2.0, 1.1), fields[4:])
    white, grey = _with_lesions(block.grid, white, grey, generator)
    s0 = torch.tensor(S0).to(block.tissues)
    s0[GM] = uniform(0.95, 1.5, generator)
    s0[CSF] = s0[RIM] = uniform(1.3, 4.0, generator)
    return TissueParameters(white, grey, s0)


def _with_lesions(
    grid: Grid, white: Neurites, grey: Neurites, generator: torch.Generator
) -> tuple[Neurites, Neurites]:
    """Balls with a steep edge where neurites are lost, scattered, or water has come in."""
    points = torch.stack(torch.meshgrid(*grid.axes(), indexing='ij'))
    ends = points.flatten(1).amax(1)
    for _ in range(int(uniform(0, 5, generator))):
        centre = ends * torch.rand(3, generator=generator).to(ends)
        radius = torch.tensor([uniform(2, 14, generator) for _ in range(3)]).to(ends)
        away = ((points - centre[:, None, None, None]) / radius[:, None, None, None]).norm(dim=0)
        inside = torch.exp(-(away**4))
        lost, scattered, water = (
            uniform(0, 0.9, generator) * chance(0.5, generator) for _ in range(3)
        )
        white, grey = (
            Neurites(
                n.icvf * (1 - lost * inside),
                n.od + (0.9 - n.od).clamp_min(0) * scattered * inside,
                n.isovf + (0.9 - n.isovf) * water * inside,
                n.d_par,
                n.d_perp + (n.d_par - n.d_perp).clamp_min(0) * 0.7 * lost * inside,
            )
            for n in (white, grey)
        )
    return white, grey


def signal_harmonics(block: Block, tissue_parameters: TissueParameters, b: float) -> Tensor:
    """(K, X, Y, Z) real harmonics of the signal at ``b`` s/mm² as a function of direction."""
    ms = b * 1e-3
    total = torch.zeros_like(block.white)
    free = float(np.exp(-ms * FREE_WATER))
    isotropic = torch.zeros_like(block.tissues[0])
    for tissue, density, what in (
        (WM, block.white, tissue_parameters.white),
        (GM, block.grey, tissue_parameters.grey),
    ):
        where = block.tissues[tissue] > 0
        kernel = fibre_coefficients(
            ms, what.icvf[where], what.od[where], what.d_par[where], what.d_perp[where]
        )[:, : ORDER // 2 + 1]
        degree = torch.from_numpy(degrees(ORDER)).to(where.device)
        factor = (4 * pi / (2 * degree + 1))[:, None] * kernel.T[degree // 2]
        strength = tissue_parameters.s0[tissue] * (1 - what.isovf[where])
        total[:, where] += density[:, where] * factor * strength
        isotropic += tissue_parameters.s0[tissue] * block.tissues[tissue] * what.isovf * free
    for k in range(WM + 1, len(TISSUES)):
        decay = float(np.exp(-ms * (FREE_WATER if k in (CSF, RIM) else DIFFUSIVITY[k])))
        isotropic += tissue_parameters.s0[k] * block.tissues[k] * decay
    total[0] += sqrt(4 * pi) * isotropic
    return total


def signal_at_rest(block: Block, tissue_parameters: TissueParameters) -> Tensor:
    """(X, Y, Z) signal at b=0."""
    return torch.tensordot(tissue_parameters.s0, block.tissues, dims=1)


def parameters(block: Block, tissue_parameters: TissueParameters) -> Tensor:
    """(3, X, Y, Z) icvf and od of the neurites, and the share of free water in the signal.

    ``od`` is that of one Watson distribution whose orientation tensor has the same largest
    eigenvalue as all neurites of the voxel together, crossings included (what NODDI's means).
    """
    parts = ((WM, block.white, tissue_parameters.white), (GM, block.grey, tissue_parameters.grey))
    amounts = [tissue_parameters.s0[t] * block.tissues[t] * (1 - n.isovf) for t, _, n in parts]
    tissue = torch.stack(amounts).sum(0)
    pairs = list(zip(amounts, parts, strict=True))
    inside = sum(a * n.icvf for a, (_, _, n) in pairs)
    second = sum(
        a / block.tissues[t].clamp_min(1e-6) * n.icvf * d[1:6] * _second_moment(n.od)
        for a, (t, d, n) in pairs
    )
    assert isinstance(inside, Tensor)
    assert isinstance(second, Tensor)
    ordered = 1.5 * _largest_eigenvalue(second) / inside.clamp_min(1e-6)
    water = sum(tissue_parameters.s0[t] * block.tissues[t] * n.isovf for t, _, n in parts)
    water = water + (
        tissue_parameters.s0[[CSF, RIM], None, None, None] * block.tissues[[CSF, RIM]]
    ).sum(0)
    s0 = signal_at_rest(block, tissue_parameters)
    brain = s0 - tissue_parameters.s0[AIR] * block.tissues[AIR]
    share = water / brain.clamp_min(1e-6)
    return torch.stack([inside / tissue.clamp_min(1e-6), _dispersion(ordered), share.clamp(0, 1)])


@cache
def _second_moment_table() -> tuple[Tensor, Tensor]:
    """Mean of P_2 over a Watson distribution (descending) against its dispersion."""
    od = torch.linspace(0.005, 0.995, 400, dtype=torch.float64)
    return watson_coefficients(od)[:, 1].float(), od.float()


def _second_moment(od: Tensor) -> Tensor:
    table, at = _second_moment_table()
    index = ((od - float(at[0])) / float(at[1] - at[0])).clamp(0, len(at) - 1)
    return table.to(od)[index.round().long()]


def _dispersion(moment: Tensor) -> Tensor:
    """Dispersion of the Watson distribution with this mean of P_2."""
    table, at = (t.to(moment) for t in _second_moment_table())
    rising = table.flip(0).contiguous()
    index = torch.searchsorted(rising, moment.contiguous()).clamp(max=len(at) - 1)
    return at.flip(0)[index]


@cache
def _to_tensor() -> Tensor:
    """(3, 3, 5): harmonics of degree 2 of δ(v) → v vᵀ - I/3."""
    v = fibonacci_hemisphere(50)
    traceless = (v[:, :, None] * v[:, None, :] - np.eye(3) / 3).reshape(50, 9)
    matrix = np.linalg.lstsq(basis(v, 2)[:, 1:6], traceless, rcond=None)[0]
    return torch.from_numpy(matrix.T.reshape(3, 3, 5)).float()


def _largest_eigenvalue(second: Tensor) -> Tensor:
    """Of the traceless symmetric tensor whose harmonics of degree 2 are ``second`` (5, …)."""
    a = torch.einsum('ijk,k...->ij...', _to_tensor().to(second), second)
    p = (a.square().sum((0, 1)) / 6).sqrt().clamp_min(1e-12)
    determinant = (
        a[0, 0] * (a[1, 1] * a[2, 2] - a[1, 2] ** 2)
        - a[0, 1] * (a[0, 1] * a[2, 2] - a[1, 2] * a[0, 2])
        + a[0, 2] * (a[0, 1] * a[1, 2] - a[1, 1] * a[0, 2])
    )
    angle = torch.arccos((determinant / (2 * p**3)).clamp(-1, 1)) / 3
    return 2 * p * torch.cos(angle)
