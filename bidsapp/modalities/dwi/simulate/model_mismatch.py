"""Model mismatch and point spread: what no model of tissue explains, what sharpness takes away."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from bidsapp.modalities.dwi.physics.harmonics import degrees, n_coefficients
from bidsapp.modalities.dwi.physics.qspace import prior_deviation
from bidsapp.simulate.grids import blurred, chance, smooth_field, uniform

if TYPE_CHECKING:
    from torch import Tensor

    from bidsapp.modalities.dwi.simulate.blocks import Block

#: Order of what no model explains.
SURPLUS_ORDER = 6


@dataclass(frozen=True, slots=True, eq=False)
class ModelMismatch:
    """Model mismatch, which no tissue explains, and the scanner's own point spread."""

    surplus: Tensor | None  #: (28, X, Y, Z) harmonics up to order 6, in units of the prior's s.d.
    blur: tuple[float, ...]  #: share of each neighbour along each axis


def draw_model_mismatch(block: Block, generator: torch.Generator) -> ModelMismatch:
    """Model mismatch of 1 to 6 mm in every harmonic, and a point spread of up to a voxel.

    Real tissue is no sum of Watson distributions. A network that has only met those takes what it
    does not know for noise; with this it has to leave what stands above the noise.
    """
    blur = tuple(uniform(0, 0.2, generator) * chance(0.7, generator) for _ in range(3))
    if not chance(0.8, generator):
        return ModelMismatch(None, blur)
    width = float(np.exp(uniform(0.0, 1.8, generator))) + 0.5 * max(block.grid.spacing)
    strength = 0.25 * uniform(0, 1, generator) ** 2
    fields = smooth_field(block.grid.axes(), width, n_coefficients(SURPLUS_ORDER), generator)
    return ModelMismatch(strength * fields.to(block.tissues) * block.mask, blur)


def with_model_mismatch(harmonics: Tensor, s0: Tensor, b: float, mismatch: ModelMismatch) -> Tensor:
    """Harmonics (K, X, Y, Z) of the signal at ``b`` s/mm² with model mismatch; ``s0`` (X, Y, Z)."""
    if mismatch.surplus is not None:
        spread = prior_deviation(b)[degrees(SURPLUS_ORDER) // 2]
        scale = torch.from_numpy(spread).to(harmonics)[:, None, None, None]
        harmonics = harmonics.clone()
        harmonics[: len(scale)] += scale * mismatch.surplus * s0
    return blurred(harmonics, mismatch.blur)
