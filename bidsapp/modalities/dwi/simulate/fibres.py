"""Curved bundles that cross, and the one to three fibre directions they give every point.

A family of curves is a vector field: the curves' tangents, spread by a narrow Gaussian that gives
a bundle its thickness and, faintly, by a wide one that lets the nearest bundle fill white matter
which none reaches. Its length is the family's density, its direction the fibre's. All curves of a
family run the same way, so vectors may be added.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bidsapp.modalities.dwi.physics.peaks import MAX_FIBRES
from bidsapp.modalities.dwi.simulate.bundles import FAMILIES
from bidsapp.simulate.anatomy import WM
from bidsapp.simulate.grids import Grid, jacobian, moved, normal, sample, separable, uniform

if TYPE_CHECKING:
    from bidsapp.modalities.dwi.simulate.bundles import Family
    from bidsapp.simulate.anatomy import Head, Template

#: Random bundles added to the anatomical ones.
N_RANDOM = 6
#: Curves drawn for each guide of a family; points on each.
CURVES, POINTS = 12, 60
#: mm: voxels of the lattice in template space, s.d. of the narrow and of the wide Gaussian.
LATTICE, NARROW, WIDE = 3.0, 3.5, 14.0
#: Weight of the wide Gaussian; how sharply the denser bundle wins.
FAINT, CONTRAST = 0.05, 2.8
#: Fibres nearer than this (degrees) count as one; one weaker than this share does not count.
SAME_FIBRE, LEAST_SHARE = 30.0, 0.15


def catmull_rom(controls: Tensor, n: int) -> Tensor:
    """``n`` points on the smooth curve through ``controls`` (…, K, 3): (…, n, 3)."""
    first, last = controls[..., :1, :], controls[..., -1:, :]
    before = 2 * first - controls[..., 1:2, :]
    after = 2 * last - controls[..., -2:-1, :]
    padded = torch.cat([before, controls, after], dim=-2)
    t = torch.linspace(0, controls.shape[-2] - 1, n, device=controls.device)
    start = t.long().clamp(max=controls.shape[-2] - 2)
    u = (t - start)[:, None]
    p0, p1, p2, p3 = (padded[..., start + k, :] for k in range(4))
    return 0.5 * (
        2 * p1
        + (p2 - p0) * u
        + (2 * p0 - 5 * p1 + 4 * p2 - p3) * u**2
        + (3 * p1 - p0 - 3 * p2 + p3) * u**3
    )


def draw_curves(family: Family, generator: torch.Generator, jitter: float = 2.0) -> Tensor:
    """(curves, POINTS, 3) mm of one person's ``family``, both hemispheres; s.d. ``jitter`` mm."""
    right = torch.tensor(family.guides, dtype=torch.float32)
    left = right * torch.tensor([-1.0, 1.0, 1.0])
    if family.commissure:
        sides = [torch.cat([left.flip(1)[:, :-1], right], dim=1)]
    else:
        sides = [left, right]
    return torch.cat([_loft(side, family.spread, jitter, generator) for side in sides])


def _loft(guides: Tensor, spread: float, jitter: float, generator: torch.Generator) -> Tensor:
    """Curves (n, POINTS, 3) on the surface between jittered ``guides`` (G, K, 3)."""
    guides = guides + jitter * normal((1, *guides.shape[1:]), generator)
    guides = guides + 0.5 * jitter * normal(guides.shape, generator)
    n = CURVES * len(guides)
    across = torch.rand(n, generator=generator, device=generator.device).cpu() * (len(guides) - 1)
    lower = across.long().clamp(max=max(len(guides) - 2, 0))
    upper = (lower + 1).clamp(max=len(guides) - 1)
    share = (across - lower)[:, None, None]
    controls = (1 - share) * guides[lower] + share * guides[upper]
    return catmull_rom(controls + spread * normal((n, 1, 3), generator), POINTS)


def random_curves(template: Template, generator: torch.Generator) -> Tensor:
    """One bent bundle (CURVES, POINTS, 3) of 50-90 mm through a random point of white matter."""
    white = (template.fractions[WM] > 0.8).nonzero().cpu()
    pick = int(uniform(0, len(white), generator))
    centre = moved(template.grid.affine.cpu(), white[pick].float()[:, None])[:, 0]
    along, bend = torch.linalg.qr(normal((3, 3), generator))[0].T[:2]
    half, sag = uniform(25, 45, generator), uniform(-15, 15, generator)
    guide = torch.stack(
        [centre + along * (u * half) + bend * (u * u * sag) for u in (-1.0, -0.5, 0.0, 0.5, 1.0)]
    )
    return _loft(guide[None], 4.0, 0.0, generator)


@dataclass(frozen=True, slots=True, eq=False)
class Bundles:
    """Vector fields (B, 3, X, Y, Z) of one person's families in template space."""

    fields: Tensor
    lattice: Grid


def draw_bundles(template: Template, generator: torch.Generator) -> Bundles:
    """Every family of ``bundles.FAMILIES`` jittered for one person, and a few random ones."""
    curves = [draw_curves(family, generator) for family in FAMILIES]
    strengths = [family.strength * uniform(0.8, 1.2, generator) for family in FAMILIES]
    curves += [random_curves(template, generator) for _ in range(N_RANDOM)]
    strengths += [uniform(0.3, 0.6, generator) for _ in range(N_RANDOM)]
    lattice = lattice_of(template.grid)
    fields = [
        s * density_field(c.to(template.fractions.device), lattice)
        for s, c in zip(strengths, curves, strict=True)
    ]
    return Bundles(torch.stack(fields), lattice)


def lattice_of(grid: Grid) -> Grid:
    """A grid of ``LATTICE`` mm over the same box."""
    ratio = LATTICE / grid.spacing[0]
    affine = grid.affine.clone()
    affine[:3, :3] *= ratio
    lengths = [int((n - 1) / ratio) + 1 for n in grid.shape]
    return Grid((lengths[0], lengths[1], lengths[2]), affine)


def density_field(curves: Tensor, lattice: Grid) -> Tensor:
    """Tangents of ``curves`` (n, P, 3) spread over ``lattice``: (3, X, Y, Z).

    Scaled so that the median density along the curves themselves is 1.
    """
    steps = (curves[:, 1:] - curves[:, :-1]).reshape(-1, 3)
    middles = ((curves[:, 1:] + curves[:, :-1]) / 2).reshape(-1, 3)
    index = moved(torch.linalg.inv(lattice.affine), middles.T).T.round().long()
    size = torch.tensor(lattice.shape, device=index.device)
    inside = ((index >= 0) & (index < size)).all(1)
    i, j, k = index[inside].T
    field = curves.new_zeros(3, *lattice.shape)
    flat = (i * lattice.shape[1] + j) * lattice.shape[2] + k
    field.view(3, -1).index_add_(1, flat, steps[inside].T)
    field = _spread(field, NARROW, lattice) + FAINT * _spread(field, WIDE, lattice)
    along = sample(field, lattice, middles[inside].T).norm(dim=0)
    return field / along.median()


def _spread(field: Tensor, width: float, lattice: Grid) -> Tensor:
    """Gaussian smoothing with s.d. ``width`` mm and a peak of 1."""
    kernels = [torch.exp(-0.5 * ((a[:, None] - a[None]) / width) ** 2) for a in lattice.axes()]
    return separable(field, kernels)


@dataclass(frozen=True, slots=True, eq=False)
class Fibres:
    """Fibres at V points, densest first; the shares of a point sum to one."""

    directions: Tensor  #: (MAX_FIBRES, 3, V) unit vectors, world axes
    shares: Tensor  #: (MAX_FIBRES, V)


def fibres_at(bundles: Bundles, head: Head, grid: Grid, where: Tensor) -> Fibres:
    """Fibres at the voxels of ``grid`` in a person's space where ``where`` (X, Y, Z) is true.

    A tangent t of the template is carried to the person by the inverse of the derivative of the
    map from the person to the template.
    """
    mapped = head.to_template(grid.points())
    vectors = sample(bundles.fields.flatten(0, 1), bundles.lattice, mapped[:, where])
    vectors = vectors.reshape(-1, 3, vectors.shape[-1])
    # (torch.linalg.vector_norm takes 20 times as long along a middle axis of length 3.)
    density = vectors.square().sum(1) ** (CONTRAST / 2)
    shares, chosen = density.topk(MAX_FIBRES, dim=0)
    tangents = vectors.gather(0, chosen[:, None].expand(-1, 3, -1))
    derivative = jacobian(mapped, grid)[where]
    carried = torch.linalg.solve(derivative, tangents.permute(2, 1, 0)).permute(2, 1, 0)
    directions = carried / carried.square().sum(1, keepdim=True).sqrt().clamp_min(1e-12)
    return Fibres(directions, shares / shares.sum(0).clamp_min(1e-12))


def resolve(directions: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The fibres that count among candidates ``directions`` (C, 3, V), ``weights`` (C, V) ≥ 0.

    From the heaviest on, candidates within ``SAME_FIBRE`` degrees of it are one fibre, along
    their weighted mean. Returns unit directions (MAX_FIBRES, 3, V), zero where there is none,
    and shares of the whole weight (MAX_FIBRES, V), largest first, none below ``LEAST_SHARE``.
    """
    total = weights.sum(0).clamp_min(1e-12)
    left = weights.clone()
    found, shares = [], []
    for _ in range(MAX_FIBRES):
        heaviest = left.argmax(0)
        axis = directions.gather(0, heaviest[None, None].expand(1, 3, -1))
        cosine = (directions * axis).sum(1)
        near = (cosine.abs() >= torch.cos(torch.deg2rad(cosine.new_tensor(SAME_FIBRE)))) * left
        mean = (directions * (near * cosine.sign())[:, None]).sum(0)
        found.append(mean / mean.norm(dim=0).clamp_min(1e-12))
        shares.append(near.sum(0) / total)
        left = left - near
    share, order = torch.stack(shares).sort(dim=0, descending=True)
    direction = torch.stack(found).gather(0, order[:, None].expand(-1, 3, -1))
    counted = share >= LEAST_SHARE
    return direction * counted[:, None], share * counted
