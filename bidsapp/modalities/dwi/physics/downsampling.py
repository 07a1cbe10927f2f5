"""Downsampling of a good scan, as in source paper 2: coarser voxels, fewer directions.

Both steps are linear in the signal S, so their order does not matter; neither is done on S/S0,
whose noise is not that of a scanner. In q-space the dictionary's interpolation (`physics.qspace`)
gives S anywhere on a shell that was measured, and nowhere else: as harmonics of order 8, which
hold its result exactly because the dictionary's covariance ends at that degree.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from bidsapp.modalities.dwi.physics.harmonics import basis, fibonacci_hemisphere, n_coefficients
from bidsapp.modalities.dwi.physics.qspace import interpolation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from bidsapp.modalities.dwi.physics.gradients import GradientTable

#: Order of the harmonics that hold the signal of a shell, and how many coefficients that is.
ORDER = 8
N_HARMONICS = n_coefficients(ORDER)
#: Share of a coarse voxel that must be brain for it to count as brain.
MOSTLY = 0.5


def signal_harmonics(gtab: GradientTable, variance: float) -> dict[float, np.ndarray]:
    """b of each shell → (45, N) float32: signals of all volumes → harmonics of S on that shell.

    ``gtab`` (N) with at least one b=0 volume; harmonics stand in its axes and in the signal's
    unit. ``variance`` is that of the noise of S/S0. Harmonics of the dictionary's expectation
    given all shells (`qspace.interpolation`), at b-values that were measured only.
    """
    b0, weighted = np.flatnonzero(gtab.b0), np.flatnonzero(~gtab.b0)
    directions = fibonacci_hemisphere(200)
    to_harmonics = np.linalg.pinv(basis(directions, ORDER))
    found = {}
    for b, _ in gtab.shells():
        target = type(gtab)(directions, np.full(len(directions), b))
        mapping = interpolation(gtab[weighted], target, variance, len(b0))
        matrix = np.zeros((N_HARMONICS, len(gtab)), np.float32)
        matrix[:, weighted] = to_harmonics @ mapping.matrix
        constant = to_harmonics @ (mapping.offset - mapping.matrix @ mapping.centre)
        matrix[:, b0] = constant[:, None] / len(b0)
        found[b] = matrix
    return found


def sampling(n: int, ratio: float, count: int, first: float) -> Tensor:
    """(count, n) weights that turn ``n`` voxels of a line into ``count`` voxels ``ratio`` as long.

    ``first`` is where the first long voxel begins, counted in short ones from their first face.
    Each row is a Gaussian whose full width at half maximum is the long voxel, and sums to one over
    a line without ends, so that what lies beyond counts as missing. With ``ratio`` 1 voxels are
    taken as they are: then ``first`` must be whole. Raises ValueError for a ratio below 1.
    """
    if ratio < 1:
        raise ValueError(f'voxels can only become longer, not {ratio:.3g} times as long')
    if ratio == 1:
        taken = round(first) + torch.arange(count)
        return (taken[:, None] == torch.arange(n)).float()
    centres = first + (torch.arange(count) + 0.5) * ratio - 0.5
    reach = math.ceil(2 * ratio)
    around = centres.round()[:, None] + torch.arange(-reach, reach + 1)

    def weights(places: Tensor) -> Tensor:
        return torch.exp(-4 * math.log(2) * ((places - centres[:, None]) / ratio) ** 2)

    near = (torch.arange(n) - centres[:, None]).abs() <= reach
    return weights(torch.arange(n)[None]) * near / weights(around).sum(1, keepdim=True)


def coarser(volumes: Tensor, weight: Tensor, kernels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Weighted means of ``volumes`` (C, X, Y, Z) over coarser voxels, (C, X', Y', Z'), and share.

    S' = G(w S) / G(w) with G the three ``kernels`` (`sampling`) and w = ``weight`` (X, Y, Z) ≥ 0,
    such as the brain mask; 0 where nothing weighs. The share (X', Y', Z') is G(w).
    """
    stacked = torch.cat([volumes * weight, weight[None]])
    for axis, kernel in enumerate(kernels, start=1):
        stacked = torch.tensordot(stacked, kernel.to(stacked), dims=([axis], [1])).movedim(-1, axis)
    share = stacked[-1]
    return stacked[:-1] / share.clamp_min(1e-6) * (share > 1e-6), share


def coarser_noddi(maps: Tensor, s0: Tensor, mask: Tensor, kernels: Sequence[Tensor]) -> Tensor:
    """NODDI's icvf, od, isovf (3, X, Y, Z) over coarser voxels; -1 where not known.

    Free water is a share of the signal, so it is weighted by ``s0`` (X, Y, Z); density and
    dispersion are properties of the tissue, so they are weighted by the signal that is no water.
    """
    brain = s0.clamp_min(0) * mask
    tissue = brain * (1 - maps[2]).clamp(0, 1)
    of_tissue, tissue_share = coarser(maps[:2], tissue, kernels)
    water, signal_share = coarser(maps[2:], brain, kernels)
    known = tissue_share > 0.01 * signal_share.clamp_min(1e-6)
    parts = [torch.where(known, of_tissue, -1), torch.where(signal_share > 1e-6, water, -1)]
    return torch.cat(parts)
