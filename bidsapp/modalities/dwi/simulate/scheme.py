"""Gradient schemes, eddy currents and dropout as a scanner draws them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bidsapp.modalities.dwi.physics.harmonics import fibonacci_hemisphere
from bidsapp.simulate.grids import normal

if TYPE_CHECKING:
    from collections.abc import Sequence


def draw_scheme(
    n_b0: int, shells: Sequence[tuple[float, int]], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Gradient table (bvecs (N, 3) unit, world axes; bvals (N,) s/mm²) for (b, n) ``shells``.

    Directions spread evenly over a half sphere, turned at random, half of them reversed. The b=0
    volumes (zero vectors) are spaced evenly, the first of them first.
    """
    vectors, values = [], []
    for b, n in shells:
        spread = torch.from_numpy(fibonacci_hemisphere(n)).float()
        turn = torch.linalg.qr(normal((3, 3), generator))[0].cpu()
        order = torch.randperm(n, generator=generator, device=generator.device).cpu()
        signs = (1 - 2 * (torch.arange(n) % 2))[:, None]
        vectors.append((spread @ turn.T)[order] * signs)
        values.append(torch.full((n,), float(b)))
    bvecs, bvals = torch.cat(vectors), torch.cat(values)
    order = torch.randperm(len(bvals), generator=generator, device=generator.device).cpu()
    bvecs, bvals = bvecs[order], bvals[order]
    for position in reversed([k * len(order) // n_b0 for k in range(n_b0)]):
        bvecs = torch.cat([bvecs[:position], torch.zeros(1, 3), bvecs[position:]])
        bvals = torch.cat([bvals[:position], torch.zeros(1), bvals[position:]])
    return bvecs, bvals


def draw_eddy(n: int, generator: torch.Generator, edge_hz: float = 6.0) -> Tensor:
    """(n, 4, 3) off-resonance in Hz per unit gradient: rows constant, then x, y, z per mm.

    Drawn once for a scan with standard deviation ``edge_hz`` at 80 mm from the isocentre, since
    the field is linear in the gradient; each volume differs from it by 10 %.
    """
    coefficients = edge_hz * normal((1, 4, 3), generator)
    coefficients[:, 1:] /= 80
    return coefficients * (1 + 0.1 * normal((n, 4, 3), generator))


def draw_dropout(weighted: Tensor, slices: int, share: float, generator: torch.Generator) -> Tensor:
    """(N, ``slices``) factor of the signal: U(0.1, 0.6) for a ``share`` of slices, 1 for others.

    A movement while the diffusion gradients are on costs the one slice that they encode, so only
    the volumes in ``weighted`` (N,) bool lose any.
    """
    shape = (2, len(weighted), slices)
    chance, left = torch.rand(shape, generator=generator, device=generator.device).to(
        weighted.device
    )
    return torch.where((chance < share) & weighted[:, None], 0.1 + 0.5 * left, 1.0)


def eddy_shift(offset: Tensor, hz: Tensor, readout: float) -> Tensor:
    """Shift in voxels along the phase-encoding axis at ``offset`` (3, …) mm from the isocentre.

    ``hz`` (4,), or (N, 4) for N volumes at once, is the off-resonance there and per mm along world
    x, y, z, which is what `draw_eddy` gives times sqrt(b / b_max) g; ``readout`` the total readout
    time in s, negative for a reversed polarity. An off-resonance of 1/readout Hz moves signal by
    one voxel.
    """
    linear = torch.tensordot(hz[..., 1:], offset, dims=1)
    return (hz[..., 0].reshape(*hz.shape[:-1], *(1,) * (offset.ndim - 1)) + linear) * readout
