"""Blocks of varied heads, known as harmonics of q-space, from which networks are pretrained.

A block is a box of voxels somewhere in a head, in axes of its own. What fibres do to the signal is
kept as real even harmonics up to ORDER of the orientation density, averaged from a grid twice as
fine. The signal at any b and direction is then one product (Funk-Hecke: a kernel symmetric about
each fibre multiplies the harmonics of degree l by 4π/(2l+1) times its Legendre coefficient), so a
block can be scanned with any scheme at the price of a small matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from bidsapp.modalities.dwi.physics.harmonics import harmonics_at
from bidsapp.modalities.dwi.physics.harmonics import n_coefficients as count
from bidsapp.modalities.dwi.physics.peaks import MAX_FIBRES
from bidsapp.modalities.dwi.simulate.fibres import fibres_at, resolve
from bidsapp.modalities.dwi.simulate.scan import blocks_of
from bidsapp.simulate.acquisition import averaged
from bidsapp.simulate.anatomy import CSF, GM, RIM, WM
from bidsapp.simulate.grids import Grid, chance, normal, rotation, uniform

if TYPE_CHECKING:
    from bidsapp.modalities.dwi.simulate.fibres import Bundles
    from bidsapp.simulate.anatomy import Head

#: Order of the orientation density.
ORDER = 8
K = count(ORDER)
#: Fine voxels along the edge of a voxel.
FINE = 2
#: Share of white matter from which a fine voxel's fibres count.
SOME = 0.02


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Anatomy and fibres on ``grid``; directions and harmonics in the axes of the grid."""

    grid: Grid
    tissues: Tensor  #: (9, X, Y, Z) fractions of ``anatomy.TISSUES``
    white: Tensor  #: (K, X, Y, Z) orientation density of white matter times its fraction
    grey: Tensor  #: (K, X, Y, Z) that of grey matter, whose neurites stand on the cortex
    directions: Tensor  #: (9, X, Y, Z) unit vectors of the fibres that count, strongest first

    @property
    def mask(self) -> Tensor:
        """(X, Y, Z) bool, at least half brain."""
        return self.tissues[: CSF + 1].sum(0) >= 0.5


def draw_block_grid(head: Head, side: int, generator: torch.Generator) -> Grid:
    """A box of ``side``³ voxels of 1 to 4.5 mm around a brain voxel; upright or at any angle."""
    voxel = torch.exp(torch.empty(3).fill_(uniform(0.0, 1.25, generator)))
    if chance(0.5, generator):
        voxel = voxel * torch.exp(0.3 * normal((3,), generator))
    voxel = voxel.clamp(1.0, 4.5)
    upright = chance(0.5, generator)
    degrees_ = (10 if upright else 90) * normal((3,), generator)
    affine = torch.eye(4)
    affine[:3, :3] = rotation(degrees_) * voxel
    template = head.template
    brain = (template.fractions[: CSF + 1].sum(0) > 0.5).nonzero()
    pick = brain[int(uniform(0, len(brain), generator))].float().cpu()
    there = template.grid.affine.cpu()[:3, :3] @ pick + template.grid.affine.cpu()[:3, 3]
    # The inverse of the head's affine part is near enough to choose a place.
    centre = torch.linalg.solve(head.affine.cpu()[:3, :3], there - head.affine.cpu()[:3, 3])
    affine[:3, 3] = centre - affine[:3, :3] @ torch.full((3,), (side - 1) / 2)
    return Grid((side, side, side), affine.to(head.affine))


def axes_of(grid: Grid) -> Tensor:
    """(3, 3) unit vectors of the voxel axes in world space, one a column."""
    return grid.affine[:3, :3] / grid.affine[:3, :3].norm(dim=0)


def make_block(head: Head, bundles: Bundles, grid: Grid) -> Block:
    """Look at a head through ``grid``."""
    fine = grid.refined(FINE)
    tissues = head.tissues(fine.points())
    axes = axes_of(grid)
    where = tissues[WM] > SOME
    fibres = fibres_at(bundles, head, fine, where)
    local = torch.einsum('wg,fwv->fgv', axes, fibres.directions)
    amount = fibres.shares * tissues[WM][where]
    density = sum(
        harmonics_at(v, ORDER) * a for v, a in zip(local.unbind(), amount.unbind(), strict=True)
    )
    assert isinstance(density, Tensor)
    coarse = averaged(tissues, FINE)
    cortex = tissues[GM] > SOME
    standing = harmonics_at(_outward(tissues, fine)[:, cortex], ORDER) * tissues[GM][cortex]
    fibrous = (coarse[: CSF + 1].sum(0) >= 0.5) & (fractions_of(coarse).argmax(0) == WM)
    return Block(
        grid,
        coarse,
        _pooled(density, where),
        _pooled(standing, cortex),
        _fibres_that_count(local, amount, where, fibrous),
    )


def fractions_of(tissues: Tensor) -> Tensor:
    """(9, X, Y, Z) → (3, X, Y, Z) GM, WM, CSF; fluid around the brain is CSF."""
    return torch.stack([tissues[GM], tissues[WM], tissues[CSF] + tissues[RIM]])


def _outward(tissues: Tensor, fine: Grid) -> Tensor:
    """(3, X, Y, Z) unit vectors from white matter to fluid, in the axes of the grid."""
    depth = tissues[WM] - tissues[CSF] - tissues[RIM]
    smooth = depth[None, None]
    for _ in range(2):
        smooth = F.avg_pool3d(smooth, 5, stride=1, padding=2, count_include_pad=False)
    slope = torch.stack(torch.gradient(smooth[0, 0], spacing=fine.spacing))
    return slope / slope.norm(dim=0).clamp_min(1e-6)


def _pooled(values: Tensor, where: Tensor) -> Tensor:
    """(K, V) at fine voxels ``where`` → (K, X, Y, Z) mean over blocks of FINE³."""
    full = values.new_zeros(len(values), where.numel())
    full[:, where.flatten()] = values
    return averaged(full.view(len(values), *where.shape), FINE)


def _fibres_that_count(local: Tensor, amount: Tensor, where: Tensor, fibrous: Tensor) -> Tensor:
    """(9, X, Y, Z) directions that count in each voxel of ``fibrous``, strongest first."""
    directions = local.new_zeros(3 * MAX_FIBRES, *where.shape)
    directions[:, where] = local.flatten(0, 1)
    weights = local.new_zeros(MAX_FIBRES, *where.shape)
    weights[:, where] = amount
    candidates = blocks_of(directions, FINE)[..., fibrous]
    found, _ = resolve(
        candidates.reshape(MAX_FIBRES, 3, FINE**3, -1).movedim(2, 1).flatten(0, 1),
        blocks_of(weights, FINE)[..., fibrous].flatten(0, 1),
    )
    merged = local.new_zeros(3 * MAX_FIBRES, *fibrous.shape)
    merged[:, fibrous] = found.flatten(0, 1)
    return merged
