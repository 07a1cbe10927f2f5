"""Domain randomisation: heads so varied that no template can be learnt by heart."""

from __future__ import annotations

from dataclasses import replace

import torch

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
from bidsapp.simulate.grids import Grid, chance, jacobian, normal, smooth_field, uniform

#: Chance of a brain that resembles none: random fields for tissues, random tubes for bundles.
ABSTRACT = 0.25
#: Chance of large ventricles; (centre in MNI mm, width in mm) of what widens.
WIDE_VENTRICLES = 0.3
VENTRICLES = (((-15.0, -15.0, 15.0), 32.0), ((15.0, -15.0, 15.0), 32.0))


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
