"""Hidden names for what is being written: no other process has them, on no machine or container.

A process number alone is no name: every job is number 1 of its container.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import socket
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Seconds after which what is hidden is nobody's any more.
OLD = 24 * 3600
_NAME = re.compile(r'\.[\w-]+-\d+-[0-9a-f]{8}\..+')


def hidden(path: Path) -> Path:
    """A name beside ``path`` to write to before it takes that place: host, process, random part."""
    host = re.sub(r'\W', '-', socket.gethostname())[:32] or 'host'
    return path.with_name(f'.{host}-{os.getpid()}-{secrets.token_hex(4)}.{path.name}')


def remove_old(folder: Path) -> None:
    """Take away what killed processes left hidden in ``folder``, known by its age alone."""
    for path in folder.glob('.*'):
        with suppress(OSError):  # another call has been first
            if _NAME.fullmatch(path.name) and time.time() - path.stat().st_mtime > OLD:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def put(staging: Path, place: Path) -> bool:
    """Rename a folder to ``place``; False where another, whole one has been there first."""
    try:
        staging.rename(place)
    except OSError:
        if not place.is_dir():
            raise
        return False
    return True


@contextmanager
def whole_folder(place: Path) -> Iterator[Path]:
    """A hidden folder to be filled, which becomes ``place``; one that is there already stays."""
    staging = hidden(place)
    staging.mkdir(parents=True)
    remove_old(place.parent)
    try:
        yield staging
        put(staging, place)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
