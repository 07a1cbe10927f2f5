"""Linear algebra without matrices: conjugate gradients and the spectral norm by power iteration.

The operators are those of `physics.operators`, on torch tensors of any shape; x and A x may carry
leading batch axes. Everything is differentiable except the norm.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from bidsapp.physics.operators import LinearOperator


def inner(x: Tensor, y: Tensor, batch_dims: int = 0) -> Tensor:
    """⟨x, y⟩ = Σ conj(x)·y over all axes but the first ``batch_dims``; summed axes stay as 1."""
    products = torch.linalg.vecdot(x.flatten(batch_dims), y.flatten(batch_dims))
    return products.reshape(*x.shape[:batch_dims], *[1] * (x.ndim - batch_dims))


def conjugate_gradient(
    operator: Callable[[Tensor], Tensor],
    right_hand_side: Tensor,
    *,
    steps: int,
    start: Tensor | None = None,
    tolerance: float = 0.0,
    batch_dims: int = 0,
) -> Tensor:
    """Solve A x = b by conjugate gradients (Hestenes & Stiefel, J Res NBS 49, 1952).

    A is Hermitian positive definite; semidefinite will do if b lies in its range, as Aᴴ y does in
    that of Aᴴ A. The first ``batch_dims`` axes of b count systems, each with its own steps: at most
    ``steps``, fewer once ‖b - A x‖ ≤ ``tolerance`` · ‖b‖ for the residual as it is updated.
    ``start`` is 0 if None. Gradients flow through the steps to b, start and A.
    """
    x = torch.zeros_like(right_hand_side) if start is None else start
    residual = right_hand_side if start is None else right_hand_side - operator(start)
    direction, energy = residual, inner(residual, residual, batch_dims).real
    enough = tolerance**2 * inner(right_hand_side, right_hand_side, batch_dims).real
    going = energy > enough
    for _ in range(steps):
        if not going.any():
            break
        image = operator(direction)
        curvature = inner(direction, image, batch_dims).real
        going = going & (curvature > 0)
        step = _ratio(energy, curvature, going)
        x, residual = x + step * direction, residual - step * image
        before, energy = energy, inner(residual, residual, batch_dims).real
        direction = residual + _ratio(energy, before, going) * direction
        going = going & (energy > enough)
    return x


def norm(
    operator: LinearOperator,
    shape: Sequence[int],
    generator: torch.Generator,
    *,
    dtype: torch.dtype,
    steps: int = 100,
) -> float:
    """‖A‖, the largest singular value, by power iteration on Aᴴ A; it comes from below.

    ``shape`` and ``dtype`` are the domain's. The start is drawn from ``generator``, on its device.
    """
    x = torch.randn(shape, generator=generator, dtype=dtype, device=generator.device)
    with torch.no_grad():
        for _ in range(steps):
            length = torch.linalg.vector_norm(x).clamp_min(torch.finfo(dtype).tiny)
            x = operator.gram(x / length)
        return float(torch.linalg.vector_norm(x)) ** 0.5


def _ratio(numerator: Tensor, denominator: Tensor, where: Tensor) -> Tensor:
    """The ratio, and 0 elsewhere, with gradients that are finite there too."""
    safe = torch.where(where, denominator, torch.ones_like(denominator))
    return torch.where(where, numerator / safe, torch.zeros_like(numerator))
