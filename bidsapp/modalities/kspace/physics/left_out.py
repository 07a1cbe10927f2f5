"""Whether a reconstruction can be trusted, without any reference.

Two numbers, each 1 where all is as it should be: what a method says of measured samples that it
was not shown, and what is left of the data where there are more samples than unknowns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from bidsapp.modalities.kspace.physics.sense import cg_sense

if TYPE_CHECKING:
    from torch import Tensor

    from bidsapp.physics.operators import LinearOperator

#: One in so many measured lines outside the middle is left out.
ONE_IN = 5
#: Share of a line's signal by which no method need be better.
SHARE = 0.02
#: Samples over unknowns from which what is left of the data says something.
ENOUGH = 1.5
#: Steps of an unregularised solve.
STEPS = 100


def split(mask: Tensor, middle: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """``mask`` (Y,) or (X, Y) in what is shown and what is left out, drawn anew at every call.

    ``middle``, of the same shape, is True where samples are always shown.
    """
    outer = torch.nonzero((mask > 0) & ~middle)
    some = outer[torch.randperm(len(outer), generator=generator)[: round(len(outer) / ONE_IN)]]
    left = torch.zeros_like(mask)
    left[tuple(some.T)] = mask[tuple(some.T)]
    return mask - left, left


def halves(mask: Tensor, middle: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two masks that share the ``middle`` and have half of the other samples each."""
    outer = torch.nonzero((mask > 0) & ~middle)
    order = torch.randperm(len(outer), generator=generator)
    found = []
    for some in (order[: len(order) // 2], order[len(order) // 2 :]):
        other = outer[some]
        half = torch.where(middle, mask, torch.zeros_like(mask))
        half[tuple(other.T)] = mask[tuple(other.T)]
        found.append(half)
    return found[0], found[1]


def left_out_error(predicted: Tensor, y: Tensor, left: Tensor, sigma: float) -> float:
    """Root mean square of what was predicted of ``left`` (Y,) or (X, Y), over its expectation.

    ``predicted`` and ``y`` are (C, X, Y), of a line's samples (or a sample's coils) the expected
    square is σ² + (2 % of the signal)²: else the lines next to the middle, where signal is
    strongest, would decide alone. NaN where nothing was left out.
    """
    axes = (0, 1) if left.ndim == 1 else (0,)
    error = (predicted - y).abs().square().mean(axes)
    signal = (y.abs().square().mean(axes) - sigma**2).clamp_min(0)
    ratio = error / (sigma**2 + SHARE**2 * signal)
    return float(ratio[left > 0].mean().sqrt())


def residual(
    operator: LinearOperator, y: Tensor, sigma: float, samples: int, axes: int
) -> float | None:
    """What the least-squares image leaves of ``y``, over σ √(1 - unknowns / samples).

    ``samples`` (coils among them) are those of ``y`` that were measured. None where there are not
    `ENOUGH`: a solution that can fit all says nothing.
    """
    image = cg_sense(operator, y, 0.0, axes, STEPS)
    unknowns = image.numel()
    if samples < ENOUGH * unknowns:
        return None
    squares = float((operator(image) - y).abs().square().sum())
    return (squares / (sigma**2 * (samples - unknowns))) ** 0.5
