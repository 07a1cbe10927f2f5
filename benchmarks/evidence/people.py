"""Which people may teach a network, which may choose it, and which only test it: one table.

A person who has taught or chosen a model is no witness for it. What a model's card names is
refused whatever this table says (`refuse_seen`); the table is what is promised for the next one.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from realscans import RAW, SHARED

from bidsapp.bids.dataset import images_of, subjects_of
from bidsapp.learn.seen import SEEN, identity, seen_scans

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Iterator, Mapping, Sequence

FOLDERS = (RAW, SHARED / 'more')
TEACHES, VALIDATES, TESTS = 'teaches', 'validates', 'tests'
#: Person in ../shared/data → role; galan and uih stand in two folders, all their runs count.
ROLES = {
    'galan': TEACHES, 'elition': TEACHES, 'nottingham': TEACHES, 'ds114': TEACHES,
    'uih': VALIDATES, 'uih2': VALIDATES,
    'achieva': TESTS, 'prisma': TESTS, 'maastricht': TESTS,
}  # fmt: skip
#: What stands beside a person's rows.
NOTES = {'achieva': 'the estimator of restored volumes was once chosen on it'}


class Seen(Exception):  # no Problem: those are the app's, with exit codes
    """A scan that a model has seen can say nothing of it."""


def person_of(path: Path) -> str:
    """'achieva' of …/sub-achieva_dwi.nii.gz."""
    return path.name.partition('_')[0].removeprefix('sub-')


def role_of(path: Path) -> str:
    """What a scan may be used for. Outside ../shared labels are other people's: they test."""
    own = SHARED.resolve() in path.resolve().parents
    return ROLES.get(person_of(path), TESTS) if own else TESTS


def announced(path: Path) -> str:
    """A scan's name and role, as it is printed before its figures."""
    note = NOTES.get(person_of(path), '')
    return f'{path.name}: {role_of(path)}{note and f" ({note})"}'


def add_choice(parser: ArgumentParser, default: Sequence[str] = ('',)) -> None:
    """``--data`` and ``--scans``."""
    parser.add_argument('--data', type=Path, nargs='+', default=FOLDERS, help='BIDS folders')
    parser.add_argument('--scans', nargs='+', default=default, help='beginnings of names')


def chosen(given: Namespace) -> tuple[list[Path], list[Path]]:
    """The scans that are asked for, and all among which a person's others are."""
    everyone = [path for folder in given.data for path in scans_in(folder.resolve())]
    return [path for path in everyone if path.name.startswith(tuple(given.scans))], everyone


def scans_in(dataset: Path) -> list[Path]:
    """Every dMRI run of a BIDS folder."""
    return [
        path
        for subject in subjects_of(dataset)
        for path in images_of(dataset / f'sub-{subject}', 'dwi')
        if path.name.split('.')[0].endswith('_dwi')
    ]


def named_in(card: Mapping[str, Any]) -> frozenset[str]:
    """Hashes of the scans that a model was fitted to, chosen by or let pass by (``gated``)."""
    own = [card.get('scans', {}).get(split, ()) for split in SEEN]
    return seen_scans(card)[0] | set(_texts([*own, card.get('gated', ())]))


def _texts(value: Any) -> Iterator[str]:
    """Every text in lists and objects, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _texts(each)


def refuse_seen(card: Mapping[str, Any], path: Path, others: Sequence[Path] = ()) -> None:
    """Raises Seen where ``card`` names the scan ``path``, or another of the person, by content.

    ``others`` are scans among which that person's are told by their label.
    """
    known = named_in(card)
    own = [path, *(o for o in others if person_of(o) == person_of(path) and o != path)]
    if found := [scan.name for scan in own if identity(scan) in known]:
        raise Seen(
            f'{path.name}: the card of this model says that it was trained, chosen or gated with '
            f'{found[0]}, so its figures here would be no measure for new people. Score it on a '
            'person whom it has not seen'
        )


def admit(card: Mapping[str, Any], *names: str) -> None:
    """Print the roles of scans of ../shared by the beginnings of their names, or refuse them."""
    everyone = [path for folder in FOLDERS if folder.is_dir() for path in scans_in(folder)]
    for path in (path for path in everyone if path.name.startswith(names)):
        refuse_seen(card, path, everyone)
        print(announced(path))
