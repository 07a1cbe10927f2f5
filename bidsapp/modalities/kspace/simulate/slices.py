"""Simulated slices of k-space to learn from, without end.

An object lives on a grid finer than the one that it is reconstructed on, and maps are estimated
from the noisy calibration samples, as for a real scan: the same voxels and the true maps on both
sides would make the problem easier than it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bidsapp.modalities.kspace.physics import sampling
from bidsapp.modalities.kspace.physics.coils import ALL, coil_maps, low_resolution_phase
from bidsapp.modalities.kspace.physics.fourier import BOTH, PHASE, READOUT, hybrid, middle
from bidsapp.modalities.kspace.physics.measured import block_about_origin
from bidsapp.modalities.kspace.physics.planes import Plane
from bidsapp.modalities.kspace.simulate.coils import drawn_coils
from bidsapp.modalities.kspace.simulate.objects import body, head_slice, leaves, phase
from bidsapp.physics.streams import stream
from bidsapp.simulate.domain_randomisation import draw_varied_head
from bidsapp.simulate.grids import chance, normal, uniform

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bidsapp.simulate.anatomy import Head, Template

#: How much finer the grid of an object is along either axis.
FINE = 2
#: Lines or samples across that the middle of a mask has at least.
FEWEST = 5
#: Separate calibration lines, and slices that are drawn of one head.
SEPARATE, SLICES = 24, 12


@dataclass(frozen=True, slots=True)
class Variety:
    """What slices are drawn from; R, noise and coils evenly in their logarithm."""

    acceleration: tuple[float, float] = (1.5, 10.0)
    noise: tuple[float, float] = (0.002, 0.05)  #: over the signal's largest value
    coils: tuple[float, float] = (1, 16)
    fov_mm: tuple[float, float] = (200.0, 320.0)  #: along the longer axis
    bodies: float = 0.25  #: how often: a body;
    leaves: float = 0.2  #: dead leaves;
    samples: float = 0.2  #: samples in place of lines;
    partial: float = 0.1  #: a partial echo train;
    spread: float = 0.15  #: a point spread;
    separate: float = 0.1  #: calibration lines of their own, which make maps alone
    unseen_acceleration: tuple[float, float] = (1, 1)  #: what is left out of these ranges
    unseen_noise: tuple[float, float] = (0, 0)


EVERYTHING = Variety()


@dataclass(frozen=True, slots=True, eq=False)
class Slice:
    """What is measured of a slice, and what a whole measurement without noise would have given."""

    plane: Plane  #: with estimated maps; some readout positions only, where lines are whole
    target: Tensor  #: (X, Y) complex: all of k-space without noise, combined by the plane's maps
    cropped: bool = False  #: whether there are more readout positions on either side


@lru_cache(maxsize=2)
def varied_head(template: Template, seed: int, number: int) -> Head:
    """Head ``number``, always the same; making one takes longer than a slice of it."""
    return draw_varied_head(template, stream(seed, number, of='head'))


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


def draw_slice(
    template: Template,
    shape: tuple[int, int],
    seed: int,
    number: int,
    variety: Variety = EVERYTHING,
    columns: int | None = None,
) -> Slice:
    """Slice ``number``, of ``shape`` (X, Y), always the same.

    Where lines are whole, maps and target are of so many ``columns`` of readout positions only.
    """
    generator = stream(seed, number, of='slice')
    mask = draw_mask(shape, generator, variety)
    voxel = uniform(*variety.fov_mm, generator) / max(shape)
    points = points_about_origin([FINE * n for n in shape], voxel / FINE)
    kind = uniform(0, 1, generator)
    if kind < variety.bodies:
        image = body(points, generator)
    elif kind < variety.bodies + variety.leaves:
        image = leaves(points, generator)
    else:
        image = head_slice(varied_head(template, seed, number // SLICES), points, generator)
    signal = image * phase(image, points, generator)
    n = round(evenly_in_logarithm(variety.coils, generator))
    coils = drawn_coils(n, points, float(points.abs().amax()), generator)
    coils = coils / torch.linalg.vector_norm(coils, dim=0).amax() if n > 1 else coils / coils.abs()
    clean = measured_on(coils * signal, shape)
    if chance(variety.spread, generator):
        clean = clean * _spread(shape[1], generator)
    level = float(BOTH.H(clean).abs().square().sum(0).sqrt().amax())
    sigma = level * outside(variety.noise, variety.unseen_noise, generator)
    noise = torch.complex(*(normal(clean.shape, generator) for _ in range(2))) / 2**0.5
    noisy = clean + sigma * noise
    calibration = None
    if chance(variety.separate, generator):
        lines = slice(shape[1] // 2 - SEPARATE // 2, shape[1] // 2 + SEPARATE // 2)
        calibration = noisy[..., lines]
    return seen(clean, noisy, mask, sigma, calibration, some(shape[0], columns, mask, generator))


def seen(
    clean: Tensor,
    noisy: Tensor,
    mask: Tensor,
    sigma: float,
    calibration: Tensor | None = None,
    columns: slice = ALL,
) -> Slice:
    """What a ``mask`` (X, Y) or (1, Y) leaves of k-space (C, X, Y).

    Maps are made from ``calibration``, else from the samples about the origin.
    """
    kspace, whole_lines = noisy * mask, len(mask) == 1
    about_origin = block_about_origin(kspace[..., None], mask[..., None])[..., 0]
    block = about_origin if calibration is None else calibration
    maps, method = coil_maps(block, clean.shape[1:], columns)
    phase = None
    if sampling.one_sided(mask[0] if whole_lines else mask):
        phase = low_resolution_phase(block, maps, clean.shape[1], columns)
    y = hybrid(kspace)[:, columns] if whole_lines else kspace
    target = (maps.conj() * BOTH.H(clean)[:, columns]).sum(0)
    plane = Plane(y, maps, mask[None], sigma, phase, method)
    return Slice(plane, target, columns != ALL)


def some(n: int, wanted: int | None, mask: Tensor, generator: torch.Generator) -> slice:
    """``wanted`` of ``n`` readout positions, more often in the middle; all under a 2-D mask."""
    if wanted is None or wanted >= n or len(mask) > 1:
        return ALL
    spare = n - wanted
    first = round(spare * 0.5 * (uniform(0, 1, generator) + uniform(0, 1, generator)))
    return slice(first, first + wanted)


def draw_mask(
    shape: tuple[int, int], generator: torch.Generator, variety: Variety = EVERYTHING
) -> Tensor:
    """(1, Y) of lines or (X, Y) of samples."""
    acceleration = outside(variety.acceleration, variety.unseen_acceleration, generator)
    n = shape[1]
    if chance(variety.samples, generator):
        across = max(round(2 * (0.02 * shape[0] * n / acceleration) ** 0.5), FEWEST)
        return sampling.poisson_disc(shape, acceleration, across, generator)
    most = round(n / acceleration)
    if chance(0.5, generator) and most > sampling.FIXED:
        centre = sampling.FIXED
    else:
        centre = min(max(sampling.centre_lines(n, acceleration), FEWEST), most)
    draw = sampling.random_lines if chance(0.5, generator) else sampling.equispaced_lines
    mask = draw(n, acceleration, centre, generator)
    if chance(variety.partial, generator):
        mask = mask * sampling.partial_fourier(n, uniform(0.65, 0.9, generator))
    return mask[None]


def outside(
    ends: tuple[float, float], unseen: tuple[float, float], generator: torch.Generator
) -> float:
    """A number between ``ends`` and not between ``unseen``."""
    while True:
        found = evenly_in_logarithm(ends, generator)
        if not unseen[0] < found < unseen[1]:
            return found


def evenly_in_logarithm(ends: tuple[float, float], generator: torch.Generator) -> float:
    """A number between ``ends``."""
    low, high = (math.log(x) for x in ends)
    return math.exp(uniform(low, high, generator))


def _spread(n: int, generator: torch.Generator) -> Tensor:
    """(n,) signal that decays from the centre of k-space outwards: an echo train's point spread."""
    away = (torch.arange(n) - n // 2).abs() / (n / 2)
    return torch.exp(-uniform(0.2, 1.2, generator) * away)
