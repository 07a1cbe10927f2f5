"""Whom a model has seen: raw scans known by their content, never by a label; loads no torch.

A label says nothing outside its own dataset: another lab has a sub-01 too. A card therefore holds
the SHA-256 of the raw scans that its model was fitted to or chosen by (``seen_scans``, with those
of all models that it started from), and says whether that is everybody (``seen_complete``).
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from bidsapp.learn.cards import sha256

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from bidsapp.learn.tables import Row

#: Splits that a model has seen: it is fitted to one and chosen by the other.
SEEN = ('train', 'val')
#: In a table: of a test participant whom the start of a model had seen; n/a where it does not say.
FLAG = 'seen_in_training'
FLAG_WORDS = (
    '1: the model that this one started from had learnt from this test participant or was chosen '
    'by it, so its figures are no measure for new people; n/a: that model does not say whom it saw'
)
#: Fields of a card that are lists of hashes, for programs.
LISTS = ('scans', 'seen_scans')


def identity(scan: Path) -> str | None:
    """SHA-256 of a raw file; None where it cannot be read."""
    try:
        stat = scan.stat()
        return _hashed(scan, stat.st_size, stat.st_mtime_ns)
    except OSError:
        return None


@cache
def _hashed(scan: Path, size: int, changed: int) -> str:
    return sha256(scan)


def seen_scans(card: Mapping[str, Any]) -> tuple[frozenset[str], bool]:
    """Hashes of the scans that a model has seen, and whether they are all.

    Of a model of before cards held them it is known where its card names no participants: one that
    was pretrained on simulated scans has seen nobody.
    """
    if 'seen_scans' in card:
        return frozenset(card['seen_scans']), bool(card.get('seen_complete'))
    people = 'participants' in card or 'participants' in card.get('training', {})
    return frozenset(), not (people or card.get('started_from'))


def was_seen(card: Mapping[str, Any], scans: Iterable[Path]) -> bool | None:
    """Whether a model has seen one of ``scans``, a person's; None where that cannot be told."""
    known, complete = seen_scans(card)
    if complete and not known:
        return False
    found = []
    for scan in scans:
        found.append(identity(scan))
        if found[-1] in known:
            return True
    return False if complete and found and None not in found else None


def about_seen(
    scans: Mapping[str, Sequence[Path | None]], start: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Fields of a card: its own scans by split, all that were seen, the models it comes from.

    ``scans`` are the raw files of the runs of each split, None for one that was not found.
    """
    own = {split: [f and identity(f) for f in files] for split, files in scans.items()}
    before, complete = (frozenset(), True) if start is None else seen_scans(start)
    seen = {digest for split in SEEN for digest in own.get(split, ())}
    return {
        'scans': {split: sorted(d for d in found if d) for split, found in own.items()},
        'seen_scans': sorted(before | {digest for digest in seen if digest}),
        'seen_complete': complete and None not in seen,
        'ancestry': ancestry(start),
    }


def ancestry(start: Mapping[str, Any] | None) -> list[dict[str, str]]:
    """The model that one started from, then the one that this started from, and so on."""
    if start is None:
        return []
    earlier = start.get('started_from')
    before = start.get('ancestry') or ([earlier] if earlier else [])
    return [{key: start[key] for key in ('name', 'version', 'sha256')}, *before]


def flags(
    arm: str, card: Mapping[str, Any] | None, scans: Mapping[str, Sequence[Path]]
) -> list[Row]:
    """Rows of the table for each test participant whom the start of ``arm`` has or may have seen.

    ``scans``: participant → raw scans of that person.
    """
    if card is None:
        return []
    told = {subject: was_seen(card, own) for subject, own in scans.items()}
    return [
        (f'sub-{subject}', 'test', arm, FLAG, 'all', float('nan') if seen is None else 1.0)
        for subject, seen in told.items()
        if seen is not False
    ]


def flagged(rows: Iterable[Row]) -> dict[str, tuple[list[str], list[str]]]:
    """Arm → participants whom its start had seen, and those of whom it cannot be told."""
    found: dict[str, tuple[list[str], list[str]]] = {}
    for person, _, arm, metric, _, value in rows:
        if metric == FLAG:
            found.setdefault(arm, ([], []))[value != 1].append(person)
    return found
