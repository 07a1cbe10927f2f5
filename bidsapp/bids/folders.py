"""Folders of a dataset, each listed once however often it is asked for."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

#: Clocks of file systems are coarse: a folder that has changed this short a time ago, in ns, may
#: change again without looking younger, and is listed each time.
SETTLED = 2 * 10**9


@dataclass(frozen=True, slots=True)
class Listing:
    """Names in a folder, sorted; hidden ones are left out."""

    folders: tuple[str, ...]  #: and links to folders
    files: tuple[str, ...]  #: and links that lead to nothing
    odd: tuple[str, ...] = ()  #: those of ``folders`` with a dot in the name, as only files have it


def listing(folder: Path) -> Listing:
    """What ``folder`` holds. Raises OSError where it cannot be read."""
    changed = folder.stat().st_mtime_ns
    if time.time_ns() - changed < SETTLED:
        return _list(str(folder))
    return _kept(str(folder), changed)


def _list(folder: str) -> Listing:
    folders: list[str] = []
    files: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith('.'):
                (folders if _leads_on(entry) else files).append(entry.name)
    odd = [name for name in folders if '.' in name]
    return Listing(*(tuple(sorted(names)) for names in (folders, files, odd)))


def _leads_on(entry: os.DirEntry[str]) -> bool:
    """Whether it may be a folder; what cannot be told is said where it is read."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return True


@lru_cache(maxsize=256)
def _kept(folder: str, changed: int) -> Listing:
    return _list(folder)
