"""Susceptibility maps from fields on a scan's own grid: frame, kernels, weights, constant.

A field is cut to the box of its mask and put amid zeros, inverted there, and put back. The
classical methods by name, for a *local* field: 'tkd', 'tikhonov', 'tv'; for a *total* field:
'single-step', total variation behind the spherical-mean filter on both sides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from bidsapp.modalities.gre.physics import background, inversion
from bidsapp.modalities.gre.physics.dipole import (
    b0_direction,
    convolved,
    enlarged,
    frequencies,
    kspace,
)
from bidsapp.physics.geometry import voxel_sizes
from bidsapp.physics.operators import Padded

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from bidsapp.core import BoolArray, FloatArray
    from bidsapp.modalities.gre.physics.dipole import Shape

#: Of Tikhonov's λ; right for scans in vivo, whose field χ does not explain to the last part.
TIKHONOV = 0.02
#: Weights are limited to this multiple of the median: bright fluid is not to decide everything.
HEAVIEST = 2.0
#: Zeros around the box of a mask, of its length.
MARGIN = 1.3
#: Iterations of total variation; behind the filter, which leaves no slow modes, fewer are enough.
ITERATIONS, ITERATIONS_BEHIND = 40, 25
#: Of these, those that pass before it is judged what no χ explains, and what is taken to be at
#: first, over χ's spread: with a smaller λ χ follows also what it does not explain.
FIRST, SUPPOSED = 10, 0.1
#: |D| that is next to nothing, cycles a mean edge and the taper in mean edges where that is judged.
CONE, BAND, TAPER = 0.05, (0.1, 0.3), 6.0
#: What is unexplained over what is judged so, for some of it is taken for χ; and how much of χ's
#: spread is judged unexplained where nothing is. Of simulated blocks, 0 and 0.15 of their spread.
TAKEN, LEAKED = 1.7, 0.075


#: Background removal by its name: total field, mask and voxel edges → local field and mask.
_REMOVED: dict[str, Callable[[Tensor, Tensor, Sequence[float]], tuple[Tensor, Tensor]]] = {
    'vsharp': background.vsharp,
    'resharp': background.resharp,
}


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """The box of a mask amid zeros, and its place on the grid of a scan."""

    whole: Shape  #: the scan's grid
    box: tuple[slice, slice, slice]
    zeros: Padded
    voxel_mm: tuple[float, ...]

    @classmethod
    def of(cls, mask: BoolArray, affine: FloatArray, factor: float = MARGIN) -> Frame:
        """Around ``mask`` (X, Y, Z), which holds something."""
        from scipy import ndimage

        (box,) = ndimage.find_objects(mask.astype(np.uint8))
        x, y, z = (s.stop - s.start for s in box)
        zeros = Padded((x, y, z), enlarged((x, y, z), factor))
        a, b, c = mask.shape
        return cls((a, b, c), box, zeros, tuple(float(v) for v in voxel_sizes(affine)))

    @property
    def padded(self) -> Shape:
        """The frame's grid."""
        x, y, z = self.zeros.padded
        return x, y, z

    def into(self, array: FloatArray | BoolArray) -> Tensor:
        """(X, Y, Z) of the scan → float32 in the frame."""
        cut = np.ascontiguousarray(array[self.box], np.float32)
        return self.zeros(torch.from_numpy(cut))

    def back(self, tensor: Tensor) -> np.ndarray:
        """What stands in the frame → (X, Y, Z) float32 of the scan, 0 beyond the box."""
        full = np.zeros(self.whole, np.float32)
        full[self.box] = self.zeros.adjoint(tensor.float()).numpy()
        return full


def weights_of(noise: FloatArray, mask: BoolArray) -> tuple[np.ndarray, float]:
    """Weights (X, Y, Z), 1 at the median ``noise`` and 0 outside ``mask``, and that median."""
    typical = float(np.median(noise[mask]))
    weights = np.where(mask, typical / np.maximum(noise, 1e-12), 0.0)
    return np.clip(weights, 0, HEAVIEST), typical


def local_field(
    total: FloatArray, mask: BoolArray, affine: FloatArray, method: str = 'vsharp'
) -> tuple[np.ndarray, np.ndarray]:
    """The local field (X, Y, Z) of a ``total`` one, and the mask in which it is known.

    ``method``: 'vsharp' or 'resharp'; the unit is the field's.
    """
    frame = Frame.of(mask, affine)
    remove = _REMOVED[method]
    middle = np.where(mask, total - np.median(total[mask]), 0)
    local, known = remove(frame.into(middle), frame.into(mask) > 0, frame.voxel_mm)
    return frame.back(local), frame.back(known) > 0


@dataclass(frozen=True, slots=True, eq=False)
class Inverted:
    """A map, and how it was found."""

    chi: np.ndarray  #: (X, Y, Z) ppm
    strength: float  #: λ, or the threshold of 'tkd'


def inverted(
    field: FloatArray,
    noise: FloatArray,
    mask: BoolArray,
    affine: FloatArray,
    method: str = 'tv',
    strength: float | None = None,
    radius: float = background.SINGLE,
    b: Sequence[float] | None = None,
) -> Inverted:
    """χ in ppm of a ``field`` in ppm with its ``noise``, mean 0 in ``mask``, 0 outside.

    ``method`` as above; ``strength`` is its λ (or threshold) where it is not to be the usual one:
    of total variation by `total_variation`. ``radius`` in mm is of the single step's filter. ``b``
    (3,) is the direction of B0 along the voxel axes where it is not that of ``affine``.
    """
    frame = Frame.of(mask, affine)
    ball = radius if method == 'single-step' else 0.0
    along = b0_direction(affine).tolist() if b is None else b
    problem = posed(field, noise, mask, frame, along, ball)
    f, d = problem.field, problem.transfer
    if method == 'tkd':
        strength = inversion.TRUNCATION if strength is None else strength
        chi = inversion.truncated_division(f, d, strength)
    elif method == 'tikhonov':
        strength = TIKHONOV if strength is None else strength
        chi = inversion.tikhonov(f, d, strength)
    else:
        solved = total_variation(problem, strength)
        chi, strength = solved.chi, solved.strength
    found = frame.back(chi)
    return Inverted(np.where(mask, found - found[mask].mean(), 0.0), strength)


def susceptibility(
    field: FloatArray,
    noise: FloatArray,
    mask: BoolArray,
    affine: FloatArray,
    method: str = 'tv',
    strength: float | None = None,
    radius: float = background.SINGLE,
    b: Sequence[float] | None = None,
) -> np.ndarray:
    """χ (X, Y, Z) alone of what is `inverted`."""
    return inverted(field, noise, mask, affine, method, strength, radius, b).chi


@dataclass(frozen=True, slots=True, eq=False)
class Posed:
    """An inversion, in a frame: argmin over χ of ‖W (A χ - f)‖² and what is asked of χ."""

    field: Tensor  #: f in ppm, 0 where it is not known
    transfer: Tensor  #: the spectrum of A: D of a local field, S D of a total one
    known: Tensor  #: 1 where the field is known, behind the filter
    weights: Tensor  #: W, 0 where it is not
    noise: Tensor  #: standard deviation of the field before the filter, ppm, 0 where not known
    typical: float  #: its median, ppm
    voxel_mm: tuple[float, ...]
    b: tuple[float, ...]
    radius: float  #: of S, mm; 0: none


def transfer_of(
    shape: Shape, voxel_mm: Sequence[float], b: Sequence[float], radius: float = 0.0
) -> Tensor:
    """The spectrum of D, or of S D with a ball of ``radius`` mm: layout of `torch.fft.rfftn`."""
    d = kspace(shape, voxel_mm, b)
    return d * background.spherical_mean(shape, voxel_mm, radius) if radius else d


def posed(
    field: FloatArray,
    noise: FloatArray,
    mask: BoolArray,
    frame: Frame,
    b: Sequence[float],
    radius: float = 0.0,
) -> Posed:
    """Of a local ``field`` in ``mask``, or of a total one by a filter of ``radius`` mm."""
    f = frame.into(np.where(mask, field - np.median(field[mask]), 0))
    d, known = kspace(frame.padded, frame.voxel_mm, b), mask
    s = torch.ones((), dtype=d.dtype)
    if radius:
        s = background.spherical_mean(frame.padded, frame.voxel_mm, radius)
        f = convolved(f, s)
        known = background.reach(mask, frame.voxel_mm, radius)
    weights, typical = weights_of(noise, known if known.any() else mask)
    where = frame.into(known)
    scaled = where * frame.into(weights), where * frame.into(noise), typical
    scan = frame.voxel_mm, tuple(float(part) for part in b), radius
    return Posed(where * f, d * s, where, *scaled, *scan)


def unexplained(problem: Posed, chi: Tensor) -> float:
    """Spread of the field that no χ explains over the spread of ``chi``, of an inversion begun.

    On the cone |D| ≈ 0 a susceptibility gives no field, so what ``chi`` leaves there, beside noise,
    is of another origin: the direction of fibres, motion, a background filter's remainder. It is
    held against χ at the same frequencies, amid a mask whose edges are tapered.
    """
    edge = math.prod(problem.voxel_mm) ** (1 / 3)
    deep = torch.from_numpy(background.depth(problem.known.numpy() > 0, problem.voxel_mm)).float()
    window = (1 - (math.pi * (deep / (TAPER * edge)).clamp(0, 1)).cos()) / 2
    x, y, z = (int(n) for n in problem.field.shape)
    shape = x, y, z
    k = sum(one**2 for one in frequencies(shape, problem.voxel_mm)) ** 0.5 * edge
    band = ((k > BAND[0]) & (k < BAND[1]))[..., : z // 2 + 1]
    on = band & (kspace(shape, problem.voxel_mm, problem.b).abs() < CONE)
    passed = torch.ones(band.shape)
    if problem.radius:
        passed = background.spherical_mean(shape, problem.voxel_mm, problem.radius) ** 2

    def power(a: Tensor) -> Tensor:
        middle = (a * window).sum() / window.sum().clamp_min(1)
        return torch.fft.rfftn((a - middle) * window).abs() ** 2

    left = problem.known * (problem.field - convolved(chi, problem.transfer))
    white = (problem.noise * window).square().sum()
    share = power(left)[on].mean() / passed[on].mean() - white
    ratio = float(share / power(chi)[band].mean().clamp_min(1e-30))
    return max(0.0, TAKEN**2 * ratio - LEAKED**2) ** 0.5


@dataclass(frozen=True, slots=True, eq=False)
class Solved:
    """What total variation found, in the frame of its problem."""

    chi: Tensor  #: ppm
    strength: float  #: λ, ppm mm
    doubt: float  #: ppm: noise of the field, and what no χ explains of it


def total_variation(problem: Posed, strength: float | None = None) -> Solved:
    """χ in the frame of ``problem`` by total variation that begins with Tikhonov's map.

    Unless a ``strength`` is given it follows from the noise, and after a few iterations also from
    what no χ explains, which such an inversion must not follow any more than noise.
    """
    behind, doubt = problem.radius > 0, problem.typical
    iterations = ITERATIONS_BEHIND if behind else ITERATIONS

    def by(chi: Tensor, strength: float, iterations: int) -> Tensor:
        return inversion.total_variation(
            problem.field, problem.transfer, problem.weights, problem.voxel_mm, strength,
            iterations=iterations, start=chi,
        ).chi  # fmt: skip

    chi = inversion.tikhonov(problem.field, problem.transfer, TIKHONOV)

    def doubted(share: float) -> float:
        return math.hypot(problem.typical, share * spread(chi, problem.known))

    if strength is None:
        first = inversion.strength_for(doubted(SUPPOSED), problem.voxel_mm, behind)
        chi = by(chi, first, FIRST)
        doubt = doubted(unexplained(problem, chi))
        strength = inversion.strength_for(doubt, problem.voxel_mm, behind)
        iterations -= FIRST
    return Solved(by(chi, strength, iterations), strength, doubt)


def spread(chi: Tensor, where: Tensor) -> float:
    """Standard deviation in ppm of what ``chi`` holds ``where``, by its mean deviation.

    A single calcification hardly counts.
    """
    inside = chi[where > 0]
    return float(1.25 * (inside - inside.mean()).abs().mean())
