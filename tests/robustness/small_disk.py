"""A work folder on a small disk: the call ends with 74 and says which file had no room.

A disk that is too small from the start is refused. One that somebody else fills once the call is at
work is full for another step by what is left: the first of all, one that writes an image, one
that keeps its result, one that writes what a network sees.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

import nibabel as nib

from tests.robustness.calls import (
    WORK,
    alone,
    called,
    command,
    refused,
    results,
    write_heads,
)
from tests.robustness.lines import Line

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

#: Bytes that are left.
LEFT = (16 << 10, 4 << 20, 12 << 20, 26 << 20)
#: Of the disk: enough for a call to begin.
SIZE, FILLER = '400m', 'filler'


def lines(scratch: Path) -> Iterator[Line]:
    """The end on each disk, what it leaves, and that the same call goes on with more room."""
    disk = scratch / 'disk'
    disk.mkdir()
    bids = write_heads(scratch / 'bids', 1)
    if why := refused('mount', '-t', 'tmpfs', '-o', 'size=12m', 'tmpfs', str(disk)):
        yield Line(f'skipped, for a small disk cannot be mounted here: {why}')
        return
    with unmounted_at_last(disk):
        code, said = called(command(bids, scratch / 'out-12m', *WORK, '-w', disk))
        yield Line('a work disk of 12 MB', trouble(code, said, disk))
    for left in LEFT:
        refused('mount', '-t', 'tmpfs', '-o', f'size={SIZE}', 'tmpfs', str(disk))
        with unmounted_at_last(disk):
            out = scratch / f'out-{left}'
            argv = command(bids, out, *WORK, '-w', disk)
            code, said = filled(argv, disk, left)
            yield Line(f'{left} bytes left of a work disk', trouble(code, said, disk))
            images = [name for name in results(out) if name.endswith('.nii.gz')]
            yield Line('no image is half', ', '.join(n for n in images if not readable(out / n)))
            if left == LEFT[-1]:
                (disk / FILLER).unlink()
                code, said = called(argv)
                yield Line('the same call goes on when there is room', said[-300:] if code else '')


def filled(argv: Sequence[str], disk: Path, left: int) -> tuple[int, str]:
    """(exit code, what was said) of a call whose work disk is filled up once it is at work."""
    said = []
    process = subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=alone()
    )
    assert process.stdout is not None
    for line in process.stdout:
        said.append(line)
        if 'Working on' in line:
            with (disk / FILLER).open('wb') as file:
                os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free - left)
    return process.wait(), ''.join(said)


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
