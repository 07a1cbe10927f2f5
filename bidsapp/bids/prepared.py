"""Prepared runs of a derivative dataset: their names, which a call is about, which have labels."""

from __future__ import annotations

import logging
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from bidsapp import registry
from bidsapp.bids.dataset import images_of, participants_of
from bidsapp.bids.filters import matches
from bidsapp.bids.images import check_grid
from bidsapp.bids.names import DERIVED, build, of_recording, parse, source_entities, stem
from bidsapp.bids.outputs import files_of, output_path
from bidsapp.bids.provenance import stands
from bidsapp.bids.scans import read_object, sidecar_of
from bidsapp.core import Case
from bidsapp.problems import BadData, MissingInput, NothingSelected, Problem

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from bidsapp.bids.filters import Filters
    from bidsapp.bids.runs import Prepared, Run
    from bidsapp.core import Output, Task

#: ``desc-`` of a map that says how sure another is.
UNCERTAIN = 'uncertainty'
log = logging.getLogger('transfermri')


def prepared_files(prepared: Prepared, entities: Mapping[str, str]) -> dict[str, Path]:
    """Kind → file of a prepared run, below the root."""
    own, names = of_recording(entities), {**prepared.names}
    names[prepared.main] = prepared.main_of(entities)
    return {kind: build({**own, **named}) for kind, named in names.items()}


def main_sidecar(prepared: Prepared, entities: Mapping[str, str]) -> Path:
    """The JSON beside the file that a run is known by, below the root."""
    named = {**prepared.main_of(entities), 'extension': '.json'}
    return build({**of_recording(entities), **named})


def promised_files(prepared: Prepared, run: Run) -> list[Path]:
    """Every file, below the root, that the preparation of ``run`` leaves.

    None where the suffix would be the recording's own and nobody knows it: of a run that is lost.
    """
    entities = run.case.entities
    if 'suffix' not in {**entities, **prepared.main_of(entities)}:
        return []
    own = of_recording(entities)
    maps = [p for output, source in prepared.outputs for p in files_of(entities, output, source)]
    besides = [build({**own, **named}) for named in prepared.besides(run)]
    kinds = prepared_files(prepared, entities)
    return list(dict.fromkeys([*maps, *besides, main_sidecar(prepared, entities), *kinds.values()]))


def recording_of(prepared: Prepared, named: Mapping[str, str]) -> dict[str, str] | None:
    """Entities of the run whose main file has the entities ``named``; None where none has."""
    for main in (*prepared.instead, prepared.names[prepared.main]):
        own = {k: v for k, v in main.items() if k != 'datatype'}
        if all(named.get(k) == v for k, v in own.items()):
            entities = {k: v for k, v in source_entities(named).items() if k not in own}
            kept = {} if 'suffix' in own else {'suffix': named['suffix']}
            kind = {'desc': main['desc']} if main in prepared.instead else {}
            return {**entities, **kept, **kind, 'datatype': prepared.datatype}
    return None


def mains_of(prepared: Prepared, participant: Path) -> dict[Path, dict[str, str]]:
    """Main files below the folder of a participant, one a run → the entities of that."""
    folder = prepared.names[prepared.main].get('datatype', prepared.datatype)
    found = {p: recording_of(prepared, parse(p.name)) for p in images_of(participant, folder)}
    runs = {path: entities for path, entities in found.items() if entities is not None}
    order = [*(main['desc'] for main in prepared.instead), None]
    best: dict[Path, Path] = {}
    for path, entities in runs.items():
        usual = path.parent / stem(entities) / entities.get('suffix', '')
        before = best.setdefault(usual, path)
        if order.index(entities.get('desc')) < order.index(runs[before].get('desc')):
            best[usual] = path
    return {path: runs[path] for path in best.values()}


def find_prepared(root: Path, modality: str, subjects: Sequence[str] | None = None) -> list[Case]:
    """The prepared runs of a modality below ``root`` of which every file is there."""
    prepared: Prepared = registry.files(modality).prepared
    cases = []
    for subject in participants_of(root) if subjects is None else subjects:
        for entities in mains_of(prepared, root / f'sub-{subject}').values():
            files = {kind: root / p for kind, p in prepared_files(prepared, entities).items()}
            if all(p.is_file() for p in files.values()):
                cases.append(Case(entities, files))
    return cases


def telling_apart(prepared: Prepared, outputs: Sequence[Output]) -> set[str]:
    """Entities of a recording's names that tell the files of one run apart here."""
    named = [*prepared.names.values(), *prepared.instead, *(o.entities for o in outputs)]
    keys = {key for entities in named for key in entities} | {o.told_by for o in outputs}
    return keys - {*DERIVED, 'seg', 'datatype'}


def choose_prepared(
    root: Path, modality: str, subjects: Sequence[str], sessions: Sequence[str], filters: Filters
) -> list[Case]:
    """Those prepared runs that labels (none: all) and the filter for the modality select.

    Who was asked for and has none is named. Raises MissingInput if ``root`` holds none at all,
    NothingSelected if none is left.
    """
    words = registry.files(modality).prepared.words
    there = find_prepared(root, modality)
    cases = [c for c in there if not subjects or c.subject in subjects]
    cases = [c for c in cases if not sessions or c.entities.get('session') in sessions]
    if query := filters.get(modality):
        cases = [c for c in cases if _selected(root, registry.files(modality).prepared, c, query)]
    if not there:
        raise MissingInput(f'{root} holds no {words}. Run the participant level into it first.')
    if not cases:
        raise NothingSelected('The labels and filters select none of the preprocessed runs.')
    if without := [s for s in subjects if s not in {c.subject for c in cases}]:
        log.warning('No %s is selected of sub-%s.', words, ', sub-'.join(without))
    return cases


def _selected(root: Path, prepared: Prepared, case: Case, query: Mapping[str, Any]) -> bool:
    """Whether a filter selects a run: what it means for raw scans it means for their results.

    The scan that a run was made from has the word. Of another pipeline's result only the session
    counts, as where it is taken (a merged run has lost other entities).
    """
    own = {**case.entities}
    own |= {k: v for k, v in prepared.main_of(case.entities).items() if k == 'suffix'}
    try:
        sidecar = read_object(root / main_sidecar(prepared, case.entities))
        origin, _, path = str(sidecar['Sources'][0]).removeprefix('bids:').partition(':')
    except (Problem, LookupError, TypeError):
        return matches(query, own)
    if origin != 'raw':
        query = {k: v for k, v in query.items() if k == 'session'}
    return matches(query, {**own, **parse(path)})


def with_references(
    root: Path,
    cases: Sequence[Case],
    task: Task[Any],
    derivatives: Mapping[str, Path] = MappingProxyType({}),
) -> list[Case]:
    """The runs that have every reference that ``task`` learns from, with those among their files.

    A label that was derived from another preparation of its run than is there is named and left. Of
    ``derivatives``, folders by name, the one that ``Label.given`` names has the first word.
    """
    prepared, found = registry.files(task.modality).prepared, []
    folder = derivatives.get(task.label.given) if task.label else None
    for case in cases:
        try:
            given = None if folder is None else given_reference(folder, case, task)
        except Problem as problem:
            log.warning('%s is left out: %s', stem(case.entities), problem)
            continue
        if given is not None:
            found.append(case.with_files(**{task.learnt[0].name: given}))
            continue
        references = [find_reference(root, case, output) for output in task.learnt]
        labels = {o.name: r[1] for o, r in zip(task.learnt, references, strict=True) if r}
        if len(labels) < len(task.learnt):
            continue
        below = root / main_sidecar(prepared, case.entities)
        if all(stands(sidecar_of(path), below) for path in labels.values()):
            found.append(case.with_files(**labels))
        else:
            first = next(iter(labels.values()))
            log.warning(
                '%s is left out: it was derived from another preparation of its run. Call '
                'participant again.', first.name,
            )  # fmt: skip
    return found


def given_reference(folder: Path, case: Case, task: Task[Any]) -> Path | None:
    """The map of the user's below ``folder`` that ``task`` learns from; None without one.

    It is read where it lies. Raises BadData for two of one run, and for another grid.
    """
    named = {'suffix': task.learnt[0].entities['suffix'], 'datatype': case.entities['datatype']}
    own = {**source_entities(case.entities), **named}
    found = []
    for path in images_of(folder / f'sub-{case.subject}', named['datatype']):
        entities = parse(path.name)
        if entities['suffix'] == own['suffix'] and entities.get('desc') != UNCERTAIN:
            same = {**source_entities(entities), **named}
            found += [path] if same == own else []
    if len(found) > 1:
        both = ' and '.join(path.name for path in found[:2])
        raise BadData(f'{both} are maps of one run; expected one. Take one away.')
    for path in found:
        main = registry.files(task.modality).prepared.main
        check_grid(path, case.files[main], 'Bring the map onto the grid of the scan.')
    return found[0] if found else None


def find_reference(root: Path, case: Case, output: Output) -> tuple[str, Path] | None:
    """(source, image) of the reference label of a run, of the best source that is there."""
    for source in output.references:
        path = root / output_path(case.entities, output, source, '.nii.gz')
        if path.is_file():
            return source, path
    return None
