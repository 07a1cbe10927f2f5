"""Voxels and tilts of training blocks, and those that training never sees."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from bidsapp.simulate.grids import normal, uniform

#: mm: edges of voxels; the longest over the shortest, at most.
EDGES, MOST_ANISOTROPIC = (0.4, 3.0), 4.0
#: Left out of training, so that they can test it: mm of any edge; the longest edge over the
#: shortest; degrees between B0 and the nearest voxel axis.
UNSEEN_EDGES, UNSEEN_ANISOTROPY, UNSEEN_TILTS = (1.35, 1.65), (2.5, 3.0), (30.0, 40.0)
#: Chance that all edges are the same, that two are; that B0 lies along an axis, or near one.
CUBE, TWO_ALIKE, AXIAL, NEARLY = 0.4, 0.75, 0.2, 0.5
#: Degrees that count as nearly.
NEAR = 25.0


@dataclass(frozen=True, slots=True)
class Geometry:
    """The voxels of a scan, and how it lies in B0."""

    voxel_mm: tuple[float, float, float]
    b: tuple[float, float, float]  #: unit vector of B0 along the voxel axes

    @property
    def edge(self) -> float:
        """Geometric mean of the edges, mm."""
        return math.prod(self.voxel_mm) ** (1 / 3)

    @property
    def anisotropy(self) -> float:
        """The longest edge over the shortest."""
        return max(self.voxel_mm) / min(self.voxel_mm)

    @property
    def tilt_deg(self) -> float:
        """Degrees between B0 and the nearest voxel axis."""
        return math.degrees(math.acos(min(max(map(abs, self.b)), 1.0)))

    @property
    def unseen(self) -> bool:
        """Whether training leaves it out."""
        low, high = UNSEEN_EDGES
        return (
            any(low <= edge <= high for edge in self.voxel_mm)
            or UNSEEN_ANISOTROPY[0] <= self.anisotropy <= UNSEEN_ANISOTROPY[1]
            or UNSEEN_TILTS[0] <= self.tilt_deg <= UNSEEN_TILTS[1]
        )


def draw_geometry(generator: torch.Generator) -> Geometry:
    """Any that is not unseen."""
    while True:
        found = Geometry(_edges(generator), _direction(generator))
        if found.anisotropy <= MOST_ANISOTROPIC and not found.unseen:
            return found


def _edges(generator: torch.Generator) -> tuple[float, float, float]:
    low, high = (math.log(edge) for edge in EDGES)
    first, second, third = (math.exp(uniform(low, high, generator)) for _ in range(3))
    kind = uniform(0, 1, generator)
    if kind < CUBE:
        return first, first, first
    edges = (first, first, third) if kind < TWO_ALIKE else (first, second, third)
    order = torch.randperm(3, generator=generator).tolist()
    return edges[order[0]], edges[order[1]], edges[order[2]]


def _direction(generator: torch.Generator) -> tuple[float, float, float]:
    """Unit vector, at any angle to the voxel axes, along each of them as often."""
    kind = uniform(0, 1, generator)
    vector = normal((3,), generator).double()
    if kind < AXIAL + NEARLY:
        axis = int(torch.randint(3, (), generator=generator))
        across = vector.clone()
        across[axis] = 0
        tilt = 0.0 if kind < AXIAL else math.radians(uniform(0, NEAR, generator))
        vector = math.sin(tilt) * across / across.norm().clamp_min(1e-9)
        vector[axis] = math.cos(tilt)
    x, y, z = (vector / vector.norm()).tolist()
    return x, y, z
