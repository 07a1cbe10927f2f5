"""Endless training blocks: a field in a mask, as a scan and its preparation leave it, and its χ.

All sources of the local field lie inside the mask and the mask inside the block, so that a whole
head at inference is the same problem. Sources live on a grid twice as fine, whose field is worked
out on one twice as large again; a scanned voxel is the mean of the finer signal, a complex number.
Three things make a field what it is in vivo: what a background filter leaves, of sources outside;
noise that follows the magnitude; and a part with χ's own spectrum that no isotropic χ explains.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from bidsapp.modalities.gre.physics import background, maps
from bidsapp.modalities.gre.physics.dipole import convolved, enlarged, kspace
from bidsapp.modalities.gre.physics.seen import seen
from bidsapp.modalities.gre.simulate.geometry import Geometry, draw_geometry
from bidsapp.modalities.gre.simulate.sources import draw_sources
from bidsapp.physics.operators import Padded
from bidsapp.physics.streams import stream
from bidsapp.simulate.acquisition import averaged
from bidsapp.simulate.grids import Grid, chance, normal, smooth_field, uniform
from bidsapp.simulate.material import Scan

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

#: Voxels of the finer grid along a scanned one, and its enlargement.
FINE, LARGER = 2, 2.0
#: Half axes of a mask as shares of the block, and how rough it is.
HALF, ROUGH = (0.36, 0.56), 0.25
#: ppm: noise of the field where the magnitude is usual.
NOISE = (0.0003, 0.006)
#: Of the unexplained part: its spread over that of χ, of a phantom in so many blocks, and the share
#: of its variance that has the borders of χ.
UNEXPLAINED, PHANTOM, PHANTOMS, SAME_BORDERS = (0.05, 0.3), (0.0, 0.05), 0.4, 0.5
#: Turns that the phase makes a ppm at the echo, and that time in s.
TURNS, ECHO = (0.5, 6.0), 0.02
#: 1/s a ppm, and without any iron; share by which the magnitude varies.
RELAXIVITY, R2STAR, UNEVEN = 140.0, 18.0, 0.25
#: How the field becomes a local one: how often it is that already, comes from V-SHARP, or stays
#: total, for the single step, whose ball has so many mean edges for a radius.
LOCAL, VSHARP, BALL = 0.45, 0.2, (1.5, 7.0)
#: Share of the mask in which a filtered field must be known to be learnt from.
LEAST_KNOWN = 0.5
#: χ in ppm of spheres outside, how many there are, and how far they lie, in shares of the block.
OUTSIDE, FEW, MANY, FAR = (9.4, 9.4, -2.0, 0.7, -0.7), 4, 24, 0.6


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """A scanned block and its truth, (X, Y, Z)."""

    geometry: Geometry
    chi: np.ndarray  #: ppm, mean 0 in the mask, 0 outside
    local: np.ndarray  #: ppm of B0, of the sources in the mask and of the unexplained part
    outside: np.ndarray  #: field of sources outside, ppm
    noise: np.ndarray  #: its standard deviation, ppm
    mask: np.ndarray  #: bool


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """What the preparation of a scan leaves of a block, with noise."""

    field: np.ndarray  #: ppm
    noise: np.ndarray
    mask: np.ndarray  #: where ``field`` was measured, or is known behind a filter
    radius: float  #: mm: of the ball that the inversion puts before both sides; 0: none


def draw_block(
    geometry: Geometry, side: int, generator: torch.Generator, unexplained: float | None = None
) -> Block:
    """A block of ``side``³ voxels.

    ``unexplained`` is the spread of that part of the field over that of χ; None: drawn.
    """
    coarse = Grid((side, side, side), torch.diag(torch.tensor([*geometry.voxel_mm, 1.0])))
    fine = coarse.refined(FINE)
    inside = _mask(fine, geometry.edge, generator)
    sources = draw_sources(fine, geometry.edge, generator)
    chi, other = (_demeaned(one, inside) for one in (sources.chi, sources.other))
    d = kspace(enlarged(fine.shape, LARGER), fine.spacing, geometry.b)
    frame = Padded(fine.shape, tuple(2 * n for n in fine.shape))
    field = frame.adjoint(convolved(frame(chi), d))
    if unexplained is None:
        limits = PHANTOM if chance(PHANTOMS, generator) else UNEXPLAINED
        unexplained = uniform(*limits, generator)
    field = field + unexplained * _unexplained(chi, other, inside, generator)
    density = 1 + UNEVEN * smooth_field(fine.axes(), 20 * geometry.edge, 1, generator)[0]
    size = density.clamp_min(0.2) * torch.exp(-ECHO * (R2STAR + RELAXIVITY * chi.abs()))
    turns = 2 * math.pi * uniform(*TURNS, generator)
    mask = averaged(inside[None], FINE)[0] >= 0.5
    local, magnitude = _scanned(field, size, turns)
    usual = magnitude[mask].median()
    low, high = (math.log(noise) for noise in NOISE)
    level = math.exp(uniform(low, high, generator))
    noise = torch.where(mask, level * usual / magnitude.clamp_min(0.03 * usual), 0.0)
    seen_chi = _demeaned(averaged(chi[None], FINE)[0], mask.float())
    outside = _outside(mask.numpy(), geometry, generator)
    arrays = (seen_chi.numpy(), local.numpy(), outside, noise.numpy(), mask.numpy())
    return Block(geometry, *arrays)


def _demeaned(x: Tensor, inside: Tensor) -> Tensor:
    return (x - (x * inside).sum() / inside.sum()) * inside


def _mask(grid: Grid, edge: float, generator: torch.Generator) -> Tensor:
    """(X, Y, Z) 0 or 1: an uneven ellipsoid, which the block may cut."""
    places = torch.meshgrid(*(torch.linspace(-0.5, 0.5, n) for n in grid.shape), indexing='ij')
    radii = [uniform(*HALF, generator) for _ in range(3)]
    round_ = sum((x / r) ** 2 for x, r in zip(places, radii, strict=True))
    rough = smooth_field(grid.axes(), edge * uniform(3, 12, generator), 1, generator)[0]
    return (torch.as_tensor(round_) < 1 + ROUGH * rough).float()


def _unexplained(chi: Tensor, other: Tensor, inside: Tensor, generator: torch.Generator) -> Tensor:
    """A field (X, Y, Z) with the spectrum and the spread of ``chi``, in part with its borders."""
    spread = chi[inside > 0].std()
    phase = torch.fft.rfftn(normal(chi.shape, generator))
    surrogate = torch.fft.irfftn(
        torch.fft.rfftn(chi).abs() * phase / phase.abs().clamp_min(1e-9), s=chi.shape
    )
    parts = [
        part / part[inside > 0].std().clamp_min(1e-9)
        for part in (_demeaned(surrogate, inside), other)
    ]
    return spread * ((1 - SAME_BORDERS) ** 0.5 * parts[0] + SAME_BORDERS**0.5 * parts[1])


def _scanned(field: Tensor, size: Tensor, turns: float) -> tuple[Tensor, Tensor]:
    """Field and magnitude of scanned voxels, from ``size`` and phase of the finer signal."""
    mean = averaged(field[None], FINE)[0]
    within = turns * (field - _repeated(mean))
    real, imaginary = averaged(torch.stack([size * within.cos(), size * within.sin()]), FINE)
    signal = torch.complex(real, imaginary)
    return mean + signal.angle() / turns, signal.abs()


def _repeated(x: Tensor) -> Tensor:
    for axis in range(3):
        x = x.repeat_interleave(FINE, axis)
    return x


def _outside(mask: np.ndarray, geometry: Geometry, generator: torch.Generator) -> np.ndarray:
    """The field of magnetised spheres outside the mask, ppm: χ/3 (a/r)³ (3 cos² - 1)."""
    around = [round(FAR * n) for n in mask.shape]
    wide = np.pad(mask, [(n, n) for n in around])
    deep = background.depth(~wide, geometry.voxel_mm)
    voxels = np.array(geometry.voxel_mm)
    places = np.stack(np.meshgrid(*map(np.arange, mask.shape), indexing='ij'), -1) * voxels
    field = np.zeros(mask.shape)
    free = np.argwhere(deep > 2 * geometry.edge)
    for _ in range(int(torch.randint(FEW, MANY + 1, (), generator=generator))):
        at = free[int(torch.randint(len(free), (), generator=generator))]
        radius = uniform(0.2, 0.9, generator) * float(deep[tuple(at)])
        chi = OUTSIDE[int(torch.randint(len(OUTSIDE), (), generator=generator))]
        away = places - (at - around) * voxels
        square = np.maximum((away**2).sum(-1), radius**2)
        cosine = (away @ np.array(geometry.b)) ** 2 / square
        field += chi / 3 * (radius**2 / square) ** 1.5 * (3 * cosine - 1)
    return np.where(mask, field, 0.0)


def clean(block: Block, generator: torch.Generator) -> Measured:
    """The true local field with its noise: the inversion alone."""
    noise = block.noise * normal(block.mask.shape, generator).numpy()
    return Measured(block.local + noise, block.noise, block.mask, 0.0)


def filtered(block: Block, generator: torch.Generator) -> Measured:
    """The local field that V-SHARP finds in the total one."""
    total = clean(block, generator).field + block.outside
    affine = np.diag([*block.geometry.voxel_mm, 1.0])
    local, known = maps.local_field(total, block.mask, affine, 'vsharp')
    return Measured(local, block.noise, known, 0.0)


def single(block: Block, generator: torch.Generator) -> Measured:
    """The total field, for the single step."""
    low, high = (math.log(size) for size in BALL)
    radius = block.geometry.edge * math.exp(uniform(low, high, generator))
    radius = max(radius, 1.01 * max(block.geometry.voxel_mm))
    total = clean(block, generator).field + block.outside
    return Measured(np.where(block.mask, total, 0.0), block.noise, block.mask, radius)


def measured(block: Block, generator: torch.Generator) -> Measured:
    """One of the three, with as much left of the mask as can be learnt from."""
    kind = uniform(0, 1, generator)
    how: Callable[[Block, torch.Generator], Measured] = single
    if kind < LOCAL + VSHARP:
        how = clean if kind < LOCAL else filtered
    found = how(block, generator)
    known = found.mask
    if found.radius:
        known = background.reach(known, block.geometry.voxel_mm, found.radius)
    enough = known.sum() >= LEAST_KNOWN * block.mask.sum()
    return found if enough else clean(block, generator)


class Blocks:
    """Draws block number i of a seed, each the same in whatever order they are asked for."""

    def __init__(self, seed: int, side: int) -> None:
        self._seed, self._side = seed, side

    def scan(self, number: int) -> Scan:
        """Block number ``number`` as a network sees it."""
        generator = stream(self._seed, number, of='susceptibility')
        block = draw_block(draw_geometry(generator), self._side, generator)
        return scan_of(block, measured(block, generator))


def scan_of(block: Block, found: Measured) -> Scan:
    """The network's input and the truth of a block that was ``measured``."""
    geometry = block.geometry
    image, context = seen(
        found.field, found.noise, found.mask, geometry.voxel_mm, geometry.b, found.radius
    )
    inside = torch.from_numpy(found.mask)
    truth = _demeaned(torch.from_numpy(block.chi), inside.float())
    return Scan(image, inside[None], {'chi': truth[None]}, geometry.voxel_mm, context)
