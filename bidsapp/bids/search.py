"""Every run of the selected participants, each with what is wrong with it; one stops no other."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from bidsapp import registry
from bidsapp.bids.dataset import IMAGES, SOURCE, images_in, places, readable, sessions_of
from bidsapp.bids.names import LABEL
from bidsapp.bids.runs import Run
from bidsapp.core import Case
from bidsapp.problems import BadData, MissingInput, NothingSelected, Problem, problem_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from bidsapp.bids.dataset import Selection
    from bidsapp.bids.runs import Files

log = logging.getLogger('transfermri')


def find_runs(
    raw: Selection, modalities: Sequence[str], derivatives: Mapping[str, Path]
) -> list[Run]:
    """The selected runs of ``modalities``, by participants.

    What is wrong with the files of one run is its ``problem``. A participant, a session or a folder
    that cannot be looked into is one too.
    """
    return [
        run
        for one in raw.each()
        for modality in modalities
        for run in _of_participant(one, modality, derivatives)
    ]


def _of_participant(one: Selection, modality: str, derivatives: Mapping[str, Path]) -> list[Run]:
    files: Files[Any, Any] = registry.files(modality)
    (subject,) = one.subjects
    folder = one.root / f'sub-{subject}'
    if not LABEL.fullmatch(subject):
        return [lost(modality, one.root, folder, _odd(folder))]
    found = [lost(modality, one.root, place, _odd(place)) for place in _odd_sessions(one, files)]
    for place, error in one.unreadable(files.prepared.datatype):
        found.append(lost(modality, one.root, place, problem_of(error, _below(one.root, place))))
    try:
        return [*found, *files.find(one, derivatives)]
    except Exception as error:
        log.debug('', exc_info=True)
        return [*found, lost(modality, one.root, folder, problem_of(error, folder.name))]


def lost(modality: str, root: Path, place: Path, problem: Problem) -> Run:
    """What stands for the runs of a folder that could not be looked for, or are not there."""
    subject = place.relative_to(root).parts[0].removeprefix('sub-')
    entities = {'subject': subject, 'datatype': registry.files(modality).prepared.datatype}
    return Run(
        modality, Case(entities, {'folder': place}), problem=problem, called=_below(root, place)
    )


def _below(root: Path, place: Path) -> str:
    return place.relative_to(root).as_posix()


def _odd(folder: Path) -> BadData:
    return BadData(
        f'{folder.name} is no BIDS name: labels may hold letters and digits only. Rename the '
        'folder and the files in it.'
    )


def _odd_sessions(one: Selection, files: Files[Any, Any]) -> list[Path]:
    """Session folders that are not named as BIDS has it and hold scans of the modality."""
    return [
        place
        for session, place in places(one.root / f'sub-{one.subjects[0]}')
        if session is not None
        and not LABEL.fullmatch(session)
        and (not one.sessions or session in one.sessions)
        and images_in(place / files.prepared.datatype)
    ]


def unused(raw: Selection, modalities: Iterable[str]) -> list[Path]:
    """What looks like a participant or a run and is not named, or does not lie, as BIDS has it."""
    found = [
        raw.root / name
        for name in readable(raw.root).folders
        if name.lower().startswith('sub') and not name.startswith('sub-')
    ]
    for modality in modalities:
        prepared = registry.files(modality).prepared
        suffix = prepared.names[prepared.main].get('suffix')
        for subject in raw.subjects:
            if LABEL.fullmatch(subject) and suffix is not None:
                found += _strays(raw.root / f'sub-{subject}', prepared.datatype, suffix)
    return found


def _strays(folder: Path, datatype: str, suffix: str) -> list[Path]:
    """Of one participant: folders and images that are almost those of a modality."""
    found = []
    for _, place in places(folder):
        here = readable(place)
        found += [place / n for n in here.folders if n.lower() == datatype and n != datatype]
        found += [place / n for n in here.folders if n[:3].lower() == 'ses' and n[:4] != 'ses-']
        found += [place / n for n in here.files if n.lower().endswith(IMAGES)]
        for name in readable(place / datatype).files:
            start, _, end = name.lower().rpartition(f'_{suffix.lower()}.')
            image = end.endswith(('nii', 'nii.gz', 'mif', 'mif.gz', 'nrrd', 'mgz', 'mgh', 'img'))
            right = name.endswith((f'_{suffix}.nii', f'_{suffix}.nii.gz'))
            if start and image and (not right or ('_part-' in start and '_part-mag' not in start)):
                found.append(place / datatype / name)
    return found


def without_run(
    raw: Selection, asked: Sequence[str], modalities: Sequence[str], runs: Sequence[Run]
) -> list[Run]:
    """A problem for each label of ``asked`` that none of ``runs`` is of; others are only named.

    Raises NothingSelected where filters, or a dataset without such scans, leave no run at all.
    """
    served = {run.case.subject for run in runs}
    without = [subject for subject in asked or raw.subjects if subject not in served]
    narrowed = bool(raw.sessions or raw.filters)
    if not runs and (narrowed or not asked):
        parts = [registry.files(m) for m in modalities]
        raise nothing_selected(raw, {files.words: files.looked_for for files in parts})
    if asked:
        return [nobodys_run(raw.root, s, modalities[0], narrowed) for s in without]
    if without:
        log.warning('No run is selected of sub-%s.', ', sub-'.join(without))
    return []


def nobodys_run(root: Path, subject: str, modality: str, narrowed: bool) -> Run:
    """What stands for a participant who was asked for and has no run."""
    folder, files = root / f'sub-{subject}', registry.files(modality)
    if not folder.is_dir() and not (root / SOURCE / folder.name).is_dir():
        why = f'{root} holds no {folder.name}'
    else:
        why = f'no {files.words} run' + ' is selected by sessions and filters' * narrowed
        why += f'; looked for {files.looked_for}'
    return lost(modality, root, folder, MissingInput(f'{folder.name}: {why}.'))


def say_what_is_not_used(raw: Selection, modalities: Sequence[str]) -> None:
    """Name what looks like a participant, a session or a run, and is left out."""
    if strays := [p.relative_to(raw.root).as_posix() for p in unused(raw, modalities)]:
        shown = ', '.join(strays[:6]) + (f' and {len(strays) - 6} more' if strays[6:] else '')
        log.warning('Not used, for name or place are not as BIDS has it: %s.', shown)
    there = {s for subject in raw.subjects for s in sessions_of(raw.root, subject)}
    if absent := [s for s in raw.sessions if s not in there]:
        log.warning('No session %s of any participant selected.', ', '.join(absent))


def nothing_selected(raw: Selection, looked_for: Mapping[str, str]) -> NothingSelected:
    """The problem that no run is left; ``looked_for`` is where runs were, by what they are."""
    kinds = ' and no '.join(looked_for)
    places = ' and '.join(looked_for.values())
    return NothingSelected(
        f'The labels and filters select no {kinds} run of {raw.root} (looked for {places} of '
        f'{len(raw.subjects)} participants). Take a filter away, or see with --dry-run what is '
        'there.'
    )
