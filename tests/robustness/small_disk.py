"""A work folder on a small disk: the call ends with 74 and says which file had no room.

By its size another step meets the end of the disk: the first of all, one that writes an image, one
that keeps its result, one that writes what a network sees.
"""

from __future__ import annotations

import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

import nibabel as nib

from tests.robustness.calls import WORK, called, command, refused, results, write_heads
from tests.robustness.lines import Line

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SIZES = ('16k', '4m', '12m', '26m')


def lines(scratch: Path) -> Iterator[Line]:
    """The end on each disk, what it leaves, and that the same call goes on with more room."""
    disk = scratch / 'disk'
    disk.mkdir()
    bids = write_heads(scratch / 'bids', 1)
    for size in SIZES:
        if why := refused('mount', '-t', 'tmpfs', '-o', f'size={size}', 'tmpfs', str(disk)):
            yield Line(f'skipped, for a small disk cannot be mounted here: {why}')
            return
        with unmounted_at_last(disk):
            out = scratch / f'out-{size}'
            argv = command(bids, out, *WORK, '-w', disk)
            code, said = called(argv)
            yield Line(f'a work disk of {size}', trouble(code, said, disk))
            images = [name for name in results(out) if name.endswith('.nii.gz')]
            yield Line('no image is half', ', '.join(n for n in images if not readable(out / n)))
            if size == SIZES[-1]:
                subprocess.run(['mount', '-o', 'remount,size=1g', str(disk)], check=True)
                code, said = called(argv)
                yield Line('the same call goes on when there is room', said[-300:] if code else '')


def readable(path: Path) -> bool:
    """Whether an image holds all of its voxels."""
    try:
        return bool(nib.load(path).get_fdata().size)
    except (OSError, EOFError, nib.filebasedimages.ImageFileError):
        return False


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
        return f'it is taken for a defect: {last_words(said)}'
    if code != 74:
        return f'it ends with {code}, not 74: {last_words(said)}'
    if str(disk) not in last_words(said):
        return f'no message names a path below {disk}: {last_words(said)}'
    return f'a traceback is shown: {last_words(said)}' if 'Traceback' in said else ''


def last_words(said: str) -> str:
    """What a call said of its failure, without tracebacks."""
    failed = [line for line in said.splitlines() if 'FAILED' in line or 'transfermri:' in line]
    return '; '.join(failed) or said.strip()[-300:]
