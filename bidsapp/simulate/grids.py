"""Regular grids in world space: where their voxels are, sampling them, smooth random fields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """Voxel grid: ``shape`` (X, Y, Z) and ``affine`` (4, 4) voxel index → world (RAS+) mm."""

    shape: tuple[int, int, int]
    affine: Tensor

    @property
    def spacing(self) -> list[float]:
        """Voxel edge lengths in mm."""
        return [float(size) for size in self.affine[:3, :3].norm(dim=0)]

    def points(self) -> Tensor:
        """(3, X, Y, Z) world mm of every voxel centre."""
        index = [torch.arange(n, device=self.affine.device) for n in self.shape]
        return moved(self.affine, torch.stack(torch.meshgrid(*index, indexing='ij')).float())

    def axes(self) -> list[Tensor]:
        """Three vectors (n,): mm along each voxel axis, from the first voxel."""
        lengths = zip(self.shape, self.spacing, strict=True)
        return [torch.arange(n, device=self.affine.device) * size for n, size in lengths]

    def refined(self, factor: int) -> Grid:
        """The grid whose blocks of ``factor``³ voxels are the voxels of this one."""
        affine = self.affine.clone()
        affine[:3, :3] /= factor
        affine[:3, 3] -= affine[:3, :3].sum(1) * (factor - 1) / 2
        shape = tuple(n * factor for n in self.shape)
        return Grid((shape[0], shape[1], shape[2]), affine)


def moved(affine: Tensor, points: Tensor) -> Tensor:
    """``affine`` (4, 4) applied to ``points`` (3, …)."""
    flat = points.reshape(3, -1)
    return (affine[:3, :3] @ flat + affine[:3, 3:]).reshape(points.shape)


def sample(volume: Tensor, grid: Grid, points: Tensor, padding: str = 'border') -> Tensor:
    """``volume`` (C, X, Y, Z) on ``grid``, trilinear at world ``points`` (3, …): (C, …)."""
    index = moved(torch.linalg.inv(grid.affine), points).reshape(3, -1)
    size = torch.tensor(grid.shape, device=index.device)[:, None] - 1
    # grid_sample wants [-1, 1] between the centres of the end voxels, last axis first.
    where = (2 * index / size - 1).flip(0).T[None, None, None]
    values = F.grid_sample(
        volume[None], where, mode='bilinear', padding_mode=padding, align_corners=True
    )
    return values.reshape(len(volume), *points.shape[1:])


def jacobian(mapped: Tensor, grid: Grid) -> Tensor:
    """Derivative of a map of world space known at the voxels of ``grid``.

    ``mapped`` (3, X, Y, Z) mm → (X, Y, Z, 3, 3), rows the component, columns the world axis.
    """
    steps = torch.stack(torch.gradient(mapped, dim=(1, 2, 3)), dim=-1).movedim(0, -2)
    return steps @ torch.linalg.inv(grid.affine[:3, :3])


def smooth_field(
    axes: Sequence[Tensor], width: float, channels: int, generator: torch.Generator
) -> Tensor:
    """Stationary Gaussian random field (channels, X, Y, Z): mean 0, variance 1 at every point.

    ``axes`` are three vectors of positions in mm. White noise on knots is spread by Gaussians of
    standard deviation ``width`` mm, so values d mm apart correlate by exp(-d²/(4 width²)).
    """
    knots = [
        torch.arange(float(a.min()) - 3 * width, float(a.max()) + 3 * width, width) for a in axes
    ]
    noise = normal((channels, *(len(k) for k in knots)), generator, axes[0].device)
    kernels = []
    for positions, centres in zip(axes, knots, strict=True):
        kernel = torch.exp(-0.5 * ((positions[:, None] - centres.to(positions)) / width) ** 2)
        kernels.append(kernel / kernel.norm(dim=1, keepdim=True))
    return separable(noise, kernels)


def separable(volume: Tensor, kernels: Sequence[Tensor]) -> Tensor:
    """``volume`` (C, X, Y, Z) with each axis multiplied by its matrix (M, n)."""
    for axis, kernel in enumerate(kernels, start=1):
        volume = torch.tensordot(volume, kernel, dims=([axis], [1])).movedim(-1, axis)
    return volume.contiguous()


def blurred(volumes: Tensor, shares: tuple[float, ...]) -> Tensor:
    """(…, X, Y, Z) with a share of both neighbours mixed in along each axis; sums are kept."""
    for axis, share in zip((-3, -2, -1), shares, strict=True):
        if share:
            n = volumes.shape[axis]
            edges = torch.tensor([0, *range(n), n - 1], device=volumes.device)
            wide = volumes.index_select(axis, edges)
            around = wide.narrow(axis, 0, n) + wide.narrow(axis, 2, n)
            volumes = (1 - 2 * share) * volumes + share * around
    return volumes


def normal(
    shape: Sequence[int], generator: torch.Generator, device: torch.device | str = 'cpu'
) -> Tensor:
    """Standard normal numbers, drawn where the generator lives so that devices agree."""
    return torch.randn(tuple(shape), generator=generator, device=generator.device).to(device)


def uniform(low: float, high: float, generator: torch.Generator) -> float:
    """One number drawn evenly from [low, high)."""
    return low + (high - low) * float(torch.rand((), generator=generator, device=generator.device))


def rotation(degrees: Tensor) -> Tensor:
    """(…, 3, 3) rotation about the axis ``degrees`` (…, 3), by its length in degrees."""
    x, y, z = torch.deg2rad(degrees).unbind(-1)
    zero = torch.zeros_like(x)
    skew = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1)
    return torch.linalg.matrix_exp(skew.reshape(*degrees.shape[:-1], 3, 3))


def rigid(degrees: Tensor, shift: Tensor, centre: Tensor) -> Tensor:
    """(…, 4, 4): turn by ``degrees`` (…, 3) about ``centre`` (3,) mm, then ``shift`` (…, 3) mm."""
    turn = rotation(degrees)
    matrix = torch.eye(4, device=degrees.device).expand(*degrees.shape[:-1], 4, 4).clone()
    matrix[..., :3, :3] = turn
    matrix[..., :3, 3] = shift + centre - turn @ centre
    return matrix


def chance(probability: float, generator: torch.Generator) -> bool:
    """True with this probability."""
    return uniform(0, 1, generator) < probability
