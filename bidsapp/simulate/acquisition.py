"""How a scanner turns a head into images: gradients, motion, eddy currents, voxels, noise."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from bidsapp.simulate.grids import Grid, normal, rigid, rotation, smooth_field


def draw_motion(
    n: int,
    centre: Tensor,
    generator: torch.Generator,
    sd_mm: float = 0.5,
    sd_deg: float = 0.5,
    walk: bool = False,
) -> Tensor:
    """(n, 4, 4) rigid head motion in world mm about ``centre``, one a volume; the first is none.

    ``sd_mm`` and ``sd_deg`` are the standard deviations along and about each axis, from rest, or
    with ``walk`` from the volume before: a head that does not come back.
    """
    degrees = sd_deg * normal((n, 3), generator, centre.device)
    shift = sd_mm * normal((n, 3), generator, centre.device)
    degrees[0], shift[0] = 0, 0
    if walk:
        degrees, shift = degrees.cumsum(0), shift.cumsum(0)
    return rigid(degrees, shift, centre)


def displaced(volume: Tensor, shift: Tensor, axis: int) -> Tensor:
    """``volume`` (X, Y, Z) with its signal moved by ``shift`` voxels along ``axis``, sum conserved.

    ``shift`` (X, Y, Z), +1 towards higher indices, belongs to the places where signal arrives; it
    must not change by more than 1 from voxel to voxel. Each voxel receives the integral of the
    signal between its two displaced faces, so the intensity follows the Jacobian.
    """
    image, moving = volume.movedim(axis, -1), shift.movedim(axis, -1)
    n = image.shape[-1]
    integral = F.pad(image.cumsum(-1), (1, 0))
    faces = torch.arange(n + 1, device=volume.device, dtype=volume.dtype)
    source = faces.expand(integral.shape).clone()
    source[..., 1:-1] -= (moving[..., 1:] + moving[..., :-1]) / 2
    source.clamp_(0, n)
    lower = source.long().clamp_(max=n - 1)
    below = integral.gather(-1, lower)
    density = image.gather(-1, lower)
    return torch.addcmul(below, source - lower, density).diff(dim=-1).movedim(-1, axis)


def pushed(volume: Tensor, shift: Tensor, axis: int) -> Tensor:
    """``volume`` (X, Y, Z) with its signal moved by ``shift`` voxels along ``axis``, sum conserved.

    Unlike in `displaced`, ``shift`` (X, Y, Z) belongs to the places where signal comes from. What
    overtakes (a fold) piles up where it catches up; what leaves the grid stays in its last voxel.
    """
    image, moving = volume.movedim(axis, -1), shift.movedim(axis, -1)
    n = image.shape[-1]
    integral = F.pad(image.cumsum(-1), (1, 0))
    faces = torch.arange(n + 1, device=volume.device, dtype=volume.dtype).expand(integral.shape)
    arrival = faces.clone()
    arrival[..., 1:-1] += (moving[..., 1:] + moving[..., :-1]) / 2
    arrival = arrival.clamp_(0, n).cummax(-1).values
    lower = (torch.searchsorted(arrival, faces.contiguous(), right=True) - 1).clamp_(max=n - 1)
    start, end = arrival.gather(-1, lower), arrival.gather(-1, lower + 1)
    share = torch.where(end > start, (faces - start) / (end - start), 1.0)
    received = torch.lerp(integral.gather(-1, lower), integral.gather(-1, lower + 1), share)
    received[..., 0] = 0  # what leaves at the first face has piled up there
    return received.diff(dim=-1).movedim(-1, axis)


def turned(volume: Tensor, grid: Grid, motion: Tensor) -> Tensor:
    """``volume`` (X, Y, Z) after the head has moved by ``motion`` (4, 4), on the same ``grid``."""
    back = torch.linalg.inv(grid.affine) @ torch.linalg.inv(motion) @ grid.affine
    # affine_grid works in [-1, 1] between the centres of the end voxels, last axis first.
    half = (torch.tensor(grid.shape, device=back.device) - 1) / 2
    scale = torch.eye(4, device=back.device)
    scale[:3, :3], scale[:3, 3] = torch.diag(half), half
    theta = (torch.linalg.inv(scale) @ back @ scale)[:3]
    theta = torch.cat([theta[:, :3].flip(0, 1), theta[:, 3:].flip(0)], dim=1)
    where = F.affine_grid(theta[None], [1, 1, *grid.shape], align_corners=True)
    image = volume[None, None]
    return F.grid_sample(image, where, padding_mode='border', align_corners=True)[0, 0]


def averaged(volume: Tensor, factor: int) -> Tensor:
    """Mean of each block of ``factor``³ voxels of ``volume`` (C, X, Y, Z): partial volumes."""
    return F.avg_pool3d(volume[None], factor)[0] if factor > 1 else volume


def draw_bias(grid: Grid, generator: torch.Generator, strength: float = 0.15) -> Tensor:
    """Receive sensitivity (X, Y, Z) around 1, smooth over 60 mm; s.d. of its log ``strength``."""
    return torch.exp(strength * smooth_field(grid.axes(), 60.0, 1, generator)[0])


def rician(signal: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    """Magnitude of ``signal`` with complex Gaussian noise of standard deviation ``sigma``."""
    real, imaginary = (sigma * normal(signal.shape, generator, signal.device) for _ in range(2))
    return torch.hypot(signal + real, imaginary)


def oblique(degrees: Tensor, codes: str) -> Tensor:
    """(3, 3) voxel axes in world axes, one a column: those of ``codes`` turned by ``degrees`` (3,).

    ``codes`` names where each voxel axis points, such as 'RAS' or 'LAS' (left-handed).
    """
    columns = [torch.zeros(3) for _ in codes]
    for column, code in zip(columns, codes, strict=True):
        pair = next(i for i, ends in enumerate(('RL', 'AP', 'SI')) if code in ends)
        column[pair] = 1.0 if code in 'RAS' else -1.0
    return rotation(degrees.cpu()) @ torch.stack(columns, dim=1)
