"""Simulated T1w images of a head."""

from __future__ import annotations

import torch
from torch import Tensor

from bidsapp.simulate.acquisition import draw_bias, rician
from bidsapp.simulate.anatomy import AIR, WM, Head
from bidsapp.simulate.grids import Grid, moved, normal, rigid

T1W = (0.58, 0.90, 0.18, 0.20, 0.08, 1.15, 0.50, 0.22, 0.0)
#: White matter over noise.
SNR = 25.0
#: Scanner units of T1w intensity 1, which is about that of white matter.
T1W_UNITS = 500.0


def field_of_view(head: Head, axes: Tensor, voxel: float, below: float = 6.0) -> Grid:
    """The smallest grid along ``axes`` (3, 3) that holds the head, with even lengths.

    It ends ``below`` mm under the brain, along the voxel axis nearest to inferior-superior.
    """
    coarse = Grid((54, 66, 58), torch.diag(torch.tensor([4.0, 4.0, 4.0, 1.0])))
    coarse.affine[:3, 3] = -torch.tensor([106.0, 134.0, 112.0])
    device = head.affine.device
    coarse = Grid(coarse.shape, coarse.affine.to(device))
    tissues = head.tissues(coarse.points())
    axes = axes.to(device)
    position = torch.tensordot(axes.T, coarse.points(), dims=1)
    upright = int(axes[2].abs().argmax())
    up = float(axes[2, upright].sign())
    brain, solid = tissues[:3].sum(0) > 0.5, tissues[AIR] < 0.5
    floor = (up * position[upright])[brain].min() - below
    kept = position[:, solid & (up * position[upright] >= floor)]
    lowest, highest = kept.amin(1), kept.amax(1)
    lengths = [2 * int(torch.ceil((size + 4.0) / voxel / 2)) for size in highest - lowest]
    affine = torch.eye(4, device=device)
    affine[:3, :3] = axes * voxel
    middle = (lowest + highest) / 2
    half = torch.tensor([(n - 1) / 2 * voxel for n in lengths], device=device)
    affine[:3, 3] = axes @ (middle - half)
    return Grid((lengths[0], lengths[1], lengths[2]), affine)


def draw_repositioning(
    centre: Tensor, generator: torch.Generator, sd_mm: float = 1.2, sd_deg: float = 1.2
) -> Tensor:
    """(4, 4) how the head has moved between two scans: about 2 mm and 2 degrees in all."""
    degrees = sd_deg * normal((3,), generator, centre.device)
    return rigid(degrees, sd_mm * normal((3,), generator, centre.device), centre)


def simulate_t1w(
    head: Head, grid: Grid, position: Tensor, generator: torch.Generator, snr: float = SNR
) -> Tensor:
    """(X, Y, Z) T1w image on ``grid`` of a head moved by ``position`` (4, 4); scanner units.

    ``snr`` is the intensity of white matter over the noise's standard deviation.
    """
    points = moved(torch.linalg.inv(position), grid.points())
    tissues = head.tissues(points)
    weight = tissues.new_tensor(T1W) * (1 + 0.03 * normal((len(T1W),), generator)).to(tissues)
    image = torch.tensordot(weight, tissues, dims=1) * draw_bias(grid, generator, 0.12)
    sigma = T1W[WM] / snr
    return T1W_UNITS * rician(image, sigma, generator)
