"""Blocks of varied heads, known as harmonics of q-space, from which networks are pretrained.

A block is a box of voxels somewhere in a head, in axes of its own. What fibres do to the signal is
kept as real even harmonics up to ORDER of the orientation density, averaged from a grid twice as
fine. The signal at any b and direction is then one product (Funk-Hecke: a kernel symmetric about
each fibre multiplies the harmonics of degree l by 4π/(2l+1) times its Legendre coefficient), so a
block can be scanned with any scheme at the price of a small matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import pi, sqrt
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bidsapp.physics.harmonics import basis, degrees, fibonacci_hemisphere, harmonics_at
from bidsapp.physics.harmonics import n_coefficients as count
from bidsapp.physics.qspace import prior_deviation
from bidsapp.simulate.acquisition import averaged
from bidsapp.simulate.anatomy import AIR, CSF, GM, RIM, TISSUES, WM
from bidsapp.simulate.fibres import MAX_FIBRES, fibres_at, resolve
from bidsapp.simulate.grids import Grid, normal, rotation, smooth_field, uniform
from bidsapp.simulate.microstructure import FREE_WATER, fibre_coefficients, watson_coefficients
from bidsapp.simulate.scan import DIFFUSIVITY, S0, blocks_of
from bidsapp.simulate.variety import chance

if TYPE_CHECKING:
    from bidsapp.simulate.anatomy import Head
    from bidsapp.simulate.fibres import Bundles

#: Order of the orientation density.
ORDER = 8
K = count(ORDER)
#: Fine voxels along the edge of a voxel.
FINE = 2
#: Order of what no model explains.
SURPLUS_ORDER = 6
#: Share of white matter from which a fine voxel's fibres count.
SOME = 0.02


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Anatomy and fibres on ``grid``; directions and harmonics in the axes of the grid."""

    grid: Grid
    tissues: Tensor  #: (9, X, Y, Z) fractions of ``anatomy.TISSUES``
    white: Tensor  #: (K, X, Y, Z) orientation density of white matter times its fraction
    grey: Tensor  #: (K, X, Y, Z) that of grey matter, whose neurites stand on the cortex
    directions: Tensor  #: (9, X, Y, Z) unit vectors of the fibres that count, strongest first

    @property
    def mask(self) -> Tensor:
        """(X, Y, Z) bool, at least half brain."""
        return self.tissues[: CSF + 1].sum(0) >= 0.5


@dataclass(frozen=True, slots=True, eq=False)
class Neurites:
    """Parameters (X, Y, Z) of one kind of tissue; diffusivities in µm²/ms."""

    icvf: Tensor
    od: Tensor
    isovf: Tensor  #: share of free water in its signal
    d_par: Tensor
    d_perp: Tensor  #: of the hindered compartment; not tied to ``icvf``


@dataclass(frozen=True, slots=True, eq=False)
class Substance:
    """What the tissues of a block are made of."""

    white: Neurites
    grey: Neurites
    s0: Tensor  #: (9,) signal at b=0 of each tissue


def draw_block_grid(head: Head, side: int, generator: torch.Generator) -> Grid:
    """A box of ``side``³ voxels of 1 to 4.5 mm around a brain voxel; upright or at any angle."""
    voxel = torch.exp(torch.empty(3).fill_(uniform(0.0, 1.25, generator)))
    if chance(0.5, generator):
        voxel = voxel * torch.exp(0.3 * normal((3,), generator))
    voxel = voxel.clamp(1.0, 4.5)
    upright = chance(0.5, generator)
    degrees_ = (10 if upright else 90) * normal((3,), generator)
    affine = torch.eye(4)
    affine[:3, :3] = rotation(degrees_) * voxel
    template = head.template
    brain = (template.fractions[: CSF + 1].sum(0) > 0.5).nonzero()
    pick = brain[int(uniform(0, len(brain), generator))].float().cpu()
    there = template.grid.affine.cpu()[:3, :3] @ pick + template.grid.affine.cpu()[:3, 3]
    # The inverse of the head's affine part is near enough to choose a place.
    centre = torch.linalg.solve(head.affine.cpu()[:3, :3], there - head.affine.cpu()[:3, 3])
    affine[:3, 3] = centre - affine[:3, :3] @ torch.full((3,), (side - 1) / 2)
    return Grid((side, side, side), affine.to(head.affine))


def axes_of(grid: Grid) -> Tensor:
    """(3, 3) unit vectors of the voxel axes in world space, one a column."""
    return grid.affine[:3, :3] / grid.affine[:3, :3].norm(dim=0)


def make_block(head: Head, bundles: Bundles, grid: Grid) -> Block:
    """Look at a head through ``grid``."""
    fine = grid.refined(FINE)
    tissues = head.tissues(fine.points())
    axes = axes_of(grid)
    where = tissues[WM] > SOME
    fibres = fibres_at(bundles, head, fine, where)
    local = torch.einsum('wg,fwv->fgv', axes, fibres.directions)
    amount = fibres.shares * tissues[WM][where]
    density = sum(
        harmonics_at(v, ORDER) * a for v, a in zip(local.unbind(), amount.unbind(), strict=True)
    )
    assert isinstance(density, Tensor)
    coarse = averaged(tissues, FINE)
    cortex = tissues[GM] > SOME
    standing = harmonics_at(_outward(tissues, fine)[:, cortex], ORDER) * tissues[GM][cortex]
    fibrous = (coarse[: CSF + 1].sum(0) >= 0.5) & (fractions_of(coarse).argmax(0) == WM)
    return Block(
        grid,
        coarse,
        _pooled(density, where),
        _pooled(standing, cortex),
        _fibres_that_count(local, amount, where, fibrous),
    )


def fractions_of(tissues: Tensor) -> Tensor:
    """(9, X, Y, Z) → (3, X, Y, Z) GM, WM, CSF; fluid around the brain is CSF."""
    return torch.stack([tissues[GM], tissues[WM], tissues[CSF] + tissues[RIM]])


def _outward(tissues: Tensor, fine: Grid) -> Tensor:
    """(3, X, Y, Z) unit vectors from white matter to fluid, in the axes of the grid."""
    depth = tissues[WM] - tissues[CSF] - tissues[RIM]
    smooth = depth[None, None]
    for _ in range(2):
        smooth = F.avg_pool3d(smooth, 5, stride=1, padding=2, count_include_pad=False)
    slope = torch.stack(torch.gradient(smooth[0, 0], spacing=fine.spacing))
    return slope / slope.norm(dim=0).clamp_min(1e-6)


def _pooled(values: Tensor, where: Tensor) -> Tensor:
    """(K, V) at fine voxels ``where`` → (K, X, Y, Z) mean over blocks of FINE³."""
    full = values.new_zeros(len(values), where.numel())
    full[:, where.flatten()] = values
    return averaged(full.view(len(values), *where.shape), FINE)


def _fibres_that_count(local: Tensor, amount: Tensor, where: Tensor, fibrous: Tensor) -> Tensor:
    """(9, X, Y, Z) directions that count in each voxel of ``fibrous``, strongest first."""
    directions = local.new_zeros(3 * MAX_FIBRES, *where.shape)
    directions[:, where] = local.flatten(0, 1)
    weights = local.new_zeros(MAX_FIBRES, *where.shape)
    weights[:, where] = amount
    candidates = blocks_of(directions, FINE)[..., fibrous]
    found, _ = resolve(
        candidates.reshape(MAX_FIBRES, 3, FINE**3, -1).movedim(2, 1).flatten(0, 1),
        blocks_of(weights, FINE)[..., fibrous].flatten(0, 1),
    )
    merged = local.new_zeros(3 * MAX_FIBRES, *fibrous.shape)
    merged[:, fibrous] = found.flatten(0, 1)
    return merged


def draw_substance(block: Block, generator: torch.Generator) -> Substance:
    """Parameters from wide ranges, smooth in space, with up to four lesions."""
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
    return Substance(white, grey, s0)


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


@dataclass(frozen=True, slots=True, eq=False)
class Texture:
    """What no model of tissue explains, and what the scanner's own sharpness takes away."""

    surplus: Tensor | None  #: (28, X, Y, Z) harmonics up to order 6, in units of the prior's s.d.
    blur: tuple[float, ...]  #: share of each neighbour along each axis


def draw_texture(block: Block, generator: torch.Generator) -> Texture:
    """Random structure of 1 to 6 mm in every harmonic, and a point spread of up to a voxel.

    Real tissue is no sum of Watson distributions. A network that has only met those takes what it
    does not know for noise; with this it has to leave what stands above the noise.
    """
    blur = tuple(uniform(0, 0.2, generator) * chance(0.7, generator) for _ in range(3))
    if not chance(0.8, generator):
        return Texture(None, blur)
    width = float(np.exp(uniform(0.0, 1.8, generator))) + 0.5 * max(block.grid.spacing)
    strength = 0.25 * uniform(0, 1, generator) ** 2
    fields = smooth_field(block.grid.axes(), width, count(SURPLUS_ORDER), generator)
    return Texture(strength * fields.to(block.tissues) * block.mask, blur)


def textured(harmonics: Tensor, s0: Tensor, b: float, texture: Texture) -> Tensor:
    """Harmonics (K, X, Y, Z) of the signal at ``b`` s/mm² with a texture; ``s0`` (X, Y, Z)."""
    if texture.surplus is not None:
        spread = prior_deviation(b)[degrees(SURPLUS_ORDER) // 2]
        scale = torch.from_numpy(spread).to(harmonics)[:, None, None, None]
        harmonics = harmonics.clone()
        harmonics[: len(scale)] += scale * texture.surplus * s0
    return blurred(harmonics, texture.blur)


def blurred(volumes: Tensor, shares: tuple[float, ...]) -> Tensor:
    """(…, X, Y, Z) with a share of both neighbours mixed in along each axis; sums are kept."""
    for axis, share in zip((-3, -2, -1), shares, strict=True):
        if share:
            n = volumes.shape[axis]
            edges = torch.tensor([0, *range(n), n - 1], device=volumes.device)
            wide = volumes.index_select(axis, edges)
            around = wide.narrow(axis, 0, n) + wide.narrow(axis, 2, n)
            volumes = (1 - 2 * share) * volumes + share * around
    return volumes


def signal_harmonics(block: Block, substance: Substance, b: float) -> Tensor:
    """(K, X, Y, Z) real harmonics of the signal at ``b`` s/mm² as a function of direction."""
    ms = b * 1e-3
    total = torch.zeros_like(block.white)
    free = float(np.exp(-ms * FREE_WATER))
    isotropic = torch.zeros_like(block.tissues[0])
    for tissue, density, what in (
        (WM, block.white, substance.white),
        (GM, block.grey, substance.grey),
    ):
        where = block.tissues[tissue] > 0
        kernel = fibre_coefficients(
            ms, what.icvf[where], what.od[where], what.d_par[where], what.d_perp[where]
        )[:, : ORDER // 2 + 1]
        degree = torch.from_numpy(degrees(ORDER)).to(where.device)
        factor = (4 * pi / (2 * degree + 1))[:, None] * kernel.T[degree // 2]
        strength = substance.s0[tissue] * (1 - what.isovf[where])
        total[:, where] += density[:, where] * factor * strength
        isotropic += substance.s0[tissue] * block.tissues[tissue] * what.isovf * free
    for k in range(WM + 1, len(TISSUES)):
        decay = float(np.exp(-ms * (FREE_WATER if k in (CSF, RIM) else DIFFUSIVITY[k])))
        isotropic += substance.s0[k] * block.tissues[k] * decay
    total[0] += sqrt(4 * pi) * isotropic
    return total


def signal_at_rest(block: Block, substance: Substance) -> Tensor:
    """(X, Y, Z) signal at b=0."""
    return torch.tensordot(substance.s0, block.tissues, dims=1)


def parameters(block: Block, substance: Substance) -> Tensor:
    """(3, X, Y, Z) icvf and od of the neurites, and the share of free water in the signal.

    ``od`` is that of one Watson distribution whose orientation tensor has the same largest
    eigenvalue as all neurites of the voxel together, crossings included (what NODDI's means).
    """
    parts = ((WM, block.white, substance.white), (GM, block.grey, substance.grey))
    amounts = [substance.s0[t] * block.tissues[t] * (1 - n.isovf) for t, _, n in parts]
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
    water = sum(substance.s0[t] * block.tissues[t] * n.isovf for t, _, n in parts)
    water = water + (substance.s0[[CSF, RIM], None, None, None] * block.tissues[[CSF, RIM]]).sum(0)
    s0 = signal_at_rest(block, substance)
    brain = s0 - substance.s0[AIR] * block.tissues[AIR]
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
