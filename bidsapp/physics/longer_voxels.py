"""Labels of a run over the longer voxels of a poorer scan (`core.LongerVoxels`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bidsapp.core import BoolArray, FloatArray, LongerVoxels

#: Share of a longer voxel that must be brain, or be labelled, for its label to count.
MOSTLY = 0.5


def shares(label: FloatArray, indices: Sequence[int], grid: LongerVoxels) -> np.ndarray:
    """(X', Y', Z', K) shares of the labels ``indices`` in longer voxels; they sum to 1.

    Of what is labelled; all 0 where less than half of a voxel is.
    """
    one_hot = np.stack([label == index for index in indices], axis=-1).astype(np.float32)
    found, share = grid(one_hot, one_hot.sum(-1))
    found = np.where((share >= MOSTLY)[..., None], found, 0)
    total = found.sum(-1, keepdims=True)
    return np.asarray(np.divide(found, total, out=np.zeros_like(found), where=total > 0))


def commonest(
    label: FloatArray, indices: Sequence[int], mask: BoolArray, grid: LongerVoxels
) -> np.ndarray:
    """(X', Y', Z') the label, or 0, with the largest share of the brain in a longer voxel."""
    every = [0, *(index for index in indices if index != 0)]
    one_hot = np.stack([(label == index) & mask for index in every], axis=-1).astype(np.float32)
    found, share = grid(one_hot, mask.astype(np.float32))
    return np.where(share >= MOSTLY, np.array(every)[found.argmax(-1)], 0)


def mean_map(values: FloatArray, mask: BoolArray, grid: LongerVoxels) -> np.ndarray:
    """(X', Y', Z'[, K]) means in ``mask``, 0 where less than half of a longer voxel is in it."""
    mean, share = grid(values, mask.astype(np.float32))
    where = share >= MOSTLY
    return np.asarray(mean * (where[..., None] if mean.ndim == 4 else where))
