"""Domain randomisation: heads so varied that no template can be learnt by heart."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

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
    distance_to,
    draw_head,
)
from bidsapp.simulate.grids import Grid, chance, jacobian, normal, smooth_field, uniform

#: Chance of a brain that resembles none: random fields for tissues, random tubes for bundles.
ABSTRACT = 0.25
#: Chance of a cortex with folds of its own; (least, most) mm from the outside in to which it has
#: them, width of the random field whose zeros are sulci, thickness of grey matter, half width of
#: the fluid in a sulcus.
FOLDED = 0.5
FOLDS = {'reach': (8.0, 24.0), 'width': (3.5, 7.0), 'thickness': (1.6, 3.6), 'sulcus': (0.0, 1.2)}
#: Chance of large ventricles; (centre in MNI mm, width in mm) of what widens.
WIDE_VENTRICLES = 0.3
VENTRICLES = (((-15.0, -15.0, 15.0), 32.0), ((15.0, -15.0, 15.0), 32.0))


def draw_varied_head(template: Template, generator: torch.Generator) -> Head:
    """A head with a strong smooth deformation, other proportions, and now and then wide ventricles.

    The deformation differs from side to side, and never folds.
    """
    if chance(FOLDED, generator):
        template = refolded(template, generator)
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


@lru_cache(maxsize=2)
def _depth(template: Template) -> torch.Tensor:
    """(X, Y, Z) mm from the outside of the brain, as far as folds may reach."""
    outside = template.fractions[: CSF + 1].sum(0) < 0.5
    return distance_to(outside, float(template.grid.affine[0, 0]), FOLDS['reach'][1] + 4)


def refolded(template: Template, generator: torch.Generator) -> Template:
    """The template with another cortex: an average of many brains has no folds, a brain has."""
    fractions = template.fractions.clone()
    brain = fractions[: CSF + 1].sum(0)
    shares = fractions[: CSF + 1] / brain.clamp_min(1e-6)
    fractions[: CSF + 1] = with_folds(shares, _depth(template), template.grid, generator) * brain
    return Template(fractions, template.grid)


def with_folds(
    shares: torch.Tensor, depth: torch.Tensor, grid: Grid, generator: torch.Generator
) -> torch.Tensor:
    """Shares (3, X, Y, Z) of grey, white and fluid with a folded cortex ``depth`` mm inside.

    Sulci are where a smooth random field is zero: |f|/|∇f| is the distance from them. Grey matter
    of one thickness lines them and the outside, white matter fills what is left, in thin sheets
    where two sulci come near one another.
    """
    reach, width, thickness, sulcus = (uniform(*FOLDS[name], generator) for name in FOLDS)
    field = smooth_field(grid.axes(), width, 1, generator)[0].to(shares)
    step = grid.spacing[0]
    slope = torch.stack(torch.gradient(field, spacing=step)).norm(dim=0)
    away = torch.minimum(field.abs() / slope.clamp_min(0.1 / width) - sulcus, depth)
    fluid = (0.5 - away / step).clamp(0, 1)
    white = (0.5 + (away - thickness) / step).clamp(0, 1)
    folded = torch.stack([1 - white - fluid, white, fluid]).clamp_min(0)
    folded = folded / folded.sum(0)
    here = ((reach - depth) / 4 + 0.5).clamp(0, 1)
    return here * folded + (1 - here) * shares


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
    if chance(FOLDED, generator):
        brain = with_folds(brain, edge.to(device) - radius, grid, generator)
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
