"""Labels of a segmentation by their indices: the table beside a ``dseg``."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING

from bidsapp.problems import BadData

if TYPE_CHECKING:
    from pathlib import Path


def classes_of(path: Path) -> dict[int, str]:
    """Index → name, from the table beside a label image; empty without one. Raises BadData."""
    table = path.with_name(path.name.partition('.')[0] + '.tsv')
    if not table.is_file():
        return {}
    try:
        with table.open(encoding='utf-8', newline='') as stream:
            rows = list(csv.DictReader(stream, delimiter='\t'))
        return {int(row['index']): str(row['name']) for row in rows if int(row['index']) > 0}
    except (KeyError, ValueError, TypeError) as error:
        raise BadData(
            f'{table.name} is no table of labels ({error}); expected columns index, a whole '
            'number, and name, parted by tabs. Correct it, or take it away.'
        ) from error
