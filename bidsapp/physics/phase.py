"""Phase in radians, unwrapped: for field maps and for QSM."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

from bidsapp.problems import BadData

if TYPE_CHECKING:
    from bidsapp.core import BoolArray, FloatArray

TURN = 2 * np.pi
#: Name, lowest and highest value, value of zero phase, and value of a whole turn, of the scales
#: that scanners and converters write; the narrowest first.
SCALES = (
    ('-3142 to 3142', -3142.0, 3142.0, 0.0, 1000 * TURN),
    ('0 to 4095', 0.0, 4096.0, 2048.0, 4096.0),
    ('-4096 to 4094', -4096.0, 4096.0, 0.0, 8192.0),
)
#: A scanner's scale counts as found if the values fill this fraction of it.
FILLED = 0.8


def radians(phase: FloatArray) -> np.ndarray:
    """``phase`` (...) as a scanner writes it, in radians between -π and π.

    Knows radians, milliradians, and Siemens' 0 to 4095 and -4096 to 4094, by the range of the
    values. Raises BadData for another range.
    """
    phase = np.asarray(phase, float)
    low, high = float(phase.min()), float(phase.max())
    if 0 < high - low < TURN + 0.01 and low > -np.pi - 0.01:
        return wrapped(phase)
    for _, bottom, top, zero, turn in SCALES:
        if bottom - 1 <= low and high <= top + 1 and high - low > FILLED * (top - bottom):
            return wrapped((phase - zero) * (TURN / turn))
    scales = ', '.join(name for name, *_ in SCALES)
    raise BadData(
        f'Phase image: values from {low:g} to {high:g} were found; radians (-π to π or 0 to 2π) or '
        f'a scale filled by at least {FILLED:.0%} ({scales}) was expected. Convert the phase to '
        'radians.'
    )


def wrapped(phase: FloatArray) -> np.ndarray:
    """``phase`` less whole turns, from -π to below π."""
    return np.asarray((phase + np.pi) % TURN - np.pi)


def _unreliability(phase: FloatArray) -> np.ndarray:
    """(X, Y, Z) how far from straight the wrapped ``phase`` runs through each voxel."""
    bend = np.zeros(phase.shape)
    for axis in range(3):
        slope = wrapped(np.diff(phase, axis=axis))
        padded = np.pad(slope, [(1, 1) if k == axis else (0, 0) for k in range(3)], mode='edge')
        bend += wrapped(np.diff(padded, axis=axis)) ** 2
    return np.sqrt(bend)


def unwrap(phase: FloatArray, mask: BoolArray) -> np.ndarray:
    """``phase`` (X, Y, Z) in radians plus whole turns: no jumps within ``mask``, in one piece.

    Neighbours are joined along the tree over the mask whose worst steps are the least bent; along
    it every step is shorter than half a turn. Of all common turns, the median in the mask is the
    nearest to 0. Outside the mask the phase is 0.
    """
    number = np.full(phase.shape, -1)
    number[mask] = np.arange(mask.sum())
    bend, ends = _unreliability(phase)[mask], []
    for axis in range(3):
        along = np.moveaxis(number, axis, 0)
        ends.append(np.stack([along[:-1].ravel(), along[1:].ravel()]))
    first, second = np.concatenate(ends, axis=1)
    first, second = (x[(first >= 0) & (second >= 0)] for x in (first, second))
    weight = 1e-6 + np.maximum(bend[first], bend[second])
    graph = sparse.coo_matrix((weight, (first, second)), (len(bend),) * 2).tocsr()
    tree = csgraph.minimum_spanning_tree(graph)
    _, before = csgraph.breadth_first_order(tree, 0, directed=False)
    before = np.where(before < 0, 0, before)
    values = phase[mask]
    turns = np.rint((values[before] - values) / TURN)
    while before.any():  # each round doubles the length of the paths that are summed
        turns, before = turns + turns[before], before[before]
    values = values + TURN * turns
    unwrapped = np.zeros(phase.shape)
    unwrapped[mask] = values - TURN * np.rint(np.median(values) / TURN)
    return unwrapped
