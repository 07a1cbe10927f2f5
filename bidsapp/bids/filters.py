"""Filter files: one meaning of a query for raw scans and for prepared runs."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from bidsapp import registry
from bidsapp.bids.names import keys
from bidsapp.bids.text import text_of
from bidsapp.problems import BadData, InputOutputError, MissingInput, WrongUsage

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger('transfermri')

#: fMRIPrep's filter format: a query for each kind of file.
Filters = Mapping[str, Mapping[str, Any]]

#: Kinds of files beside the runs of a modality, which are called as it is.
BESIDE = ('t1w', 'fmap')
#: What null and the names of pybids' Query stand for.
ABSENT = (None, 'Query.NONE')
PRESENT = ('*', 'Query.ANY', 'Query.REQUIRED')
EITHER = ('Query.OPTIONAL',)
#: Entities whose labels are numbers: 1 and 01 are the same.
NUMBERS = ('run', 'echo', 'flip', 'inv', 'chunk')


def read_filters(path: Path | None) -> Filters:
    """A filter file. Raises MissingInput, InputOutputError or WrongUsage.

    A query that no file here is asked for, and a value that is written with its key ('ses-01'),
    are said and do no harm.
    """
    if path is None:
        return {}
    try:
        filters = json.loads(text_of(path))
    except FileNotFoundError as error:
        raise MissingInput(f'The filter file {path} does not exist.') from error
    except OSError as error:
        raise InputOutputError(f'The filter file {path} cannot be read: {error}') from error
    except (ValueError, RecursionError, BadData) as error:
        raise WrongUsage(f'The filter file {path} is not valid JSON: {error}') from error
    if not isinstance(filters, dict) or not all(isinstance(q, dict) for q in filters.values()):
        raise WrongUsage(
            f'The filter file {path} must hold an object of queries, such as '
            '{"dwi": {"session": "01"}, "t1w": {"acquisition": null}}.'
        )
    known = (*registry.modalities(), *BESIDE)
    for kind, query in filters.items():
        if kind not in known and kind.lower() in known:
            raise WrongUsage(f'{path}: a query for {kind!r}; write {kind.lower()!r}.')
        for entity, value in query.items():
            _check(path, kind, entity, value)
    if unused := [kind for kind in filters if kind not in known]:
        log.info(
            '%s: no file here is asked for by %s; queries for %s are used.',
            path, ', '.join(unused), ', '.join(known),
        )  # fmt: skip
    return filters


@cache
def entities() -> tuple[str, ...]:
    """What a query may ask for: pybids' entities, by their long names."""
    from bids.layout import Config

    theirs = [name for c in ('bids', 'derivatives') for name in Config.load(c).entities]
    return tuple(dict.fromkeys([*keys().values(), *theirs]))


def _check(path: Path, kind: str, entity: str, value: Any) -> None:
    """Raises WrongUsage for what is no entity, or no value of one."""
    where = f'{path}, {kind}'
    if entity not in entities():
        meant = keys().get(entity.lower(), entity.lower())
        hint = f'write {meant!r}' if meant in entities() else f'known are {", ".join(entities())}'
        raise WrongUsage(f'{where}: {entity!r} is no entity; {hint}.')
    for one in value if isinstance(value, list) else [value]:
        strange = isinstance(one, str) and one.startswith('Query.')
        if (
            isinstance(one, bool)
            or not isinstance(one, str | int | None)
            or (strange and one not in (*ABSENT, *PRESENT, *EITHER))
        ):
            raise WrongUsage(
                f'{where}: {one!r} cannot be asked for as {entity}; expected a label, a number, a '
                'list of them, null (absent) or "*" (any).'
            )
        if isinstance(one, str) and (bare := _bare(entity, one)) != one:
            log.info('%s: the %s %r is taken as %r.', where, entity, one, bare)
    if value == []:
        raise WrongUsage(f'{where}: an empty list for {entity} selects nothing. Leave it out.')


def _bare(entity: str, label: str) -> str:
    """A label without its key: 'ses-01' → '01'; an extension with its dot."""
    if entity == 'extension' and label not in PRESENT:
        return '.' + label.lstrip('.')
    short = next((s for s, long in keys().items() if long == entity), entity)
    return label.removeprefix(f'{short}-')


def matches(query: Mapping[str, Any], named: Mapping[str, str]) -> bool:
    """Whether the entities of a file answer every part of ``query``."""
    return all(
        any(_answers(entity, one, named.get(entity)) for one in _several(value))
        for entity, value in query.items()
    )


def _several(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _answers(entity: str, wanted: Any, label: str | None) -> bool:
    """Whether a label is what is wanted of it."""
    if wanted in EITHER:
        return True
    if wanted in ABSENT:
        return label is None
    if label is None or wanted in PRESENT:
        return label is not None
    text = _bare(entity, str(wanted))
    number = isinstance(wanted, int) or entity in NUMBERS
    if number and text.isdecimal() and label.isdecimal():
        return int(text) == int(label)
    return text == label
