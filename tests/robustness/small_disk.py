"""A work folder on a disk of 12 MB: the call ends with 74 and says which file had no room."""

from __future__ import annotations

import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.robustness.calls import WORK, called, command, refused, results, write_heads
from tests.robustness.lines import Line

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SIZE = '12m'


def lines(scratch: Path) -> Iterator[Line]:
    """The end on a full disk, what it leaves, and that the same call goes on with more room."""
    disk = scratch / 'disk'
    disk.mkdir()
    if why := refused('mount', '-t', 'tmpfs', '-o', f'size={SIZE}', 'tmpfs', str(disk)):
        yield Line(f'skipped, for a small disk cannot be mounted here: {why}')
        return
    with unmounted_at_last(disk):
        out = scratch / 'out'
        argv = command(write_heads(scratch / 'bids', 1), out, *WORK, '-w', disk)
        code, said = called(argv)
        yield Line(f'a work disk of {SIZE}', trouble(code, said, disk))
        images = [name for name in results(out) if name.endswith('.nii.gz')]
        yield Line('it leaves no image', ', '.join(images))
        subprocess.run(['mount', '-o', 'remount,size=1g', str(disk)], check=True)
        code, said = called(argv)
        yield Line('the same call goes on when there is room', said[-300:] if code else '')


@contextmanager
def unmounted_at_last(disk: Path) -> Iterator[None]:
    """Whatever becomes of the check."""
    try:
        yield
    finally:
        subprocess.run(['umount', str(disk)], check=False)


def trouble(code: int, said: str, disk: Path) -> str:
    """What of an end on a full disk is not as promised."""
    if 'defect' in said:
        return f'it is taken for a defect: {said.strip()[-400:]}'
    if code != 74:
        return f'it ends with {code}, not 74: {said.strip()[-400:]}'
    failed = [line for line in said.splitlines() if 'FAILED' in line or 'transfermri:' in line]
    if not any(str(disk) in line for line in failed):
        return f'no message names a path below {disk}: {failed}'
    return f'a traceback is shown: {said.strip()[-400:]}' if 'Traceback' in said else ''
