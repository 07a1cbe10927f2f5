"""A slice, or a slab plane by plane, as problems in two dimensions that every method solves.

Coils are compressed, maps made from the calibration lines, and of partial Fourier the phase is held
that the symmetric middle shows. A slab is transformed along readout, of which planes are left.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from bidsapp.modalities.kspace.physics import coils, left_out, sense
from bidsapp.modalities.kspace.physics.fourier import ALONG_PHASE, BOTH, PHASE, hybrid, middle
from bidsapp.modalities.kspace.physics.measured import centred_block
from bidsapp.modalities.kspace.physics.sampling import one_sided

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from bidsapp.modalities.kspace.physics.measured import Measured
    from bidsapp.physics.operators import LinearOperator

#: Calibration lines that are used, of more that there may be: all of a full scan.
MOST_LINES = 32


@dataclass(frozen=True, slots=True, eq=False)
class Plane:
    """y = M F S x + n; in hybrid space, X image and Y k-space, where lines are whole."""

    y: Tensor  #: (C, X, Y)
    maps: Tensor  #: (C, X, Y)
    mask: Tensor  #: weights, (1, 1, Y) of whole lines or (1, X, Y)
    sigma: float  #: E |n|² = σ²
    phase: Tensor | None = None  #: (X, Y) of modulus 1, that the image is known to have
    method: str = ''  #: by which the maps were made

    @property
    def axes(self) -> int:
        """How many of the last axes the operator joins."""
        return 1 if self.mask.shape[-2] == 1 else 2

    @property
    def operator(self) -> LinearOperator:
        """Complex image (X, Y) → y."""
        return sense.sense(self.maps, self.mask, ALONG_PHASE if self.axes == 1 else BOTH)

    @property
    def lines(self) -> Tensor:
        """Weights by line (Y,) or by sample (X, Y)."""
        return self.mask[0, 0] if self.axes == 1 else self.mask[0]

    def shown(self, lines: Tensor) -> Plane:
        """What is left of the data where ``lines``, as of `lines`, are not 0."""
        kept = lines.reshape(self.mask.shape)
        return replace(self, y=self.y * (kept > 0), mask=kept)

    @property
    def zero_filled(self) -> Tensor:
        """(X, Y) Aᴴ y; the combined image where all was measured."""
        return self.operator.adjoint(self.y)

    @property
    def strength(self) -> float:
        """λ of the linear solve."""
        return sense.OF_NOISE_LINEAR * self.sigma / float(sense.brightness(self.zero_filled))

    def classical(self) -> dict[str, Tensor]:
        """Complex images (X, Y) by every method that needs no training, by name."""
        return self._found(sense.classical)

    def smooth(self) -> dict[str, Tensor]:
        """The same by those methods only that total variation rests on, and itself."""
        return self._found(sense.smooth)

    def start(self) -> Tensor:
        """(X, Y) complex by total variation."""
        return self.smooth()['tv']

    def _found(self, methods: Callable[..., dict[str, Tensor]]) -> dict[str, Tensor]:
        if self.phase is None:
            return methods(self.operator, self.y, self.sigma, self.axes)
        held = sense.holding(self.operator, self.phase)
        found = methods(held, self.y, self.sigma, self.axes)
        return {**{k: x * self.phase for k, x in found.items()}, 'zerofilled': self.zero_filled}

    def at_columns(self, columns: slice) -> Plane:
        """Some readout positions of whole lines: the operator is exact, what smooths is not."""
        phase = None if self.phase is None else self.phase[columns]
        return replace(self, y=self.y[:, columns], maps=self.maps[:, columns], phase=phase)

    def left_out(self, generator: torch.Generator) -> dict[str, float]:
        """`left_out.left_out_error` of every method but zero-filling; empty with no outer lines."""
        lines = self.lines
        about = torch.zeros_like(lines, dtype=torch.bool)
        about[tuple(centred_block(lines))] = True
        shown, left = left_out.split(lines, about, generator)
        if not left.any():
            return {}
        found = self.shown(shown).classical()
        del found['zerofilled']  # which says that they are nothing
        return {
            name: left_out.left_out_error(self.operator(image), self.y, left, self.sigma)
            for name, image in found.items()
        }

    def residual(self) -> float | None:
        """`left_out.residual`: 1 where maps and noise explain the data."""
        across = self.y.shape[-2] if self.axes == 1 else 1
        samples = len(self.y) * across * int((self.lines > 0).sum())
        return left_out.residual(self.operator, self.y, self.sigma, samples, self.axes)

    def amplification(self, generator: torch.Generator, replicas: int) -> Tensor:
        """(X, Y) `sense.noise_map` of the linear solve."""
        return sense.noise_map(
            self.operator, self.y.shape, self.strength, self.axes, generator, replicas
        )


@dataclass(frozen=True, slots=True, eq=False)
class Planes:
    """The problems of a slice, one, or of a slab, one for each place along readout."""

    count: int
    at: Callable[[int], Plane]
    coils: tuple[int, int]  #: before and after compression
    kept: float  #: share of the calibration lines' energy in the second
    held: bool  #: partial Fourier, whose phase is held


def planes_of(measured: Measured) -> Planes:
    """Coils are the fewest that hold 99 % of the calibration lines' energy, at most 16."""
    flat = measured.kspace.shape[3] == 1
    return _of_slice(measured) if flat else _of_slab(measured)


def _of_slice(measured: Measured) -> Planes:
    whole = measured.whole_readouts
    block = middle(measured.calibration[..., 0], *_most(measured.calibration.shape[2]))
    kspace, block, kept = coils.compressed(measured.kspace[..., 0], block, whole)
    weights = measured.weights[None, ..., 0]
    lines = weights[0, 0] if whole else weights[0]

    def at(number: int) -> Plane:
        y = hybrid(kspace) if whole else kspace
        return _plane(y, block, weights, measured.sigma, one_sided(lines))

    before_after = len(measured.kspace), len(kspace)
    return Planes(1, at, before_after, kept, one_sided(lines))


def _of_slab(measured: Measured) -> Planes:
    """Samples that an asymmetric echo lacks count as zeros, for planes are solved alone."""
    weights = measured.weights.amax(0)
    block = measured.calibration
    if not measured.whole_readouts:
        rows, columns = centred_block(weights)
        block = measured.kspace[:, :, rows, columns]
    for axis in (-2, -1):
        block = middle(block, _most(block.shape[axis])[0], axis)
    y, z, sides = *weights.shape, block.shape[2:]
    kspace, flat, kept = coils.compressed(measured.kspace.flatten(2), block.flatten(2), True)
    data = hybrid(kspace).unflatten(2, (y, z))
    calibration = hybrid(flat).unflatten(2, sides)
    held = one_sided(weights)

    def at(number: int) -> Plane:
        return _plane(data[:, number], calibration[:, number], weights[None], measured.sigma, held)

    before_after = len(measured.kspace), len(data)
    return Planes(data.shape[1], at, before_after, kept, held)


def _most(lines: int) -> tuple[int, int]:
    return min(lines, MOST_LINES), PHASE


def _plane(y: Tensor, block: Tensor, weights: Tensor, sigma: float, held: bool) -> Plane:
    maps, method = coils.coil_maps(block, y.shape[-2:])
    phase = coils.low_resolution_phase(block, maps) if held else None
    return Plane(y, maps, weights, sigma, phase, method)
