"""Files that a dataset lists while their content is elsewhere: DataLad, git-annex."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from bidsapp.problems import MissingInput

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

#: What the text begins with that git-annex leaves in place of an unlocked file.
POINTER = b'/annex/objects/'
#: Bytes; git-annex takes nothing longer for such a text.
LONGEST_POINTER = 2**15


def leads_to(path: Path) -> str:
    """Where the content of ``path`` would be if it were fetched; empty if it is here."""
    if path.is_symlink() and not path.exists():
        return str(path.readlink())
    if path.is_file() and path.stat().st_size <= LONGEST_POINTER:
        with path.open('rb') as file:
            line = file.readline()
        if line.startswith(POINTER):
            return line.decode(errors='replace').strip()
    return ''


def check_content(root: Path, paths: Iterable[Path]) -> None:
    """Raises MissingInput, once for all ``paths`` in dataset ``root`` whose content is not here."""
    absent = {path: target for path in paths if (target := leads_to(path))}
    if not absent:
        return
    names = [str(p.relative_to(root) if p.is_relative_to(root) else p) for p in absent]
    which = f'{names[0]} leads' if len(names) == 1 else f'{len(names)} files lead'
    raise MissingInput(
        f'{which} to content that is not here ({next(iter(absent.values()))}). '
        f'Fetch it: cd {shlex.quote(str(root))} && datalad get {shlex.join(names)}. '
        'If it is here, a container sees it only if the folder that the link leads to is mounted.'
    )
