"""Eigenvectors of many small symmetric matrices, in batches that every solver takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

#: Matrices solved together; the solver of CUDA fails on some larger batches.
BATCH = 2**14


def eigh(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (…, n), ascending, and eigenvectors (…, n, n), in columns, of (…, n, n)."""
    flat = matrices.flatten(0, -3) if matrices.ndim > 3 else matrices
    if matrices.ndim < 3 or len(flat) <= BATCH:
        values, vectors = torch.linalg.eigh(matrices)
        return values, vectors
    parts = [torch.linalg.eigh(part) for part in flat.split(BATCH)]
    values, vectors = (torch.cat(own) for own in zip(*parts, strict=True))
    return values.reshape(matrices.shape[:-1]), vectors.reshape(matrices.shape)
