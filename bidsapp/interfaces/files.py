"""Files that steps hand to each other: images, gradient tables, findings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bidsapp.bids.images import load_volume, open_image

if TYPE_CHECKING:
    from pathlib import Path


def save_like(path: Path, array: np.ndarray, like: Path, dtype: str = 'float32') -> Path:
    """Write an intermediate image on the grid of ``like``.

    Not compressed: it is read once by a neighbour, and to pack it takes longer than to make it.
    """
    import nibabel as nib

    nib.save(nib.Nifti1Image(np.asarray(array, dtype), open_image(like).affine), path)
    return path


def load_mask(path: Path) -> np.ndarray:
    """(X, Y, Z) bool."""
    return load_volume(path) > 0
