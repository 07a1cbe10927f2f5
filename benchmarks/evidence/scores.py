"""Angles, their spread over blocks of voxels, how far a method averages, and plain tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Degrees a bin: medians are taken from histograms, so that thousands of resamplings cost little.
BIN = 0.05
#: mm, side of the blocks of voxels that are resampled together.
BLOCK = 15.0


def degrees(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(V,) angles between lines along (V, 3), lengths 1 or 0; NaN where either has none."""
    cosine = np.abs((a * b).sum(-1))
    there = (np.square(a).sum(-1) > 0.25) & (np.square(b).sum(-1) > 0.25)
    return np.where(there, np.rad2deg(np.arccos(np.clip(cosine, 0, 1))), np.nan)


def blocks(where: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """(V,) number of the block of ``BLOCK`` mm of the world that each voxel of ``where`` is in."""
    world = np.argwhere(where) @ affine[:3, :3].T + affine[:3, 3]
    x, y, z = (world // BLOCK).astype(int).T + 100
    return np.asarray((x * 1000 + y) * 1000 + z)


def histogram(errors: np.ndarray, block: np.ndarray) -> np.ndarray:
    """(blocks, bins) counts of angles (V,); those that are NaN are left out."""
    block = np.unique(block, return_inverse=True)[1]
    known = np.isfinite(errors)
    bins = int(90 / BIN) + 1
    flat = block[known] * bins + (errors[known] / BIN).astype(int)
    return np.bincount(flat, minlength=(block.max() + 1) * bins).reshape(-1, bins)


def quantile(counts: np.ndarray, q: float) -> np.ndarray:
    """(…) degrees from counts (…, bins)."""
    share = counts.cumsum(-1) / np.maximum(counts.sum(-1, keepdims=True), 1)
    return np.asarray(((share < q).sum(-1) + 0.5) * BIN)


def ratio_interval(
    ours: np.ndarray, theirs: np.ndarray, n: int = 1000, seed: int = 0
) -> tuple[float, float, float]:
    """Ratio of the medians and its 95 % interval over resampled blocks (counts as `histogram`)."""
    rng = np.random.default_rng(seed)
    size = len(ours)
    weight = rng.multinomial(size, np.full(size, 1 / size), size=n).astype(np.float32)
    drawn = [quantile(weight @ counts.astype(np.float32), 0.5) for counts in (ours, theirs)]
    low, high = np.quantile(drawn[0] / drawn[1], (0.025, 0.975))
    whole = quantile(ours.sum(0), 0.5) / quantile(theirs.sum(0), 0.5)
    return float(whole), float(low), float(high)


def six(vectors: np.ndarray) -> np.ndarray:
    """(…, 3) → (…, 6) dyads, so that differences of lines are differences of numbers."""
    rows, columns = (0, 1, 2, 0, 0, 1), (0, 1, 2, 1, 2, 2)
    scale = np.array([1, 1, 1, 2**0.5, 2**0.5, 2**0.5])
    return np.asarray(vectors[..., rows] * vectors[..., columns] * scale)


def coherence(change: np.ndarray, where: np.ndarray) -> float:
    """Mean cosine between the changes (V, K) of neighbours in ``where`` (X, Y, Z), six a voxel.

    Of changes by noise that is independent from voxel to voxel: 0 for a method that looks at one
    voxel at a time, the higher the farther it averages. Only the way in which an answer changes
    counts, not how much: voxels differ in that by orders of magnitude.
    """
    field = np.zeros((*where.shape, change.shape[-1]), np.float32)
    field[where] = change / np.maximum(np.linalg.norm(change, axis=-1, keepdims=True), 1e-9)
    total, pairs = 0.0, 0
    for axis in range(3):
        moved, inside = np.moveaxis(field, axis, 0), np.moveaxis(where, axis, 0)
        both = inside[:-1] & inside[1:]
        total += float((moved[:-1][both] * moved[1:][both]).sum())
        pairs += int(both.sum())
    return total / pairs


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print columns; numbers to three figures."""
    cells = [list(header), *([_text(cell) for cell in row] for row in rows)]
    widths = [max(len(row[k]) for row in cells) for k in range(len(header))]
    for row in cells:
        print(
            '  '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )
    print(flush=True)


def _text(cell: object) -> str:
    if isinstance(cell, float | np.floating):
        return 'n/a' if np.isnan(cell) else f'{cell:.3g}' if abs(cell) < 1000 else f'{cell:.0f}'
    return str(cell)
