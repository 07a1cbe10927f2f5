"""What a head is made of, for a gradient echo: χ, R2* and proton density of every point.

χ in ppm relative to water. Tissues are those of `simulate.anatomy`; iron-rich nuclei, veins, a
microbleed and a calcification are painted into them. Values at 3 T, rounded from Langkammer et al.,
NeuroImage 62:1593 (2012), Schweser et al., NeuroImage 54:2789 (2011), and, of bone and air,
Schenck, Med Phys 23:815 (1996).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bidsapp.simulate.grids import normal, smooth_field, uniform

if TYPE_CHECKING:
    from bidsapp.simulate.anatomy import Head
    from bidsapp.simulate.grids import Grid

#: ppm, 1/s and relative density, in the order of `simulate.anatomy.TISSUES`.
CHI = (0.02, -0.03, 0.0, 0.0, -2.1, 0.6, 0.0, 0.0, 9.4)
R2STAR = (17.0, 20.0, 2.0, 3.0, 900.0, 30.0, 35.0, 3.0, 0.0)
DENSITY = (0.85, 0.72, 1.0, 1.0, 0.1, 0.9, 0.7, 1.0, 0.0)
#: χ of nuclei with their centres and radii in MNI mm, of the right side; later ones lie on top.
NUCLEI = (
    (0.02, (11.0, -18.0, 7.0), (8.0, 12.0, 8.0)),  # thalamus
    (0.07, (12.0, 13.0, 9.0), (5.0, 10.0, 8.0)),  # caudate nucleus
    (0.08, (26.0, 3.0, 0.0), (5.5, 14.0, 9.0)),  # putamen
    (0.17, (19.0, -4.0, -2.0), (5.0, 8.0, 6.0)),  # globus pallidus
    (0.14, (10.0, -18.0, -12.0), (5.0, 6.0, 3.0)),  # substantia nigra
    (0.11, (5.0, -21.0, -9.0), (3.5, 4.0, 3.5)),  # red nucleus
    (0.11, (15.0, -58.0, -35.0), (7.0, 9.0, 5.0)),  # dentate nucleus
)
#: Of iron: 1/s a ppm.
RELAXIVITY = 140.0
#: Venous blood that is not fully oxygenated.
BLOOD_CHI, BLOOD_R2STAR = 0.3, 40.0
#: Veins: how many; mm of radius, of length.
VEINS, VEIN_RADIUS, VEIN_LENGTH = 60, (0.4, 1.3), (15.0, 60.0)
#: ppm, and mm of radius, of a microbleed and a calcification.
LESIONS = ((1.0, 1.8), (-1.6, 2.2))
#: ppm: texture of tissue, smooth over as many mm.
TEXTURE, GRAIN = 0.008, 4.0


@dataclass(frozen=True, slots=True, eq=False)
class Matter:
    """Maps (X, Y, Z) on one grid."""

    chi: Tensor  #: ppm relative to water
    r2star: Tensor  #: 1/s
    density: Tensor  #: 0 to 1
    brain: Tensor  #: share of a voxel that is brain or fluid among it

    def paint(self, share: Tensor, chi: float, r2star: float) -> None:
        """Put other matter, of unchanged density, into a ``share`` (X, Y, Z) of each voxel."""
        self.chi.lerp_(torch.full_like(share, chi), share)
        self.r2star.lerp_(torch.full_like(share, r2star), share)


def matter_of(head: Head, grid: Grid, generator: torch.Generator) -> Matter:
    """The matter of ``head`` on ``grid``, with veins and lesions drawn anew."""
    points = grid.points()
    tissues = head.tissues(points)

    def mixed(values: tuple[float, ...]) -> Tensor:
        return torch.tensordot(tissues.new_tensor(values), tissues, 1)

    brain = tissues[:3].sum(0)
    matter = Matter(mixed(CHI), mixed(R2STAR), mixed(DENSITY), brain)
    matter.chi.add_(TEXTURE * smooth_field(grid.axes(), GRAIN, 1, generator)[0] * brain)
    spacing = min(grid.spacing)
    _nuclei(matter, head.to_template(points), spacing)
    inside = points[:, brain > 0.99]
    middle = inside.mean(1)
    lines = [_vein(inside, middle, spacing, generator) for _ in range(VEINS)]
    radii = [uniform(*VEIN_RADIUS, generator) for _ in lines]
    each = torch.cat([torch.full_like(line[0], r) for line, r in zip(lines, radii, strict=True)])
    matter.paint(brain * tube(torch.cat(lines, 1), each, grid), BLOOD_CHI, BLOOD_R2STAR)
    for chi, radius in LESIONS:
        deep = inside[:, (inside - middle[:, None]).norm(dim=0) < 45]
        spot = deep[:, _index(deep.shape[1], generator)][:, None]
        matter.paint(tube(spot, spot.new_full((1,), radius), grid), chi, 20 + RELAXIVITY * abs(chi))
    return matter


def _nuclei(matter: Matter, template: Tensor, spacing: float) -> None:
    for chi, centre, radii in NUCLEI:
        offset = template.clone()
        offset[0] = offset[0].abs()  # both sides
        size = offset.new_tensor(radii)[:, None, None, None]
        offset = (offset - offset.new_tensor(centre)[:, None, None, None]) / size
        level = offset.square().sum(0).sqrt() - 1
        share = (0.5 - level * min(radii) / spacing).clamp(0, 1) * matter.brain
        matter.paint(share, chi, 18 + RELAXIVITY * chi)


def _index(n: int, generator: torch.Generator) -> int:
    return int(torch.randint(n, (), generator=generator, device=generator.device))


def _vein(inside: Tensor, middle: Tensor, spacing: float, generator: torch.Generator) -> Tensor:
    """(3, N) world mm of a bent line from a point of the brain inwards, half a voxel apart."""
    start = inside[:, _index(inside.shape[1], generator)]
    along = middle - start + 15 * normal((3,), generator, start.device)
    along = along / along.norm().clamp_min(1e-6)
    bend = normal((3,), generator, start.device)
    length = uniform(*VEIN_LENGTH, generator)
    steps = torch.arange(0, length, spacing / 2, device=start.device)
    return start[:, None] + along[:, None] * steps + 0.006 * bend[:, None] * steps**2


def tube(line: Tensor, radius: Tensor, grid: Grid) -> Tensor:
    """(X, Y, Z) share of each voxel within ``radius`` (N,) mm of its point of ``line`` (3, N)."""
    spacing = min(grid.spacing)
    reach = [int((float(radius.max()) + spacing) / size) + 1 for size in grid.spacing]
    steps = torch.cartesian_prod(*(torch.arange(-n, n + 1) for n in reach)).T.to(line.device)
    inverse = torch.linalg.inv(grid.affine)
    nearest = (inverse[:3, :3] @ line + inverse[:3, 3:]).round().long()
    size = torch.tensor(grid.shape, device=line.device)[:, None]
    share = line.new_zeros(grid.shape).flatten()
    # A tube thinner than a voxel fills it in part only.
    most = (2 * radius / spacing).clamp(max=1) ** 2
    for step in steps.T:
        voxel = nearest + step[:, None]
        offset = grid.affine[:3, :3] @ voxel.to(line) + grid.affine[:3, 3:] - line
        own = (0.5 + (radius - offset.square().sum(0).sqrt()) / spacing).clamp(0, 1) * most
        there = ((voxel >= 0) & (voxel < size)).all(0) & (own > 0)
        x, y, z = voxel[:, there]
        index = (x * grid.shape[1] + y) * grid.shape[2] + z
        share.scatter_reduce_(0, index, own[there], 'amax')
    return share.reshape(grid.shape)
