"""The field that air in the skull leaves in a brain, which shifts echo-planar images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bidsapp.simulate.grids import normal, smooth_field, uniform

if TYPE_CHECKING:
    from bidsapp.simulate.anatomy import Head
    from bidsapp.simulate.grids import Grid

#: (centre in MNI mm, radius in mm) of balls of air: ethmoid with the frontal sinuses, sphenoid
#: sinus, and the two ears with their mastoid cells.
CAVITIES = (
    ((0.0, 52.0, -34.0), 15.5),
    ((0.0, 18.0, -46.0), 12.0),
    ((-52.0, -22.0, -38.0), 12.0),
    ((52.0, -22.0, -38.0), 12.0),
)
#: Air less tissue, and Hz per tesla of a proton.
SUSCEPTIBILITY, GYROMAGNETIC = 9.4e-6, 42.577e6
#: mm; what is nearer to a cavity than this is blurred, as the cavities are no balls.
BLUR = 16.0
#: Hz at 3 T and mm: what the shim leaves elsewhere, and its width.
REMAINDER, WIDTH = 8.0, 30.0


def draw_off_resonance(
    head: Head, grid: Grid, generator: torch.Generator, tesla: float = 3.0
) -> Tensor:
    """(X, Y, Z) Hz on ``grid``, the main field along world z and shimmed on the brain.

    A ball of air in water is a dipole: R³ (3 cos² θ - 1) / r³ of a third of its susceptibility.
    Size and place of the cavities vary. A constant and a gradient, which the scanner adjusts, are
    removed to leave least squares over the brain.
    """
    points = grid.points()
    template = head.to_template(points)
    hz = tesla / 3 * REMAINDER * smooth_field(grid.axes(), WIDTH, 1, generator)[0]
    for centre, radius in CAVITIES:
        place = torch.tensor(centre) + 3 * normal((3,), generator)
        size = radius * uniform(0.85, 1.15, generator)
        offset = template - place.to(template)[:, None, None, None]
        squared = offset.square().sum(0)
        dipole = (3 * offset[2].square() - squared) / (squared + BLUR**2) ** 2.5
        hz = hz + tesla * GYROMAGNETIC * SUSCEPTIBILITY / 3 * size**3 * dipole
    return _shimmed(hz, points, head.tissues(points)[:3].sum(0) > 0.5)


def _shimmed(hz: Tensor, points: Tensor, brain: Tensor) -> Tensor:
    """``hz`` (X, Y, Z) less what is linear in space in the brain."""
    centre = points[:, brain].mean(1)
    terms = torch.cat([torch.ones_like(points[:1]), (points - centre[:, None, None, None]) / 50])
    inside = terms[:, brain]
    fitted = torch.linalg.solve(inside @ inside.T, inside @ hz[brain])
    linear: Tensor = torch.tensordot(fitted, terms, dims=1)
    return hz - linear
