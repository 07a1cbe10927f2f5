"""Volumes that a user leaves out by hand: the file of ``--exclude-volumes``."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bidsapp.bids.images import open_image
from bidsapp.bids.text import text_of
from bidsapp.problems import MissingInput, Problem, WrongUsage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bidsapp.bids.dataset import Selection
    from bidsapp.modalities.dwi.bids.runs import DwiRun

#: Columns of the file.
_COLUMNS = ('file', 'volumes')
#: '3,7-9'.
_VOLUMES = re.compile(r'\d+(-\d+)?(,\d+(-\d+)?)*')


def exclusions(raw: Selection) -> dict[Path, frozenset[int]]:
    """Volumes to leave out of each image, counted from 0; empty without the option.

    Raises MissingInput for a file, or an image in it, that is not there; WrongUsage for another
    format.
    """
    named = raw.options.get('exclude_volumes')
    return {} if named is None else read_exclusions(Path(str(named)), raw.root)


def read_exclusions(table: Path, root: Path) -> dict[Path, frozenset[int]]:
    """What the TSV ``table`` says of images below ``root``. Raises as `exclusions`."""
    if not table.is_file():
        raise MissingInput(
            f'--exclude-volumes {table}: there is no such file. Expected a TSV with the columns '
            'file and volumes.'
        )
    reader = csv.DictReader(io.StringIO(text_of(table)), delimiter='\t')
    if absent := [name for name in _COLUMNS if name not in (reader.fieldnames or ())]:
        raise WrongUsage(
            f'{table} has no column {" and ".join(absent)}: its first line is '
            f'{", ".join(reader.fieldnames or ()) or "empty"}. Expected file and volumes, parted '
            'by a tab.'
        )
    found: dict[Path, frozenset[int]] = {}
    for number, row in enumerate(reader, start=2):
        name, volumes = ((row[column] or '').strip() for column in _COLUMNS)
        image = root / name
        if not name or not image.is_file():
            raise MissingInput(
                f'{table}, line {number}: {name or "(nothing)"} is not in {root}. Expected the '
                'path of a dMRI image below it, such as sub-01/dwi/sub-01_dwi.nii.gz.'
            )
        found[image] = found.get(image, frozenset()) | _numbers(volumes, f'{table}, line {number}')
    return found


def _numbers(text: str, where: str) -> frozenset[int]:
    """'3,7-9' → {3, 7, 8, 9}. Raises WrongUsage."""
    plain = text.replace(' ', '')
    spans = [part.split('-') for part in plain.split(',')] if _VOLUMES.fullmatch(plain) else []
    if not spans or any(int(span[0]) > int(span[-1]) for span in spans):
        raise WrongUsage(
            f'{where}: the volumes are {text!r}; expected numbers counted from 0, such as 3,7-9.'
        )
    return frozenset(v for span in spans for v in range(int(span[0]), int(span[-1]) + 1))


def excluding(run: DwiRun, volumes: Mapping[Path, frozenset[int]]) -> DwiRun:
    """``run`` without its ``volumes``; one that it does not have is its problem."""
    image = run.case.files['dwi']
    chosen = tuple(sorted(volumes.get(image, ())))
    if not chosen or run.problem is not None:
        return run
    try:
        shape = open_image(image).shape
    except Problem as problem:
        return replace(run, problem=problem)
    if len(shape) == 4 and chosen[-1] >= shape[3]:
        wrong = WrongUsage(
            f'--exclude-volumes names volume {chosen[-1]} of {image.name}, which has {shape[3]}; '
            f'expected 0 to {shape[3] - 1}, for volumes are counted from 0.'
        )
        return replace(run, problem=wrong)
    return replace(run, excluded=chosen)
