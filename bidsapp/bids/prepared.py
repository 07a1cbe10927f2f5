"""Which preprocessed runs of a derivative dataset a call is about, and which carry labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bidsapp.bids.dataset import open_layout
from bidsapp.bids.names import parse, source_entities
from bidsapp.core import Case
from bidsapp.problems import MissingInput, NothingSelected

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bidsapp.bids.dataset import Filters
    from bidsapp.core import Output


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


def find_preprocessed(root: Path, subjects: Sequence[str] | None = None) -> list[Case]:
    """Preprocessed runs of a derivative dataset: files dwi, bval, bvec, mask."""
    layout = open_layout(root, subjects, None)
    found = layout.get(suffix='dwi', desc='preproc', extension='.nii.gz')
    cases = []
    for path in sorted(Path(file.path) for file in found):
        base = path.name.removesuffix('.nii.gz')
        files = {
            'dwi': path,
            'bval': path.with_name(base + '.bval'),
            'bvec': path.with_name(base + '.bvec'),
            'mask': path.with_name(base.replace('_desc-preproc_dwi', '_desc-brain_mask.nii.gz')),
        }
        if all(p.is_file() for p in files.values()):
            cases.append(Case(source_entities(parse(path.name)), files))
    return cases


def find_reference(root: Path, case: Case, output: Output) -> tuple[str, Path] | None:
    """(source, image) of the reference label of a run, of the best source that is there."""
    from bidsapp.bids.outputs import output_path

    for source in output.references:
        path = root / output_path(case.entities, output, source, '.nii.gz')
        if path.is_file():
            return source, path
    return None
