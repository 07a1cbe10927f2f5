"""Fibre bundles more varied than people have."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bidsapp.modalities.dwi.physics.peaks import MAX_FIBRES
from bidsapp.modalities.dwi.simulate.bundles import FAMILIES
from bidsapp.modalities.dwi.simulate.fibres import (
    Bundles,
    density_field,
    draw_curves,
    lattice_of,
    random_curves,
)
from bidsapp.simulate.grids import chance, normal, smooth_field, uniform

if TYPE_CHECKING:
    from bidsapp.simulate.anatomy import Template


def draw_varied_bundles(template: Template, generator: torch.Generator) -> Bundles:
    """Anatomical families, some of them missing, and as many random tubes again."""
    curves, strengths = [], []
    for family in FAMILIES:
        if chance(0.75, generator):
            curves.append(draw_curves(family, generator, jitter=4.0))
            strengths.append(family.strength * uniform(0.5, 1.5, generator))
    for _ in range(int(uniform(4, 20, generator))):
        curves.append(random_curves(template, generator))
        strengths.append(uniform(0.4, 1.4, generator))
    lattice = lattice_of(template.grid)
    device = template.fractions.device
    fields = [
        s * density_field(c.to(device), lattice) for s, c in zip(strengths, curves, strict=True)
    ]
    return Bundles(torch.stack(fields), lattice)


def straight_bundles(template: Template, generator: torch.Generator) -> Bundles:
    """Three or four bundles of one direction each, whose shares change slowly over the box."""
    lattice = lattice_of(template.grid)
    n = int(uniform(MAX_FIBRES, 5, generator))
    width = uniform(8, 25, generator)
    shares = smooth_field(lattice.axes(), width, n, generator).mul(0.5).exp()
    # Now and then one or two of them hardly count.
    shares = shares * torch.rand(n, generator=generator).sqrt().to(shares)[:, None, None, None]
    axes = torch.nn.functional.normalize(normal((n, 3), generator), dim=1)
    bend = 0.15 * smooth_field(lattice.axes(), 25.0, 3 * n, generator).unflatten(0, (n, 3))
    fields = (axes[:, :, None, None, None] + bend) * shares[:, None]
    return Bundles(fields.to(template.fractions), lattice)


def abstract_bundles(template: Template, generator: torch.Generator) -> Bundles:
    """Random bent tubes everywhere; or, as often, straight ones that fill the box and cross."""
    if chance(0.5, generator):
        return straight_bundles(template, generator)
    lattice = lattice_of(template.grid)
    device = template.fractions.device
    fields: list[Tensor] = []
    for _ in range(int(uniform(15, 40, generator))):
        curves = random_curves(template, generator).to(device)
        fields.append(uniform(0.4, 1.4, generator) * density_field(curves, lattice))
    return Bundles(torch.stack(fields), lattice)
