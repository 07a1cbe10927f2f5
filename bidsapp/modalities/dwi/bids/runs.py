"""The dMRI runs of a raw dataset, each with its gradients, metadata, T1w image and field maps."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from bidsapp.bids.annex import check_content
from bidsapp.bids.dataset import choose_t1w
from bidsapp.bids.names import flaw, parse, source_entities
from bidsapp.bids.provenance import of_values
from bidsapp.bids.runs import Run
from bidsapp.bids.scans import inherited, read_scan
from bidsapp.core import Case
from bidsapp.modalities.dwi.bids.exclusion import excluding, exclusions
from bidsapp.modalities.dwi.bids.fieldmap_sources import MEASURED, PAIRED
from bidsapp.modalities.dwi.bids.fieldmaps import choose_distortion, find_fieldmaps
from bidsapp.modalities.dwi.bids.serving import serving_only
from bidsapp.modalities.dwi.physics.gradients import B0_THRESHOLD
from bidsapp.problems import BadData, InputOutputError, MissingInput, problem_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from bidsapp.bids.dataset import Selection
    from bidsapp.bids.scans import BidsImage
    from bidsapp.modalities.dwi.bids.fieldmap_sources import FieldmapSource
    from bidsapp.problems import Problem

log = logging.getLogger('transfermri')


@dataclass(frozen=True, slots=True)
class DwiRun(Run):
    """One dMRI run, and the field maps that can be used for it."""

    fieldmaps: tuple[FieldmapSource, ...] = ()  #: the best first
    fieldmap_notes: tuple[str, ...] = ()  #: why others cannot be used
    doubts: tuple[str, ...] = ()  #: what of the metadata was left out, or read as something else
    b0_threshold: float = B0_THRESHOLD  #: s/mm², the greatest b that shall count as b = 0
    excluded: tuple[int, ...] = ()  #: volumes that the user leaves out, counted from 0
    parts: tuple[DwiRun, ...] = ()  #: runs that are corrected each and then joined to this one

    def sources(self) -> tuple[Path, ...]:
        """Image and table, the files of field maps, and a T1w image that may guide."""
        if self.parts:
            return tuple(dict.fromkeys(path for part in self.parts for path in part.sources()))
        maps = [path for source in self.fieldmaps for path in source.files.values()]
        guides = any(c.method == 't1w' for c in choose_distortion(self).candidates)
        t1w = [self.case.files['t1w']] if guides else []
        return tuple(dict.fromkeys([*Run.sources(self), *maps, *t1w]))

    def told(self) -> dict[str, Any]:
        """Metadata, field maps' too, and which volumes count and are left out."""
        if self.parts:
            told = [part.told() for part in self.parts]
            return {'what is told of its parts': of_values(told), '--combine-runs': len(told)}
        own: dict[str, Any] = {
            '--b0-threshold': self.b0_threshold,
            'what is excluded': [*self.excluded],
        }
        if self.fieldmaps:
            maps = [dict(source.metadata) for source in self.fieldmaps]
            own['the JSON of its field maps'] = of_values(maps)
        return {**Run.told(self), **own}


def runs_of(raw: Selection) -> list[DwiRun]:
    """The selected dMRI runs, each with its gradients, metadata, T1w image and field maps.

    A run without a tensor that is the reversed pair of another of its session is none.
    """
    excluded = exclusions(raw)
    return [excluding(run, excluded) for one in raw.each() for run in _of_participant(one)]


def _of_participant(raw: Selection) -> list[DwiRun]:
    scans = raw.files('dwi', suffix='dwi', datatype='dwi')
    if not scans:
        return []
    anatomies = anatomies_asked(raw)
    maps = raw.beside('fmap', suffix=[*PAIRED, *MEASURED], datatype='fmap')
    maps += raw.beside('', suffix=list(PAIRED), datatype='dwi')
    others = [read_scan(raw.root, path) for path in maps]
    near = [s for s in others if s.path.parent.name == 'dwi']
    serving = serving_only(near, b0_asked(raw))
    closed = raw.unreadable('anat') if t1w_asked(raw) else []
    lost = [str(problem_of(e, p.name)) for p, e in closed]
    without = [str(problem_of(e, p.name)) for p, e in raw.unreadable('fmap')]
    around = Around(raw.root, anatomies, others, b0_asked(raw))
    runs = []
    for several in _recordings(raw.root, scans):
        if several[0] in serving:
            continue
        run = raw_run(several, around)
        notes = [why for scan, why in serving.items() if scan.parent == several[0].parent]
        problem = run.problem or (InputOutputError('; '.join(lost)) if lost else None)
        runs.append(
            replace(
                run, notes=(*run.notes, *notes), problem=problem,
                fieldmap_notes=(*run.fieldmap_notes, *without),
            )
        )  # fmt: skip
    return runs


def _recordings(root: Path, scans: Sequence[Path]) -> list[list[Path]]:
    """Scans by their outputs' name: more than one of the same cannot be told apart."""
    found: dict[Any, list[Path]] = {}
    for scan in scans:
        named = source_entities(parse(scan.name))
        key = scan if flaw(scan.relative_to(root)) else (scan.parent, *sorted(named.items()))
        found.setdefault(key, []).append(scan)
    return list(found.values())


def b0_asked(raw: Selection) -> float:
    """The greatest b (s/mm²) that shall count as b = 0, as the call has it."""
    return float(raw.options.get('b0_threshold', B0_THRESHOLD))


def t1w_asked(raw: Selection) -> bool:
    """Whether a T1w image may serve runs."""
    return raw.options.get('anat', 't1w') == 't1w'


def anatomies_asked(raw: Selection) -> list[Path]:
    """T1w images of the participants, if one may serve."""
    return raw.anatomies() if t1w_asked(raw) else []


@dataclass(frozen=True, slots=True)
class Around:
    """What a run is looked at with."""

    root: Path
    anatomies: Sequence[Path]  #: of the participant
    others: Sequence[BidsImage]  #: of the participant, those that could be a field map
    b0_threshold: float  #: s/mm²


def raw_run(scans: Sequence[Path], around: Around) -> DwiRun:
    """One dMRI run of a raw dataset; what is wrong with its files is its ``problem``.

    ``scans`` are one image; several of one name are such a problem.
    """
    scan, below = scans[0], scans[0].relative_to(around.root)
    subject, files = below.parts[0].removeprefix('sub-'), {'dwi': scan}
    if wrong := flaw(below):
        problem = BadData(f'{below}: {wrong}. Rename the file and what belongs to it.')
        nameless = Case({'subject': subject, 'datatype': 'dwi'}, files)
        return DwiRun('dwi', nameless, problem=problem, called=str(below).partition('.')[0])
    entities = {**source_entities(parse(scan.name)), 'datatype': 'dwi'}
    if len(scans) > 1:
        both = ' and '.join(s.name for s in scans)
        twice = BadData(f'{both} are one run by their names; expected one image. Take one away.')
        return DwiRun('dwi', Case(entities, files), problem=twice)
    try:
        return _whole_run(scan, entities, around)
    except Exception as error:
        log.debug('', exc_info=True)
        return DwiRun('dwi', Case(entities, files), problem=problem_of(error, str(below)))


def _whole_run(scan: Path, entities: Mapping[str, str], around: Around) -> DwiRun:
    root, files = around.root, {'dwi': scan}
    anatomy, notes = choose_t1w(entities, around.anatomies)
    if anatomy is not None:
        files['t1w'] = anatomy
    problem: Problem | None = None
    for kind in ('bval', 'bvec'):
        found = inherited(root, scan, f'.{kind}')
        if not found:
            problem = MissingInput(
                f'{scan.relative_to(root)} has no {kind} file: looked for '
                f'{scan.name.split(".")[0]}.{kind} beside it and for one to inherit above it.'
            )
            break
        files[kind] = found[-1]
    try:
        check_content(root, [*files.values(), *inherited(root, scan, '.json')])
    except MissingInput as absent:
        problem = problem or absent
    own = read_scan(root, scan)
    fieldmaps, reasons = find_fieldmaps(own, around.others, around.b0_threshold)
    return DwiRun(
        'dwi', Case(entities, files), own.metadata, tuple(notes), problem or own.trouble,
        fieldmaps=fieldmaps, fieldmap_notes=reasons, doubts=own.doubts,
        b0_threshold=around.b0_threshold,
    )  # fmt: skip
