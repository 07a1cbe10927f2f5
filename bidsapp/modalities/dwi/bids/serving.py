"""Runs that only serve another: the reversed b = 0 that lies in dwi/, with or without tables."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from bidsapp.bids.scans import inherited
from bidsapp.modalities.dwi.bids.fieldmap_sources import turn_of, volumes_of
from bidsapp.modalities.dwi.bids.fieldmaps import intended_for, same
from bidsapp.modalities.dwi.bids.tables import read_numbers
from bidsapp.modalities.dwi.physics.acquisition import MIN_DIRECTIONS
from bidsapp.modalities.dwi.physics.gradients import b0_limit
from bidsapp.modalities.dwi.physics.tables import examine

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from bidsapp.bids.scans import BidsImage

log = logging.getLogger('transfermri')


def serving_only(scans: Sequence[BidsImage], b0_threshold: float) -> dict[Path, str]:
    """Those of one participant's dMRI scans that only serve others, and what to say of each.

    Such a scan determines no tensor, and in its session is a run with one whose phase encoding is
    the opposite or that it is linked to; one of the run's own polarity serves with such a scan.
    """
    short = {s.path: s for s in scans if _without_tensor(s, b0_threshold)}
    whole = [s for s in scans if s.path not in short]
    found = {}
    for scan in short.values():
        for run in whole:
            if same(run, scan, 'session') and _serves(run, scan, short.values()):
                found[scan.path] = (
                    f'{scan.path.name} determines no tensor and belongs to the field map of '
                    f'{run.path.name}: it promises nothing of its own'
                )
                break
    return found


def _without_tensor(scan: BidsImage, b0_threshold: float) -> bool:
    """Whether fewer weighted volumes are there than a tensor needs, or no different ones."""
    try:
        volumes = volumes_of(scan)
        tables = [inherited(scan.root, scan.path, f'.{kind}') for kind in ('bval', 'bvec')]
        if not tables[0]:
            return volumes <= MIN_DIRECTIONS
        bvals = read_numbers(tables[0][-1]).ravel()
        weighted = bvals > b0_limit(bvals, b0_threshold)
        if len(bvals) == volumes and weighted.sum() < MIN_DIRECTIONS:
            return True
        if not tables[1]:
            return False
        found = examine(read_numbers(tables[1][-1]), bvals, volumes, b0_threshold)
        return any(f.code == 'TOO_FEW_DIRECTIONS' for f in found.findings)
    except Exception:  # what is wrong with it is said where it is a run
        log.debug('', exc_info=True)
        return False


def _serves(run: BidsImage, scan: BidsImage, short: Iterable[BidsImage]) -> bool:
    fields = run.listed('B0FieldSource') | run.listed('B0FieldIdentifier')
    if scan.listed('B0FieldIdentifier') & fields or run.path in intended_for(scan):
        return True
    turn = _turn(run, scan)
    opposite = (s for s in short if same(run, s, 'session') and _turn(run, s) < 0)
    return turn < 0 or (turn > 0 and any(opposite))


def _turn(run: BidsImage, scan: BidsImage) -> int:
    """`turn_of`; 0 where it cannot be known."""
    try:
        return turn_of(run, scan)
    except Exception:  # said among the reasons why it is no pair
        log.debug('', exc_info=True)
        return 0
