"""Phase in radians, unwrapped: for field maps and for QSM."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage, sparse
from scipy.sparse import csgraph

from bidsapp.problems import BadData

if TYPE_CHECKING:
    from numpy.typing import NDArray

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
#: Pieces of a mask that are put in their place one after the other.
FEW = 8


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
    """``phase`` (X, Y, Z) in radians plus whole turns: no jumps within a piece of ``mask``.

    Neighbours are joined along the tree over the mask whose worst steps are the least bent; along
    it every step is shorter than half a turn. Of all common turns, the median in the mask is the
    nearest to 0. Face-connected pieces that do not touch each have their own tree and are put, the
    largest first, where the voxels of the ones before that are nearest to them fit best. Outside
    the mask the phase is 0.
    """
    unwrapped = np.zeros(phase.shape)
    if not mask.any():
        return unwrapped
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
    n_pieces, piece = csgraph.connected_components(tree, directed=False)
    before = _towards_roots(tree, np.unique(piece, return_index=True)[1])
    values = phase[mask]
    turns = np.rint((values[before] - values) / TURN)
    while (before != before[before]).any():  # each round doubles the paths that are summed
        turns, before = turns + turns[before], before[before]
    values = values + TURN * turns
    unwrapped[mask] = values
    if n_pieces > 1:
        pieces = np.full(phase.shape, -1)
        pieces[mask] = piece
        _join(unwrapped, pieces)
        values = unwrapped[mask]
    unwrapped[mask] = values - TURN * np.rint(np.median(values) / TURN)
    return unwrapped


def _towards_roots(tree: Any, roots: NDArray[np.intp]) -> np.ndarray:
    """(N,) the neighbour of each node on its way to the root of its tree; roots are their own."""
    n = tree.shape[0]
    # All roots hang on one more node, so that a single walk finds all.
    links = sparse.coo_matrix((np.ones(len(roots)), (roots, np.full(len(roots), n))), (n + 1,) * 2)
    edges = tree.tocoo()
    joined = sparse.coo_matrix((edges.data, (edges.row, edges.col)), (n + 1,) * 2) + links
    _, before = csgraph.breadth_first_order(joined.tocsr(), n, directed=False)
    before = before[:n]
    before[roots] = roots
    return np.asarray(before)


def _join(unwrapped: FloatArray, piece: NDArray[np.intp]) -> None:
    """Put the pieces (X, Y, Z; -1 outside) of ``unwrapped``, by whole turns, where they fit.

    The largest stays; the next few follow one after the other, all further ones at once.
    """
    sizes = np.bincount(piece[piece >= 0])
    largest, *others = np.argsort(sizes, kind='stable')[::-1]
    fixed = piece == largest
    for group in filter(None, (*([other] for other in others[:FEW]), others[FEW:])):
        own = np.isin(piece, group)
        distance, nearest = ndimage.distance_transform_edt(~fixed, return_indices=True)
        gap = np.zeros(len(sizes))
        gap[group] = ndimage.minimum(distance, piece, group)
        facing = own & (distance <= gap[piece] + 2)
        step = unwrapped[tuple(nearest)] - unwrapped
        turns = np.zeros(len(sizes))
        turns[group] = np.rint(ndimage.median(step, np.where(facing, piece, -1), group) / TURN)
        unwrapped[own] += TURN * turns[piece[own]]
        fixed |= own
