"""What an output was made from, as a record for its sidecar, and whether that still holds.

A file that exists proves nothing: its scan may have been replaced, its gradient table mended, a
step's results have changed. So each sidecar holds a record (`MadeFrom`): the sources, the version
of each step, the options that matter, the model. An output that rests on another names the digest
of that one's record, so that a new preprocessed scan never stands beside old labels unnoticed.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

#: Field of the sidecar; and in it, where the scan could not give the label of the source that was
#: expected, that source.
FIELD, INSTEAD = 'MadeFrom', 'InsteadOf'
#: What a sidecar without the field was made from.
UNKNOWN = 'it does not say what it was made from'


@dataclass(frozen=True, slots=True)
class Basis:
    """What an output is about to be made from; nothing of it is read before it is needed."""

    sources: Mapping[str, Path] = field(default_factory=dict)  #: BIDS URI → file
    steps: Mapping[str, int] = field(default_factory=dict)  #: step → version of its results
    options: Mapping[str, Any] = field(default_factory=dict)  #: those that change results
    rests_on: Path | None = None  #: sidecar of the output that this one is derived from

    def plain(self) -> dict[str, Any]:
        """As values that a step can be told."""
        rests_on = {'rests_on': str(self.rests_on)} if self.rests_on else {}
        sources = {uri: str(path) for uri, path in self.sources.items()}
        return {
            'sources': sources, 'steps': dict(self.steps), 'options': dict(self.options),
            **rests_on,
        }  # fmt: skip


def basis(plain: Mapping[str, Any]) -> Basis:
    """What `Basis.plain` has made plain."""
    from pathlib import Path

    sources = {uri: Path(path) for uri, path in plain.get('sources', {}).items()}
    rests_on = Path(plain['rests_on']) if 'rests_on' in plain else None
    return Basis(sources, plain.get('steps', {}), plain.get('options', {}), rests_on)


def record(made_from: Basis) -> dict[str, Any]:
    """The record of an output that is made now: its sources are read."""
    written: dict[str, Any] = {
        'Sources': {uri: stamp(path) for uri, path in sorted(made_from.sources.items())},
        'Steps': dict(sorted(made_from.steps.items())),
        'Options': dict(sorted(made_from.options.items())),
    }
    if made_from.rests_on is not None:
        written['RestsOn'] = digest(recorded(made_from.rests_on) or {})
    return written


def stamp(path: Path) -> dict[str, Any]:
    """Size in bytes, time of change (s since 1970) and SHA-256 of a file."""
    size, time = size_and_time(path)
    return {'Size': size, 'ModificationTime': time, 'SHA256': sha256(path)}


def size_and_time(path: Path) -> tuple[int, float]:
    """Of a file, or of what it links to; the time to the microsecond."""
    seen = path.stat()
    return seen.st_size, round(seen.st_mtime, 6)


def sha256(path: Path) -> str:
    """Of the bytes of a file; read once in a call, for many outputs are made from one scan."""
    return _sha256(path, *size_and_time(path))


@lru_cache(maxsize=256)
def _sha256(path: Path, size: int, time: float) -> str:
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def digest(written: Mapping[str, Any]) -> str:
    """Of a record: of what was in its sources, not of when; 64 hexadecimal digits."""
    sources = {uri: seen.get('SHA256') for uri, seen in written.get('Sources', {}).items()}
    return of_values({**written, 'Sources': sources})


def of_values(values: Any) -> str:
    """SHA-256 of plain values, such as metadata, in whatever order their keys stand."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()


def recorded(sidecar: Path) -> dict[str, Any] | None:
    """The record in a sidecar; None where there is none."""
    try:
        content = json.loads(sidecar.read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return None
    found = content.get(FIELD) if isinstance(content, dict) else None
    return found if isinstance(found, dict) else None


def changed(sidecar: Path, made_from: Basis) -> str | None:
    """Why the output of ``sidecar`` is not what would be made now; None where it is.

    A source of the same size and time is the same; else its content decides.
    """
    written = recorded(sidecar)
    if written is None:
        return UNKNOWN
    sources = written.get('Sources', {})
    for uri in sorted(sources.keys() ^ made_from.sources.keys()):
        return f'{name_in(uri)} {"is no longer used" if uri in sources else "is new"}'
    for uri, path in sorted(made_from.sources.items()):
        if not same(sources[uri], path):
            return f'{name_in(uri)} has changed'
    for what, now in (('Steps', made_from.steps), ('Options', made_from.options)):
        before = written.get(what, {})
        for name in sorted(before.keys() | now.keys()):
            if before.get(name) != now.get(name):
                return difference(what, name, before.get(name), now.get(name))
    below = made_from.rests_on
    if below is not None and written.get('RestsOn') != digest(recorded(below) or {}):
        return f'{below.name.removesuffix(".json")} was made again'
    return None


def stands(sidecar: Path, below: Path) -> bool:
    """Whether what ``sidecar`` is beside was derived from what ``below`` is beside, as that is now.

    What says nothing of it, a label drawn by hand for example, is believed.
    """
    written = recorded(sidecar)
    if written is None or 'RestsOn' not in written:
        return True
    return bool(written['RestsOn'] == digest(recorded(below) or {}))


def same(seen: Mapping[str, Any], path: Path) -> bool:
    """Whether a source is what it was."""
    try:
        if (seen.get('Size'), seen.get('ModificationTime')) == size_and_time(path):
            return True
        return bool(seen.get('SHA256') == sha256(path))
    except OSError:
        return False


def difference(what: str, name: str, before: Any, now: Any) -> str:
    """A step or an option that is not what it was, in words."""
    if what == 'Steps':
        return f'the step {name} gives other results in this version'
    if before is None or now is None or (isinstance(now, str) and len(now) == 64):
        return f'{name} has changed'
    return f'{name} is {now}, and was {before}'


def name_in(uri: str) -> str:
    """The file's name in a BIDS URI."""
    return uri.rpartition('/')[2]
