"""Tables that come with a prediction: their names, and writing them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bidsapp.bids.outputs import output_path
from bidsapp.bids.write import write_json, write_table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from bidsapp.core import Output, Statistics


def table_path(entities: Mapping[str, str], output: Output, extension: str) -> Path:
    """Where a table of a prediction stands, and the JSON that explains it."""
    return output_path(entities, output, 'unet', extension)


def write_statistics(
    root: Path,
    entities: Mapping[str, str],
    table: Statistics,
    rows: Sequence[Mapping[str, Any]],
    about: Mapping[str, Any],
) -> None:
    """Write a table of a prediction of one run, and before it what explains its columns."""
    described = {'Description': table.output.description, **table.columns, **about}
    write_json(root / table_path(entities, table.output, '.json'), described)
    values = [[row[column] for column in table.columns] for row in rows]
    write_table(root / table_path(entities, table.output, '.tsv'), list(table.columns), values)
