"""Prepared runs of a derivative dataset: their names, which a call is about, which have labels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bidsapp import registry
from bidsapp.bids.dataset import open_layout
from bidsapp.bids.names import build, parse, source_entities
from bidsapp.bids.outputs import files_of, output_path
from bidsapp.core import Case
from bidsapp.problems import MissingInput, NothingSelected

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bidsapp.bids.dataset import Filters
    from bidsapp.bids.runs import Prepared, Run
    from bidsapp.core import Output


def prepared_files(prepared: Prepared, entities: Mapping[str, str]) -> dict[str, Path]:
    """Kind → file of a prepared run, below the root."""
    own = source_entities(entities)
    return {kind: build({**own, **named}) for kind, named in prepared.names.items()}


def main_sidecar(prepared: Prepared, entities: Mapping[str, str]) -> Path:
    """The JSON beside the file that a run is known by, below the root."""
    named = {**prepared.names[prepared.main], 'extension': '.json'}
    return build({**source_entities(entities), **named})


def promised_files(prepared: Prepared, run: Run) -> list[Path]:
    """Every file, below the root, that the preparation of ``run`` leaves."""
    entities = run.case.entities
    own = source_entities(entities)
    maps = [p for output, source in prepared.outputs for p in files_of(entities, output, source)]
    besides = [build({**own, **named}) for named in prepared.besides(run)]
    kinds = prepared_files(prepared, entities)
    return list(dict.fromkeys([*maps, *besides, main_sidecar(prepared, entities), *kinds.values()]))


def find_prepared(root: Path, modality: str, subjects: Sequence[str] | None = None) -> list[Case]:
    """The prepared runs of a modality below ``root`` of which every file is there."""
    prepared: Prepared = registry.files(modality).prepared
    layout = open_layout(root, subjects, None)
    main = {k: v for k, v in prepared.names[prepared.main].items() if k != 'datatype'}
    cases = []
    for path in sorted(Path(file.path) for file in layout.get(**main)):
        entities = {**source_entities(parse(path.name)), 'datatype': prepared.datatype}
        files = {kind: root / p for kind, p in prepared_files(prepared, entities).items()}
        if all(p.is_file() for p in files.values()):
            cases.append(Case(entities, files))
    return cases


def choose_prepared(
    root: Path, modality: str, subjects: Sequence[str], sessions: Sequence[str], filters: Filters
) -> list[Case]:
    """Those prepared runs that labels (none: all) and the filter for the modality select.

    Raises MissingInput if ``root`` holds none at all, NothingSelected if none is left.
    """
    cases = find_prepared(root, modality, list(subjects) or None)
    if sessions:
        cases = [c for c in cases if c.entities.get('session') in sessions]
    wanted = {k: v for k, v in filters.get(modality, {}).items() if k not in ('suffix', 'datatype')}
    cases = [c for c in cases if all(c.entities.get(k) == v for k, v in wanted.items())]
    if cases:
        return cases
    if find_prepared(root, modality):
        raise NothingSelected('The labels and filters select none of the preprocessed runs.')
    raise MissingInput(
        f'{root} holds no {registry.files(modality).prepared.words}. '
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


def find_reference(root: Path, case: Case, output: Output) -> tuple[str, Path] | None:
    """(source, image) of the reference label of a run, of the best source that is there."""
    for source in output.references:
        path = root / output_path(case.entities, output, source, '.nii.gz')
        if path.is_file():
            return source, path
    return None
