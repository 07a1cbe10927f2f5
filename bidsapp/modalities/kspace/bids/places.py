"""Where the slices of a scan lie: affines from positions and directions.

Headers speak LPS, and `position` is where the origin of the image, voxel n // 2, lies; for a 2-D
scan in the middle of the slice, for a 3-D scan in the middle of the slab.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bidsapp.problems import BadData

if TYPE_CHECKING:
    from bidsapp.modalities.kspace.bids.header import Encoding

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])
#: Entries of unit vectors, and mm, that are the same.
SAME, SAME_MM = 1e-3, 0.05
#: Share by which distances between slices may differ.
UNEVEN = 0.02


def directions_of(heads: np.ndarray, name: str) -> np.ndarray:
    """(N, 3, 3) unit vectors of readout, phase encoding and slices, a column each, in LPS.

    Zeros where a file knows none. Raises BadData for vectors that are not perpendicular.
    """
    axes = np.stack([heads[key] for key in ('read_dir', 'phase_dir', 'slice_dir')], -1)
    axes = axes.astype(float)
    if not np.isfinite(axes).all() or not np.isfinite(heads['position']).all():
        raise BadData(f'{name}: positions or directions are not finite numbers. Convert it again.')
    if not axes.any():
        return axes
    lengths = np.linalg.norm(axes, axis=1, keepdims=True)
    axes = axes / np.maximum(lengths, 1e-6)
    gram = np.swapaxes(axes, 1, 2) @ axes
    if np.abs(gram - np.eye(3)).max() > 0.01:
        raise BadData(
            f'{name}: read_dir, phase_dir and slice_dir are not perpendicular unit vectors. '
            'Convert the scan again.'
        )
    return np.asarray(axes)


def groups_of(axes: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """(N,) the number of the image that a line belongs to: one direction, one line of slices."""
    number = np.full(len(axes), -1)
    while (number < 0).any():
        first = int(np.argmax(number < 0))
        aside = np.einsum('ij,nj->ni', axes[first, :, :2].T, positions - positions[first])
        alike = np.abs(axes - axes[first]).max((1, 2)) < SAME
        number[(number < 0) & alike & (np.abs(aside).max(1) < SAME_MM)] = number.max() + 1
    return number


def ordered(along: np.ndarray, name: str) -> tuple[np.ndarray, float]:
    """The order of slices by position ``along`` (N,) mm their normal, and the step between them.

    Raises BadData where two lie in one place or gaps differ. One slice has a step of 0.
    """
    order = np.argsort(along, kind='stable')
    steps = np.diff(along[order])
    if not len(steps):
        return order, 0.0
    if steps.min() < SAME_MM:
        raise BadData(f'{name}: two of its slices lie in one place. Convert the scan again.')
    step = float(np.median(steps))
    if np.abs(steps - step).max() > max(UNEVEN * step, SAME_MM):
        raise BadData(
            f'{name}: its slices are {steps.min():.2f} to {steps.max():.2f} mm apart; an image '
            'has one distance. Put the groups of slices into files of their own.'
        )
    return order, step


def affine_of(
    encoding: Encoding, axes: np.ndarray, position: np.ndarray, step: float
) -> np.ndarray:
    """(4, 4) voxel → RAS mm of an image, its first slice (or slab) at ``position`` (3,) in LPS.

    ``step`` mm from slice to slice; 0 for one slice, or a slab. ``axes`` of zeros: nothing is known
    but the voxel's size, and the image is centred on the origin.
    """
    voxel = np.array(encoding.encoded.voxel_mm)
    shape = np.array(encoding.shape)
    if step:
        voxel[2] = step
    elif encoding.encoded.matrix[2] == 1:
        voxel[2] = encoding.recon.fov_mm[2]
    affine = np.eye(4)
    turn = LPS_TO_RAS @ axes if axes.any() else np.eye(3)
    affine[:3, :3] = turn * voxel
    origin = shape // 2  # 0 along slices measured one by one
    affine[:3, 3] = LPS_TO_RAS @ position - affine[:3, :3] @ origin
    return affine
