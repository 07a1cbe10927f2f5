"""Slices of a preprocessed run that were never measured, but predicted from other volumes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bidsapp.bids.scans import said_beside

if TYPE_CHECKING:
    from pathlib import Path

#: Fields of the sidecar, under MotionCorrection: rows of volume, first and last slice (counted
#: from 0 in the preprocessed run), and the axis of its grid along which slices lie.
FIELD, REPLACED, SLICE_AXIS = 'MotionCorrection', 'ReplacedSlices', 'SliceAxis'


def replaced_slices(image: Path) -> list[tuple[slice | int, ...]]:
    """Where the preprocessed run ``image`` (X, Y, Z, N) holds predictions: indices into it.

    What is learnt from, or compared with, its volumes leaves these out: they were predicted from
    the run's other volumes, also across the halves of a split.
    """
    said = said_beside(image).get(FIELD)
    if not isinstance(said, dict) or said.get(SLICE_AXIS) not in ('i', 'j', 'k'):
        return []
    axis = 'ijk'.index(said[SLICE_AXIS])
    found = []
    for volume, first, last in said.get(REPLACED, []):
        place: list[slice | int] = [slice(None)] * 3 + [int(volume)]
        place[axis] = slice(int(first), int(last) + 1)
        found.append(tuple(place))
    return found
