"""Simulated slices of k-space to learn from, without end.

An object lives on a grid finer than the one that it is reconstructed on, and maps are estimated
from the noisy calibration samples, as for a real scan: the same voxels and the true maps on both
sides would make the problem easier than it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bidsapp.modalities.kspace.physics import sampling
from bidsapp.modalities.kspace.physics.coils import coil_maps
from bidsapp.modalities.kspace.physics.fourier import BOTH, PHASE, READOUT, middle
from bidsapp.modalities.kspace.physics.measured import block_about_origin
from bidsapp.modalities.kspace.simulate.coils import drawn_coils
from bidsapp.modalities.kspace.simulate.objects import body, head_slice, leaves, phase
from bidsapp.physics.streams import stream
from bidsapp.simulate.anatomy import draw_head
from bidsapp.simulate.grids import chance, normal, uniform

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bidsapp.simulate.anatomy import Template

#: How much finer the grid of an object is along either axis.
FINE = 2
#: Ranges that slices are drawn from: R, noise over the signal's largest value, coils, mm of voxels.
ACCELERATION, NOISE, COILS, VOXEL_MM = (1.5, 10.0), (0.002, 0.05), (1, 16), (0.7, 1.5)
#: How often: a body, leaves, samples in place of lines, a partial echo train, a point spread.
BODIES, DEAD_LEAVES, SAMPLES, PARTIAL, SPREAD = 0.25, 0.2, 0.2, 0.1, 0.15
#: Lines or samples across that the middle of a mask has at least.
FEWEST = 5


@dataclass(frozen=True, slots=True, eq=False)
class Slice:
    """What is measured of a slice, and what a whole measurement without noise would have given."""

    kspace: Tensor  #: (C, X, Y) complex64, 0 where it was not measured
    mask: Tensor  #: (X, Y), or (1, Y) of whole lines
    maps: Tensor  #: (C, X, Y) estimated
    sigma: float
    target: Tensor  #: (X, Y) complex: all of k-space without noise, combined by ``maps``


def points_about_origin(shape: Sequence[int], voxel_mm: float) -> Tensor:
    """(3, X, Y) mm from voxel n // 2, in the plane z = 0."""
    x, y = ((torch.arange(n) - n // 2) * voxel_mm for n in shape)
    here = torch.meshgrid(x, y, indexing='ij')
    return torch.stack([*here, torch.zeros_like(here[0])])


def measured_on(fine: Tensor, shape: Sequence[int]) -> Tensor:
    """K-space (…, X, Y) of images (…, x, y) on a finer grid of the same field of view.

    Values of images stay what they are: an object of 1 is 1 in the image of ``shape``.
    """
    kspace = BOTH(fine)
    scale = math.prod(shape) ** 0.5 / math.prod(fine.shape[-2:]) ** 0.5
    for axis, n in zip((READOUT, PHASE), shape, strict=True):
        kspace = middle(kspace, n, axis)
    return kspace * scale


def draw_slice(template: Template, shape: tuple[int, int], seed: int, number: int) -> Slice:
    """Slice ``number``, of ``shape`` (X, Y), always the same."""
    generator = stream(seed, number, of='slice')
    voxel = uniform(*VOXEL_MM, generator)
    points = points_about_origin([FINE * n for n in shape], voxel / FINE)
    kind = uniform(0, 1, generator)
    if kind < BODIES:
        image = body(points, generator)
    elif kind < BODIES + DEAD_LEAVES:
        image = leaves(points, generator)
    else:
        image = head_slice(draw_head(template, generator), points, generator)
    signal = image * phase(image, points, generator)
    n = round(_evenly_in_logarithm(COILS, generator))
    coils = drawn_coils(n, points, float(points.abs().amax()), generator)
    coils = coils / torch.linalg.vector_norm(coils, dim=0).amax() if n > 1 else coils / coils.abs()
    clean = measured_on(coils * signal, shape)
    if chance(SPREAD, generator):
        clean = clean * _spread(shape[1], generator)
    level = float(BOTH.H(clean).abs().square().sum(0).sqrt().amax())
    sigma = level * _evenly_in_logarithm(NOISE, generator)
    noise = torch.complex(*(normal(clean.shape, generator) for _ in range(2))) / 2**0.5
    return seen(clean, clean + sigma * noise, draw_mask(shape, generator), sigma)


def seen(clean: Tensor, noisy: Tensor, mask: Tensor, sigma: float) -> Slice:
    """What a ``mask`` (X, Y) or (1, Y) leaves of k-space (C, X, Y)."""
    kspace = noisy * mask
    block = block_about_origin(kspace[..., None], mask[..., None])
    if block.ndim == 4:
        block = block[..., 0]
    maps, _ = coil_maps(block, clean.shape[1:])
    target = (maps.conj() * BOTH.H(clean)).sum(0)
    return Slice(kspace, mask, maps, sigma, target)


def draw_mask(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """(1, Y) of lines or (X, Y) of samples: R is drawn evenly in its logarithm."""
    acceleration = _evenly_in_logarithm(ACCELERATION, generator)
    n = shape[1]
    if chance(SAMPLES, generator):
        across = max(round(2 * (0.02 * shape[0] * n / acceleration) ** 0.5), FEWEST)
        return sampling.poisson_disc(shape, acceleration, across, generator)
    most = round(n / acceleration)
    if chance(0.5, generator) and most > sampling.FIXED:
        centre = sampling.FIXED
    else:
        centre = min(max(sampling.centre_lines(n, acceleration), FEWEST), most)
    draw = sampling.random_lines if chance(0.5, generator) else sampling.equispaced_lines
    mask = draw(n, acceleration, centre, generator)
    if chance(PARTIAL, generator):
        mask = mask * sampling.partial_fourier(n, uniform(0.65, 0.9, generator))
    return mask[None]


def _evenly_in_logarithm(ends: tuple[float, float], generator: torch.Generator) -> float:
    low, high = (math.log(x) for x in ends)
    return math.exp(uniform(low, high, generator))


def _spread(n: int, generator: torch.Generator) -> Tensor:
    """(n,) signal that decays from the centre of k-space outwards: an echo train's point spread."""
    away = (torch.arange(n) - n // 2).abs() / (n / 2)
    return torch.exp(-uniform(0.2, 1.2, generator) * away)
