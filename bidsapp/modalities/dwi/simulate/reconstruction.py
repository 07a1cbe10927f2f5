"""What reconstruction and denoising leave in volumes: Gibbs ringing, and the residue of MP-PCA."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from bidsapp.simulate.grids import chance, separable, uniform

if TYPE_CHECKING:
    from torch import Tensor

#: Voxels to either side that ringing reaches.
REACH = 10
#: Chance of ringing; least share of an axis's frequencies that was measured where there is some.
RINGING, MEASURED = 0.4, 0.65
#: Least and most principal components that denoising keeps, as a share of the volumes.
KEPT = (0.05, 0.35)


def draw_measured(generator: torch.Generator) -> tuple[float, ...]:
    """Share of the frequencies that was measured along each axis; mostly two axes, 1 is all."""
    if not chance(RINGING, generator):
        return (1.0, 1.0, 1.0)
    through = int(uniform(0, 3, generator))
    return tuple(1.0 if k == through else uniform(MEASURED, 1, generator) for k in range(3))


def ringing(volumes: Tensor, measured: tuple[float, ...]) -> Tensor:
    """Volumes (N, X, Y, Z) as zero-filled from a share of their frequencies along each axis.

    A sharp edge of k-space is a sinc in space, cut off after REACH voxels; what lies beyond the
    block is as at its edge. The result is a magnitude.
    """
    if all(share == 1 for share in measured):
        return volumes
    matrices = [
        _low_pass(n, share).to(volumes)
        for n, share in zip(volumes.shape[1:], measured, strict=True)
    ]
    return separable(volumes, matrices).abs()


def _low_pass(n: int, share: float) -> Tensor:
    """(n, n) a sinc of a ``share`` of the frequencies at each voxel; 1 changes nothing."""
    lag = torch.arange(-REACH, REACH + 1)
    kernel = torch.sinc(share * lag)  # at share 1 it is 1 at lag 0 and 0 elsewhere
    places = torch.arange(n)
    sources = (places[:, None] + lag).clamp(0, n - 1)
    rows = places[:, None].expand_as(sources)
    weights = (kernel / kernel.sum()).expand_as(sources)
    return torch.zeros(n, n).index_put((rows, sources), weights, accumulate=True)


def draw_components(n: int, generator: torch.Generator) -> int:
    """How many principal components of ``n`` volumes denoising keeps; ``n`` where it is simpler."""
    if chance(0.5, generator):
        return n
    return min(n, 2 + round(uniform(*KEPT, generator) * n))


def kept_by_components(noise: Tensor, expected: Tensor, components: int) -> Tensor:
    """What of ``noise`` (N, …) lies in the first principal components of ``expected`` (N, …).

    MP-PCA (Veraart et al., NeuroImage 2016) takes away the other components and keeps the noise in
    these, which is then shared between volumes.
    """
    if components >= len(noise):
        return noise
    flat = expected.flatten(1).double()
    flat = flat - flat.mean(1, keepdim=True)
    vectors = torch.linalg.eigh(flat @ flat.T).eigenvectors[:, -components:].to(noise)
    return (vectors @ (vectors.T @ noise.flatten(1))).view_as(noise)
