"""Runs that are halves of one scheme: ``--combine-runs``."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from bidsapp.bids.images import open_image
from bidsapp.core import Case
from bidsapp.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bidsapp.modalities.dwi.bids.runs import DwiRun

#: Entities in which the parts of one scheme may differ.
PARTED = ('direction', 'run')
#: mm by which two grids may differ in an entry of the affine, and be the same.
_NEAR = 1e-3


def combined(runs: Sequence[DwiRun]) -> list[DwiRun]:
    """``runs`` with those in one that differ only in ``dir-`` or ``run-`` and share a grid.

    Each part is corrected by itself. Parts that cannot be joined stay runs of their own, and say
    why; so do those of which one has a problem.
    """
    groups: dict[Any, list[DwiRun]] = {}
    for run in runs:
        whole = {k: v for k, v in run.case.entities.items() if k not in PARTED}
        key = (run.taken_from, *sorted(whole.items())) if not run.called else run.path
        groups.setdefault(key, []).append(run)
    return [run for group in groups.values() for run in _joined(group)]


def _joined(group: Sequence[DwiRun]) -> list[DwiRun]:
    first = group[0]
    if len(group) == 1 or first.taken_from is not None:
        return list(group)
    if why := _apart(group):
        note = f'not combined with the others of its name: {why}'
        return [replace(run, notes=(*run.notes, note)) for run in group]
    names = [run.name for run in group]
    differing = {e for e in PARTED if len({run.case.entities.get(e) for run in group}) > 1}
    entities = {k: v for k, v in first.case.entities.items() if k not in differing}
    note = f'{" and ".join(names)} are corrected each and joined on the grid of {names[0]}'
    said = dict.fromkeys(text for run in group for text in run.notes)
    return [
        replace(
            first, case=Case(entities, first.case.files), metadata=_common(group),
            notes=(note, *said), parts=tuple(group),
        )
    ]  # fmt: skip


def _apart(group: Sequence[DwiRun]) -> str:
    """Why runs cannot be joined; empty where they can."""
    if bad := [run.name for run in group if run.problem is not None]:
        return f'{bad[0]} cannot be used'
    try:
        images = [open_image(run.path) for run in group]
    except Problem:
        return 'one cannot be read'
    shapes = {image.shape[:3] for image in images}
    off = max(np.abs(image.affine - images[0].affine).max() for image in images)
    return 'their grids differ' if len(shapes) > 1 or off > _NEAR else ''


def _common(group: Sequence[DwiRun]) -> Mapping[str, Any]:
    """What the metadata of all parts say alike."""
    first, *others = (run.metadata for run in group)
    return {k: v for k, v in first.items() if all(o.get(k) == v for o in others)}
