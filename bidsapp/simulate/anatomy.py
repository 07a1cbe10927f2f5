"""Heads: a template brain with a skull, scalp, face and eyes around it, deformed for each person.

A head lives in its own world space (RAS+ mm). Tissue at a point is the template's tissue at the
point's image under a map that is affine plus a smooth displacement and never folds.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from bidsapp.simulate.grids import (
    Grid,
    jacobian,
    moved,
    normal,
    rotation,
    sample,
    smooth_field,
    uniform,
)

#: What a head is made of, in the order of every array of fractions; the first three are the brain.
TISSUES = ('gm', 'wm', 'csf', 'rim', 'skull', 'scalp', 'muscle', 'eye', 'air')
GM, WM, CSF, RIM, SKULL, SCALP, MUSCLE, EYE, AIR = range(len(TISSUES))

#: mm from the brain's hull to the outer face of the fluid around it, of the skull, of the scalp.
RIM_FACE, SKULL_FACE, SCALP_FACE = 2.5, 8.5, 14.0
#: mm of skin and fat over the face and the neck.
SKIN = 5.0
#: mm of tissue added around the template for what lies outside the brain.
MARGIN = 27.0
#: (centre, radii) in MNI mm.
FACE = ((0.0, 32.0, -50.0), (62.0, 60.0, 58.0))
NECK = ((0.0, -25.0, -95.0), (60.0, 66.0, 62.0))
NASAL_CAVITY = ((0.0, 66.0, -50.0), (9.0, 16.0, 20.0))
EYES = (((-32.0, 66.0, -37.0), (12.0, 12.0, 12.0)), ((32.0, 66.0, -37.0), (12.0, 12.0, 12.0)))

#: A template average is blurred; its fractions are raised to this power to give one brain's.
SHARPNESS = 2.0
#: Smallest determinant of the derivative of the map to the template: no folding.
LEAST_JACOBIAN = 0.3


def distance_to(mask: Tensor, spacing: float, limit: float) -> Tensor:
    """Exact distance in mm to the nearest true voxel of ``mask`` (X, Y, Z), at most ``limit``.

    The squared distance separates: along each axis in turn, min over shifts k of d² + k².
    """
    reach = int(limit / spacing) + 1
    squared = torch.where(mask, 0.0, float((limit / spacing) ** 2))
    for axis in range(3):
        nearest = squared.clone()
        n = mask.shape[axis]
        for k in range(1, min(reach, n - 1) + 1):
            left, right = squared.narrow(axis, 0, n - k), squared.narrow(axis, k, n - k)
            for here, there in (
                (nearest.narrow(axis, k, n - k), left),
                (nearest.narrow(axis, 0, n - k), right),
            ):
                here.copy_(torch.minimum(here, there + k * k))
        squared = nearest
    return squared.sqrt() * spacing


def _ellipsoid(points: Tensor, centre: tuple[float, ...], radii: tuple[float, ...]) -> Tensor:
    """Signed distance in mm, roughly, to an ellipsoid: negative inside."""
    size = points.new_tensor(radii)
    offset = points - points.new_tensor(centre)[:, None, None, None]
    return ((offset / size[:, None, None, None]).norm(dim=0) - 1) * size.min()


def _outward(brain: Tensor, spacing: float) -> Tensor:
    """mm from the brain's hull, 0 inside it; worked out on a grid twice as coarse."""
    coarse = F.avg_pool3d(brain[None], 2, ceil_mode=True)[0]
    # Closing the brain by 9 mm bridges the sulci and the cisterns.
    dilated = distance_to(coarse > 0.5, 2 * spacing, 12) <= 9
    hull = distance_to(~dilated, 2 * spacing, 12) > 9
    distance = distance_to(hull, 2 * spacing, SCALP_FACE + 10)
    fine = F.interpolate(distance[None, None], scale_factor=2, mode='trilinear')[0, 0]
    # The first voxel centre outside is half a voxel from the face of the hull.
    x, y, z = brain.shape
    return (fine[:x, :y, :z] - spacing).clamp_min(0)


@dataclass(frozen=True, slots=True, eq=False)
class Template:
    """Fractions of each of ``TISSUES`` (9, X, Y, Z), summing to one, in template space."""

    fractions: Tensor
    grid: Grid


def head_template(gm: Tensor, wm: Tensor, csf: Tensor, affine: Tensor) -> Template:
    """A whole head around the brain maps (X, Y, Z) in [0, 1] of an isotropic RAS ``affine``."""
    spacing = float(affine[0, 0])
    pad = round(MARGIN / spacing)
    brain = F.pad(torch.stack([gm, wm, csf]).float(), (pad,) * 6)
    affine = affine.float().clone()
    affine[:3, 3] -= pad * spacing
    grid = Grid((brain.shape[1], brain.shape[2], brain.shape[3]), affine)
    inside = brain.sum(0).clamp(0, 1)
    sharp = brain**SHARPNESS
    sharp = sharp / sharp.sum(0).clamp_min(1e-20)

    fractions = brain.new_zeros(len(TISSUES), *grid.shape)
    fractions[AIR] = 1

    def paint(tissue: int, share: Tensor) -> None:
        fractions.mul_(1 - share)
        fractions[tissue] += share

    def within(level: Tensor) -> Tensor:
        return (0.5 - level / spacing).clamp(0, 1)

    points = grid.points()
    outward = _outward(inside, spacing)
    body = torch.minimum(_ellipsoid(points, *FACE), _ellipsoid(points, *NECK))
    surface = torch.minimum(body, outward - SCALP_FACE)
    paint(SCALP, within(surface))
    paint(MUSCLE, within(surface + SKIN) * (outward > SKULL_FACE))
    paint(AIR, within(_ellipsoid(points, *NASAL_CAVITY)))
    for eye in EYES:
        paint(EYE, within(_ellipsoid(points, *eye)))
    paint(SKULL, within(outward - SKULL_FACE))
    paint(RIM, within(outward - RIM_FACE))
    fractions *= 1 - inside
    fractions[: len(sharp)] += inside * sharp
    return Template(fractions, grid)


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """One person's head: the template, and the map from the person's space to the template's."""

    template: Template
    affine: Tensor  #: (4, 4) person → template mm
    displacement: Tensor  #: (3, X, Y, Z) mm, added after ``affine``
    lattice: Grid  #: where ``displacement`` is known, in the person's space

    def to_template(self, points: Tensor) -> Tensor:
        """(3, …) person's world mm → (3, …) template mm."""
        return moved(self.affine, points) + sample(self.displacement, self.lattice, points)

    def tissues(self, points: Tensor) -> Tensor:
        """Fractions (9, …) of ``TISSUES`` at the person's world ``points`` (3, …)."""
        return sample(self.template.fractions, self.template.grid, self.to_template(points))


def draw_head(template: Template, generator: torch.Generator) -> Head:
    """A person: size ±6 %, a tilted and sheared head, and a smooth displacement of a few mm."""
    device = template.fractions.device
    size = uniform(0.94, 1.06, generator) * (1 + 0.015 * normal((3,), generator))
    shear = torch.eye(3) + 0.015 * torch.triu(normal((3, 3), generator), 1)
    turn = rotation(3 * normal((3,), generator))
    affine = torch.eye(4)
    affine[:3, :3] = torch.linalg.inv(turn @ shear @ torch.diag(size))
    affine[:3, 3] = 4 * normal((3,), generator)
    amplitude, width = uniform(1.2, 2.2, generator), uniform(11, 18, generator)
    return Head(template, affine.to(device), *_displacement(amplitude, width, generator, device))


def _displacement(
    amplitude: float, width: float, generator: torch.Generator, device: torch.device
) -> tuple[Tensor, Grid]:
    """Smooth displacement (3, X, Y, Z), s.d. ``amplitude`` mm an axis, weakened until unfolded."""
    step, half = 4.0, (112.0, 140.0, 128.0)
    affine = torch.diag(torch.tensor([step, step, step, 1.0], device=device))
    affine[:3, 3] = -torch.tensor(half, device=device)
    lengths = [int(2 * h / step) + 1 for h in half]
    lattice = Grid((lengths[0], lengths[1], lengths[2]), affine)
    field = amplitude * smooth_field(lattice.axes(), width, 3, generator)
    identity = torch.eye(3, device=device)
    while torch.linalg.det(identity + jacobian(field, lattice)).min() < LEAST_JACOBIAN:
        field = field * 0.8
    return field, lattice
