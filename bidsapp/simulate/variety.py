"""Heads more varied than people are, so that no template can be learnt by heart."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from bidsapp.core import MAX_FIBRES
from bidsapp.simulate.anatomy import (
    AIR,
    CSF,
    GM,
    LEAST_JACOBIAN,
    TISSUES,
    WM,
    Head,
    Template,
    draw_head,
)
from bidsapp.simulate.bundles import FAMILIES
from bidsapp.simulate.fibres import (
    Bundles,
    density_field,
    draw_curves,
    lattice_of,
    random_curves,
)
from bidsapp.simulate.grids import Grid, jacobian, normal, smooth_field, uniform

#: Chance of a brain that resembles none: random fields for tissues, random tubes for bundles.
ABSTRACT = 0.25
#: Chance of large ventricles; (centre in MNI mm, width in mm) of what widens.
WIDE_VENTRICLES = 0.3
VENTRICLES = (((-15.0, -15.0, 15.0), 32.0), ((15.0, -15.0, 15.0), 32.0))


def chance(probability: float, generator: torch.Generator) -> bool:
    """True with this probability."""
    return uniform(0, 1, generator) < probability


def draw_varied_head(template: Template, generator: torch.Generator) -> Head:
    """A head with a strong smooth deformation, other proportions, and now and then wide ventricles.

    The deformation differs from side to side, and never folds.
    """
    head = draw_head(template, generator)
    stretch = torch.diag(torch.exp(0.07 * normal((4,), generator)))
    stretch[3, 3] = 1
    width, amplitude = uniform(9, 25, generator), uniform(0, 5, generator)
    points = head.lattice.points()
    more = amplitude * smooth_field(head.lattice.axes(), width, 3, generator).to(points)
    if chance(WIDE_VENTRICLES, generator):
        for centre, reach in VENTRICLES:
            offset = points - torch.tensor(centre).to(points)[:, None, None, None]
            near = torch.exp(-offset.square().sum(0) / (2 * (reach / 2) ** 2))
            more = more - uniform(0.1, 0.5, generator) * near * offset
    affine = stretch.to(head.affine) @ head.affine
    linear, step = affine[:3, :3], 0.85
    total = head.displacement + more
    while torch.linalg.det(linear + jacobian(total, head.lattice)).min() < LEAST_JACOBIAN:
        total = total * step
    return replace(head, affine=affine, displacement=total)


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


def abstract_template(generator: torch.Generator, device: torch.device) -> Template:
    """A ball of brain whose tissues are smooth random fields, in a box of 160 mm."""
    step, side = 2.0, 80
    affine = torch.diag(torch.tensor([step, step, step, 1.0], device=device))
    affine[:3, 3] = -step * (side - 1) / 2
    grid = Grid((side, side, side), affine)
    width = uniform(5, 12, generator)
    fields = smooth_field(grid.axes(), width, 3, generator).to(device)
    # White matter is the most, fluid the least.
    fields = fields + torch.tensor([0.0, 0.5, -0.6], device=device)[:, None, None, None]
    brain = (fields * uniform(4, 12, generator)).softmax(0)
    radius = grid.points().norm(dim=0)
    edge = uniform(50, 70, generator) + 4 * smooth_field(grid.axes(), 15.0, 1, generator)[0]
    inside = ((edge.to(device) - radius) / step).clamp(0, 1)
    fractions = torch.zeros(len(TISSUES), *grid.shape, device=device)
    fractions[[GM, WM, CSF]] = brain * inside
    fractions[AIR] = 1 - inside
    return Template(fractions, grid)


def abstract_head(template: Template) -> Head:
    """A head that is its template."""
    device = template.fractions.device
    step = 20.0
    affine = torch.diag(torch.tensor([step, step, step, 1.0], device=device))
    affine[:3, 3] = -100.0
    lattice = Grid((11, 11, 11), affine)
    still = torch.zeros(3, *lattice.shape, device=device)
    return Head(template, torch.eye(4, device=device), still, lattice)


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
