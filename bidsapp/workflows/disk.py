"""What a call needs on disk, and whether it is there."""

from __future__ import annotations

import logging
import shutil
from typing import TYPE_CHECKING

from bidsapp.problems import MAKE_ROOM, InputOutputError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from bidsapp.bids.runs import Size
    from bidsapp.workflows.plan import RunPlan

log = logging.getLogger('transfermri')

#: Copies of all volumes that the steps of a run hold while it is worked on, and values a voxel of
#: a network's input and outputs: measured on runs of 31 to 65 volumes, all tasks, and rounded up.
COPIES, VALUES = 5, 350
#: The same for what stays in OUTPUT_DIR, where images are compressed.
KEPT_COPIES, KEPT_VALUES = 2, 55


def work_gb(size: Size) -> float:
    """GiB in the work folder while one run is worked on."""
    return COPIES * size.run_gb + size.gb(4 * VALUES)


def output_gb(size: Size) -> float:
    """GiB of one run's outputs."""
    return KEPT_COPIES * size.run_gb + size.gb(4 * KEPT_VALUES)


def look_at_disks(plans: Sequence[RunPlan], work: Path, out: Path, at_once: int) -> None:
    """Say what runs need that are to be made, ``at_once`` of them at a time.

    Raises InputOutputError where not even one of them has room.
    """
    sizes = [p.survey.size for p in plans if p.survey is not None and p.todo]
    if not sizes:
        return
    largest = sorted(map(work_gb, sizes), reverse=True)
    needs = {
        work: (largest[0], sum(largest[:at_once])),
        out: (max(map(output_gb, sizes)), sum(map(output_gb, sizes))),
    }
    if device(work) == device(out):
        needs = {out: (sum(one for one, _ in needs.values()), sum(a for _, a in needs.values()))}
    for folder, (one, every) in needs.items():
        free = shutil.disk_usage(there(folder)).free / 2**30
        text = f'About {every:.1f} GB are needed in {folder}, and {free:.1f} GB are free.'
        if free < one:
            raise InputOutputError(f'{text} One run alone needs {one:.1f} GB. {MAKE_ROOM}')
        (log.warning if free < every else log.info)(text)


def there(folder: Path) -> Path:
    """``folder``, or what of the way to it is there."""
    return next(path for path in (folder, *folder.parents) if path.is_dir())


def device(folder: Path) -> int:
    """The number of the disk."""
    return there(folder).stat().st_dev
