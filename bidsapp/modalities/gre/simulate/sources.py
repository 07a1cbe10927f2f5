"""Sources of a training block: no anatomy, but all that anatomy is made of, in random places.

Level sets of random fields stand for tissues, the neighbourhood of their zeros for a cortex, tubes
for veins, solids for nuclei, small balls for microbleeds and calcifications. Sizes are multiples of
a scanned voxel's mean edge, for what a network can tell is a matter of voxels. χ in ppm.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from bidsapp.modalities.gre.simulate.matter import tube
from bidsapp.simulate.grids import chance, normal, rotation, smooth_field, uniform

if TYPE_CHECKING:
    from torch import Tensor

    from bidsapp.simulate.grids import Grid

#: ppm: spread of tissues, of their texture, of solids; most that anything has.
TISSUE, TEXTURE, SOLID, MOST = 0.04, (0.002, 0.015), 0.1, 3.0
#: ppm of veins, and of microbleeds and calcifications.
VEIN, LESION = (0.1, 0.45), (0.3, 3.0)
#: How many there are of each, at most.
LEVEL_SETS, RIBBONS, TREES, SOLIDS, LESIONS = 3, 2, 4, 16, 4
#: Tubes of a tree, which share their χ, at most.
TUBES = 7
#: In mean edges: smoothness of level sets; radii of tubes, of solids, of lesions; length of tubes.
SMOOTH, TUBE, SIZE, SPOT, LENGTH = (2.5, 14.0), (0.3, 1.5), (1.0, 8.0), (0.6, 2.5), (8.0, 50.0)
#: Chance that the tubes of a tree are paramagnetic, that a solid is an ellipsoid and no box, that a
#: lesion is of blood; how bent tubes are.
PARAMAGNETIC, ROUND, BLOOD, BEND = 0.85, 0.6, 0.6, 0.4
#: Share of contrast by which all of a block is scaled, as a logarithm.
SCALED = 0.7


@dataclass(frozen=True, slots=True, eq=False)
class Sources:
    """Two maps (X, Y, Z) with the same borders and independent values."""

    chi: Tensor  #: ppm
    other: Tensor  #: what gives a field by no susceptibility, as the direction of fibres does

    def paint(self, where: tuple[slice, ...], share: Tensor, value: float, other: float) -> None:
        """Put other matter into a ``share`` of each voxel of the box ``where``."""
        self.chi[where].lerp_(torch.full_like(share, value), share)
        self.other[where].lerp_(torch.full_like(share, other), share)


def draw_sources(grid: Grid, edge: float, generator: torch.Generator) -> Sources:
    """Sources on ``grid``, whose axes are those of the world; ``edge`` in mm is the unit of size.

    ``other`` has about the spread of ``chi``.
    """
    found = Sources(torch.zeros(grid.shape), torch.zeros(grid.shape))
    everywhere = (slice(None),) * 3
    for _ in range(_count(LEVEL_SETS, generator, 1)):
        _add_level_sets(found, _level(grid, edge, generator), generator)
    for _ in range(_count(RIBBONS, generator)):
        thick = uniform(0.1, 0.4, generator)
        share = ((thick - _level(grid, edge, generator).abs()) * 8 + 0.5).clamp_(0, 1)
        found.paint(everywhere, share, *_values(TISSUE, generator))
    found.chi.add_(
        uniform(*TEXTURE, generator)
        * smooth_field(grid.axes(), edge * uniform(1, 3, generator), 1, generator)[0]
    )
    for _ in range(_count(SOLIDS, generator)):
        _add_solid(found, grid, edge, generator)
    for _ in range(_count(TREES, generator)):
        _add_tubes(found, grid, edge, generator)
    found.chi.mul_(math.exp(uniform(-SCALED, SCALED, generator)))
    for _ in range(_count(LESIONS, generator)):
        _add_lesion(found, grid, edge, generator)
    found.chi.clamp_(-MOST, MOST)
    return found


def _count(most: int, generator: torch.Generator, least: int = 0) -> int:
    return int(torch.randint(least, most + 1, (), generator=generator))


def _values(spread: float, generator: torch.Generator) -> tuple[float, float]:
    one, other = (spread * normal((2,), generator)).tolist()
    return one, other


def _level(grid: Grid, edge: float, generator: torch.Generator) -> Tensor:
    return smooth_field(grid.axes(), edge * uniform(*SMOOTH, generator), 1, generator)[0]


def _add_level_sets(found: Sources, level: Tensor, generator: torch.Generator) -> None:
    """Two to four tissues between levels of a random field."""
    cuts = torch.sort(2 * torch.rand(_count(3, generator, 1), generator=generator) - 1).values
    which = torch.bucketize(level, cuts)
    values = TISSUE * normal((2, len(cuts) + 1), generator)
    found.chi.add_(values[0][which])
    found.other.add_(values[1][which])


def _add_solid(found: Sources, grid: Grid, edge: float, generator: torch.Generator) -> None:
    """An ellipsoid or a box, turned, or what is between them."""
    low, high = (math.log(size) for size in SIZE)
    radii = edge * torch.exp(low + (high - low) * torch.rand(3, generator=generator))
    turn = rotation(180 * normal((3,), generator))
    power = 2.0 if chance(ROUND, generator) else 8.0
    centre = _place(grid, generator)
    box, points = _around(grid, centre, float(radii.norm()))
    local = torch.tensordot(turn, points - centre[:, None, None, None], 1)
    local = local / radii[:, None, None, None]
    level = local.abs().pow(power).sum(0).pow(1 / power)
    share = (0.5 + (1 - level) * float(radii.min()) / min(grid.spacing)).clamp_(0, 1)
    heavy = SOLID * math.exp(uniform(-1, 1, generator))
    found.paint(box, share, *_values(heavy, generator))


def _add_tubes(found: Sources, grid: Grid, edge: float, generator: torch.Generator) -> None:
    """Bent tubes, each of its own radius."""
    lines, radii = [], []
    for _ in range(_count(TUBES, generator, 1)):
        along = normal((3,), generator)
        along = along / along.norm().clamp_min(1e-6)
        length = edge * uniform(*LENGTH, generator)
        steps = torch.arange(0, length, min(grid.spacing) / 2)
        bend = normal((3,), generator) / length * BEND
        lines.append(
            _place(grid, generator)[:, None] + along[:, None] * steps + bend[:, None] * steps**2
        )
        radii.append(torch.full_like(steps, edge * uniform(*TUBE, generator)))
    value = uniform(*VEIN, generator) * (1 if chance(PARAMAGNETIC, generator) else -1)
    share = tube(torch.cat(lines, 1), torch.cat(radii), grid)
    found.paint((slice(None),) * 3, share, value, 0.0)


def _add_lesion(found: Sources, grid: Grid, edge: float, generator: torch.Generator) -> None:
    """A ball of blood or of calcium."""
    radius = edge * uniform(*SPOT, generator)
    low, high = (math.log(value) for value in LESION)
    value = math.exp(uniform(low, high, generator)) * (1 if chance(BLOOD, generator) else -1)
    centre = _place(grid, generator)
    box, points = _around(grid, centre, radius)
    away = (points - centre[:, None, None, None]).norm(dim=0)
    share = (0.5 + (radius - away) / min(grid.spacing)).clamp_(0, 1)
    found.paint(box, share, value, 0.0)


def _place(grid: Grid, generator: torch.Generator) -> Tensor:
    """(3,) mm anywhere on the grid."""
    extent = torch.tensor([n * size for n, size in zip(grid.shape, grid.spacing, strict=True)])
    return torch.rand(3, generator=generator) * extent


def _around(grid: Grid, centre: Tensor, radius: float) -> tuple[tuple[slice, ...], Tensor]:
    """The box of voxels within ``radius`` and an edge of ``centre``; (3, …) mm of their centres."""
    axes = grid.axes()
    box = []
    for axis, middle, size in zip(axes, centre.tolist(), grid.spacing, strict=True):
        low = max(0, min(math.floor((middle - radius) / size) - 1, len(axis) - 1))
        box.append(slice(low, max(low + 1, math.ceil((middle + radius) / size) + 2)))
    points = [axis[part] for axis, part in zip(axes, box, strict=True)]
    return tuple(box), torch.stack(torch.meshgrid(*points, indexing='ij'))
