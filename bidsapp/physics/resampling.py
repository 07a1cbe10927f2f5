"""Affine displacement of single volumes: images sampled through it, and how it is found.

A warp says where the head went: a point at x when the first volume was acquired is found at

    y = c + E (R (x - c) + t)

in a later one; c is the centre of the brain and all of it is in world axes (RAS+, mm). R and t are
the head's, E = I + Σ q_k G_k is the image's own: eddy currents displace it along the
phase-encoding axis only, as far as they are linear in space.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from bidsapp.physics.geometry import grid_axes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bidsapp.core import FloatArray

#: Radius in mm at which a rotation counts as displacement (Power et al., NeuroImage 2012).
RADIUS = 50.0
#: mm; where the optimiser rests.
TOLERANCE = 0.005
#: Translation and rotation come first among the parameters.
N_RIGID = 6


def stretches(affine: FloatArray, phase_encoding: str | None) -> np.ndarray:
    """(K, 3, 3) generators G_k of what eddy currents may do to an image, in world axes.

    With an axis ('i', 'j' or 'k', with '-' or without) K = 3: displacement along it in proportion
    to the position along it (stretch) and along the two other grid axes in their order (shears).
    Without one K = 6: the symmetric matrices xx, yy, zz, xy, xz, yz. Raises ValueError for others.
    """
    if phase_encoding is None:
        pairs = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))
        unit = np.eye(3)
        return np.stack(
            [(np.outer(unit[a], unit[b]) + np.outer(unit[b], unit[a])) / 2 for a, b in pairs]
        )
    if phase_encoding.rstrip('-') not in ('i', 'j', 'k'):
        raise ValueError(f'phase encoding {phase_encoding!r} is none of i, j, k, i-, j-, k-')
    first = 'ijk'.index(phase_encoding[0])
    axes = grid_axes(affine).T
    others = [axis for axis in range(3) if axis != first]
    return np.stack([np.outer(axes[first], axes[axis]) for axis in (first, *others)])


@dataclass(frozen=True, slots=True, eq=False)
class Warp:
    """The family of displacements of one run; ``parameters`` (N, 6 + K) pick one a volume.

    Columns: translation of the centre in mm, rotation vector in rad (both world x, y, z, positive
    where the head moved or turned that way), then q, displacement in mm per mm (`stretches`).
    """

    centre: FloatArray  #: (3,) mm
    generators: FloatArray  #: (K, 3, 3)

    @property
    def n_parameters(self) -> int:
        """6 + K."""
        return N_RIGID + len(self.generators)

    def rotations(self, parameters: FloatArray) -> np.ndarray:
        """(N, 3, 3) R."""
        from scipy.spatial.transform import Rotation

        return np.asarray(Rotation.from_rotvec(parameters[:, 3:6]).as_matrix())

    def distortions(self, parameters: FloatArray) -> np.ndarray:
        """(N, 3, 3) E."""
        stretch = np.einsum('nk,kij->nij', parameters[:, N_RIGID:], self.generators)
        return np.asarray(np.eye(3) + stretch)

    def matrices(self, parameters: FloatArray) -> np.ndarray:
        """(N, 4, 4) x ↦ y in world mm."""
        distortion = self.distortions(parameters)
        matrices = np.tile(np.eye(4), (len(parameters), 1, 1))
        matrices[:, :3, :3] = distortion @ self.rotations(parameters)
        moved = np.einsum('nij,nj->ni', distortion, parameters[:, :3])
        matrices[:, :3, 3] = self.centre + moved - matrices[:, :3, :3] @ self.centre
        return matrices

    def derivatives(self, points: Tensor, gradient: Tensor) -> Tensor:
        """(…, M, 6 + K) change of an image at ``points`` (M, 3) mm for each parameter, at rest.

        ``gradient`` (…, M, 3) is the image's, per mm in world axes.
        """
        arm = (points - torch.as_tensor(self.centre).to(points)).expand_as(gradient)
        turn = torch.linalg.cross(arm, gradient)
        generators = torch.as_tensor(self.generators).to(points)
        stretch = torch.einsum('...mi,kij,...mj->...mk', gradient, generators, arm)
        return torch.cat([gradient, turn, stretch], dim=-1)


def voxel_matrices(matrices: FloatArray, affine: FloatArray) -> np.ndarray:
    """World ↦ world matrices (N, 4, 4) as voxel index ↦ voxel index on a grid."""
    return np.asarray(np.linalg.inv(affine) @ matrices @ affine)


def sample(volumes: Tensor, voxels: Tensor, matrices: FloatArray) -> Tensor:
    """(N, M) linear interpolation of ``volumes`` (N, X, Y, Z) at transformed ``voxels`` (M, 3).

    ``matrices`` (N, 4, 4) map voxel index to voxel index; beyond the edge the edge is repeated.
    """
    # grid_sample wants places from -1 to 1, last axis first: the matrices see to that.
    scale = 2 / (np.array(volumes.shape[1:]) - 1)
    rows = np.array(matrices, float)[:, :3] * scale[:, None]
    rows[:, :, 3] -= 1
    place = torch.as_tensor(rows[:, ::-1].copy()).to(volumes)
    grid = torch.baddbmm(
        place[:, None, :, 3], voxels.expand(len(place), -1, -1), place[:, :, :3].mT
    )[:, None, None]
    sampled = functional.grid_sample(
        volumes[:, None], grid, 'bilinear', padding_mode='border', align_corners=True
    )
    return sampled[:, 0, 0, 0]


def resample_linear(volumes: Tensor, matrices: FloatArray) -> Tensor:
    """``volumes`` (N, X, Y, Z), each through its own voxel ``matrices`` (N, 4, 4)."""
    axes = [torch.arange(n, dtype=volumes.dtype, device=volumes.device) for n in volumes.shape[1:]]
    voxels = torch.cartesian_prod(*axes)
    # One volume at a time: the positions of all at once would weigh three times the images.
    warped = [sample(v[None], voxels, m[None]) for v, m in zip(volumes, matrices, strict=True)]
    return torch.stack(warped).reshape(volumes.shape)


def resampled_cubic(
    volume: FloatArray,
    matrix: FloatArray,
    displacement: FloatArray | None = None,
    axis: int | None = None,
) -> np.ndarray:
    """``volume`` (X, Y, Z) at matrix · (x + d(x) e_axis): cubic B-spline, edge repeated; float32.

    ``matrix`` (4, 4) maps voxel index to voxel index, ``displacement`` (X, Y, Z) is d in voxels.
    Where nothing moves ``volume`` itself is returned.
    """
    from scipy import ndimage

    if displacement is None or axis is None:
        if np.abs(matrix - np.eye(4)).max() <= 1e-9:
            return volume
        moved = ndimage.affine_transform(
            volume, matrix[:3, :3], matrix[:3, 3], order=3, mode='nearest', output=np.float32
        )
        return np.asarray(moved)
    places = np.indices(volume.shape, dtype=np.float32)
    places[axis] += displacement
    places = np.tensordot(matrix[:3, :3].astype(np.float32), places, axes=1)
    places += matrix[:3, 3].astype(np.float32)[:, None, None, None]
    return np.asarray(
        ndimage.map_coordinates(volume, places, order=3, mode='nearest', output=np.float32)
    )


def smooth(volumes: Tensor, sigma: FloatArray) -> Tensor:
    """Gaussian of ``sigma`` (3,) voxels over ``volumes`` (N, X, Y, Z), normalised at the edges."""
    for axis, width in enumerate(sigma, start=1):
        index = torch.arange(volumes.shape[axis], dtype=volumes.dtype, device=volumes.device)
        kernel = torch.exp(-((index[:, None] - index) ** 2) / (2 * float(width) ** 2))
        kernel = kernel / kernel.sum(1, keepdim=True)
        volumes = torch.movedim(torch.movedim(volumes, axis, -1) @ kernel.T, -1, axis)
    return volumes


def world_gradient(volumes: Tensor, affine: FloatArray) -> Iterator[Tensor]:
    """For each of ``volumes`` (N, X, Y, Z) its gradient (X, Y, Z, 3) per mm in world axes."""
    to_world = torch.as_tensor(np.linalg.inv(affine[:3, :3])).to(volumes)
    for volume in volumes:
        yield torch.stack(torch.gradient(volume), dim=-1) @ to_world


@dataclass(frozen=True, slots=True, eq=False)
class SamplingGrid:
    """The sampling grid of a registration: the voxels at which images are compared."""

    affine: FloatArray  #: (4, 4) voxel index → world mm
    voxels: Tensor  #: (M, 3) indices, whole numbers in float
    warp: Warp

    @property
    def at(self) -> tuple[Tensor, ...]:
        """``voxels`` as an index of an image (X, Y, Z)."""
        return tuple(self.voxels.long().T)

    @property
    def points(self) -> Tensor:
        """(M, 3) ``voxels`` in world mm."""
        affine = torch.as_tensor(self.affine).to(self.voxels)
        return self.voxels @ affine[:3, :3].T + affine[:3, 3]

    def matrices(self, parameters: FloatArray) -> np.ndarray:
        """(N, 4, 4) voxel index of this grid → voxel index in the volume on it."""
        return voxel_matrices(self.warp.matrices(parameters), self.affine)


class Match:
    """Gauss-Newton with Levenberg's damping for n volumes at once, each against its target.

    Cost: 1 - (S·P)² / (|S|² |P|²), the sum of squares that the best gain leaves. The derivatives
    are those of the target, which is an average and has less noise than the volume: then noise
    enters the equations that are solved linearly and cannot pull, and their matrix is constant.
    """

    def __init__(
        self,
        grid: SamplingGrid,
        moving: Tensor,
        targets: Tensor,
        weights: Tensor | None = None,
    ) -> None:
        self.grid, self.moving = grid, moving
        self.root = torch.ones(()).to(moving) if weights is None else weights.sqrt()
        at = grid.at
        self.target = torch.stack([target[at] for target in targets]) * self.root
        self.target_power = self.target.square().sum(1)
        gradients = torch.stack([g[at] for g in world_gradient(targets, grid.affine)])
        slopes = grid.warp.derivatives(grid.points, gradients) * self.root[..., None]
        # What a gain would explain is not displacement.
        share = torch.einsum('nm,nmp->np', self.target, slopes) / self.target_power[:, None]
        self.slopes = slopes - self.target[..., None] * share[:, None]
        self.scale = np.r_[np.ones(3), np.full(grid.warp.n_parameters - 3, RADIUS)]
        self.normal = (self.slopes.mT @ self.slopes).double().cpu().numpy()

    def cost(self, parameters: FloatArray) -> tuple[np.ndarray, np.ndarray]:
        """(n,) cost and (n, 6 + K) its descent equations' right hand side."""
        value = sample(self.moving, self.grid.voxels, self.grid.matrices(parameters))
        value = value * self.root
        gain = (value * self.target).sum(1) / value.square().sum(1).clamp_min(1e-12)
        residual = gain[:, None] * value - self.target
        cost = residual.square().sum(1) / self.target_power
        slope = torch.einsum('nm,nmp->np', residual, self.slopes)
        return cost.double().cpu().numpy(), slope.double().cpu().numpy()

    def solve(self, start: FloatArray, rigid: bool = False, steps: int = 12) -> np.ndarray:
        """(n, 6 + K) parameters of the lowest cost found from ``start``."""
        free = slice(0, N_RIGID if rigid else None)
        normal = self.normal[:, free, free]
        diagonal = np.einsum('npp->np', normal)[:, :, None] * np.eye(normal.shape[-1])
        best, damping = np.array(start), np.full(len(start), 1e-3)
        lowest, slope = self.cost(best)
        for _ in range(steps):
            damped = normal + damping[:, None, None] * diagonal
            step = np.zeros_like(best)
            step[:, free] = -np.linalg.solve(damped, slope[:, free, None])[..., 0]
            cost, trial = self.cost(best + step)
            better = cost < lowest
            best[better] += step[better]
            lowest, slope = np.where(better, cost, lowest), np.where(better[:, None], trial, slope)
            damping = np.where(better, damping / 4, damping * 8)
            if np.abs(step * self.scale).max() < TOLERANCE:
                break
        return best
