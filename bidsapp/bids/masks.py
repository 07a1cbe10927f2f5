"""Brain masks of the user's own: ``-d masks=PATH``."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from bidsapp.bids.images import check_grid, open_image
from bidsapp.bids.names import build, source_entities
from bidsapp.problems import BadData, problem_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from bidsapp.bids.runs import R

MASKS = 'masks'
HELPS = {MASKS: 'brain masks'}


def with_masks(runs: Sequence[R], root: Path) -> list[R]:
    """``runs``, each with its mask below ``root``; one that is not there is made as usual.

    A mask that does not lie as its scan does is the run's problem: it was meant.
    """
    return [_with_mask(run, root) for run in runs]


def _with_mask(run: R, root: Path) -> R:
    if run.problem is not None:
        return run
    named = {**source_entities(run.case.entities), 'desc': 'brain', 'suffix': 'mask'}
    places = [root / build({**named, 'extension': e}) for e in ('.nii.gz', '.nii')]
    mask = next((path for path in places if path.is_file()), None)
    if mask is None:
        note = f'-d masks holds no {places[0].relative_to(root)}: the brain mask is made here'
        return replace(run, notes=(*run.notes, note))
    try:
        _check(mask, run.path)
    except Exception as error:
        return replace(run, problem=problem_of(error, mask.name))
    note = f'brain mask: {mask.name} of -d masks'
    return replace(run, case=run.case.with_files(mask=mask), notes=(*run.notes, note))


def _check(mask: Path, scan: Path) -> None:
    """Raises Problem unless ``mask`` is a mask on the grid of ``scan``."""
    check_grid(mask, scan, 'Make it on the grid of the scan.')
    if not np.asarray(open_image(mask).dataobj).any():
        raise BadData(f'{mask.name} is empty. Take it away, or draw the brain.')
