"""Which preprocessed runs of a derivative dataset a call is about, and which carry labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bidsapp.bids.query import find_preprocessed, find_reference
from bidsapp.core import MissingInput, NothingSelected

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from bidsapp.bids.query import Filters
    from bidsapp.core import Case, Output


def choose_preprocessed(
    root: Path, subjects: Sequence[str], sessions: Sequence[str], filters: Filters
) -> list[Case]:
    """Those preprocessed runs that labels (none: all) and the filter for dwi select.

    Raises MissingInput if ``root`` holds none at all, NothingSelected if none is left.
    """
    cases = find_preprocessed(root, list(subjects) or None)
    if sessions:
        cases = [c for c in cases if c.entities.get('session') in sessions]
    wanted = {k: v for k, v in filters.get('dwi', {}).items() if k not in ('suffix', 'datatype')}
    cases = [c for c in cases if all(c.entities.get(k) == v for k, v in wanted.items())]
    if cases:
        return cases
    if find_preprocessed(root):
        raise NothingSelected('The labels and filters select none of the preprocessed runs.')
    raise MissingInput(
        f'{root} holds no preprocessed dMRI (*_desc-preproc_dwi.nii.gz with mask and gradients). '
        'Run the participant level into it first.'
    )


def with_references(root: Path, cases: Sequence[Case], outputs: Sequence[Output]) -> list[Case]:
    """The runs that have a reference of all ``outputs``, each with those among its files."""
    found = []
    for case in cases:
        references = {o.name: find_reference(root, case, o) for o in outputs}
        labels = {key: reference[1] for key, reference in references.items() if reference}
        if len(labels) == len(outputs):
            found.append(case.with_files(**labels))
    return found
