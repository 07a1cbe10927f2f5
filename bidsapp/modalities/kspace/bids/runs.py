"""The raw scans of a dataset's source data: one run for each image that a file holds."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from bidsapp.bids.annex import check_content
from bidsapp.bids.dataset import IMAGES, SOURCE, places, readable
from bidsapp.bids.filters import matches
from bidsapp.bids.names import LABEL, flaw, parse, source_entities, stem
from bidsapp.bids.runs import Run
from bidsapp.bids.scans import said_beside
from bidsapp.core import Case
from bidsapp.modalities.kspace.bids.header import NoImage, Unserved
from bidsapp.modalities.kspace.bids.layout import CONVERTERS
from bidsapp.modalities.kspace.bids.magnitudes import phase_beside
from bidsapp.modalities.kspace.bids.scan import survey_scan
from bidsapp.problems import BadData, problem_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from bidsapp.bids.dataset import Selection
    from bidsapp.modalities.kspace.bids.raw import RawImage

log = logging.getLogger('transfermri')

#: What an image of ``anat`` may be called.
SUFFIXES = (
    'T1w', 'T2w', 'PDw', 'T2starw', 'FLAIR', 'inplaneT1', 'inplaneT2', 'PDT2', 'angio',
)  # fmt: skip
#: Ends of raw data's names.
ENDS = ('.h5', *CONVERTERS)
#: ``desc-`` by which the run of a full scan is known; others are known by the zero-filled image.
FULL = 'reference'


@dataclass(frozen=True, slots=True)
class KspaceRun(Run):
    """One image of a file of raw data, which is ``raw`` among its files."""

    image: RawImage | None = None  #: None where there is a problem
    number: int = 0  #: of the image in its file
    undersample: float = 0.0  #: R that is left of a full scan; 0: all of it

    def told(self) -> dict[str, Any]:
        """Which image it is, and the lines that are left out afterwards."""
        left = {'--undersample': self.undersample} if self.undersample else {}
        return {**Run.told(self), **left, 'the number of the image': self.number}


def runs_of(raw: Selection) -> list[KspaceRun]:
    """The selected raw scans, by participants and sessions.

    With ``--undersample`` also images of which there are no raw data: they become k-space again.
    """
    found = [run for path in files_of(raw) for run in runs_in(raw.root, path)]
    acceleration = float(raw.options.get('undersample') or 0)
    measured = [run for run in found if _selected(raw, run)]
    if acceleration:
        names = {run.name for run in found}
        images = raw.files('kspace', suffix=list(SUFFIXES), datatype='anat')
        simulated = [run for path in images for run in runs_in(raw.root, path)]
        measured += [run for run in simulated if run.name not in names]
    return _told_apart([_undersampled(run, acceleration) for run in measured])


def files_of(raw: Selection) -> list[Path]:
    """Files of raw data in ``anat`` of the participants' source data, by their names."""
    found = []
    for subject in raw.subjects:
        for session, place in places(raw.root / SOURCE / f'sub-{subject}'):
            named = session is None or LABEL.fullmatch(session)
            if named and (not raw.sessions or session in raw.sessions):
                here = readable(place / 'anat')
                names = sorted((*here.files, *here.folders))
                found += [place / 'anat' / name for name in names if name.endswith(ENDS)]
    return found


def _selected(raw: Selection, run: KspaceRun) -> bool:
    query = raw.filters.get('kspace', {})
    named = parse(run.path.name) if '_' in run.path.name else {}
    return matches(query, {**named, **run.case.entities})


def runs_in(root: Path, path: Path) -> list[KspaceRun]:
    """The runs of one file; what is wrong with it is the ``problem`` of the one that stands for it.

    None of a file that holds no image, such as a scan of noise.
    """
    simulated = path.name.endswith(IMAGES)
    below = path.relative_to(root if simulated else root / SOURCE)
    phase = phase_beside(path) if simulated else None
    subject = below.parts[0].removeprefix('sub-')
    nameless = KspaceRun(
        'kspace', Case({'subject': subject, 'datatype': 'anat'},
                       {'raw': path, **({} if phase is None else {'phase': phase})}),
        called=below.as_posix().partition('.')[0],
    )  # fmt: skip
    try:
        check_content(root, list(nameless.case.files.values()))
        images = survey_scan(path)
        _require_name(below)
        entities, notes = entities_of(path.name)
        own = replace(nameless, metadata=said_beside(path), notes=tuple(notes))
        return [
            _run(own, image, number, {**entities, **_place_in(images, number)})
            for number, image in enumerate(images)
        ]
    except NoImage as reason:
        log.info('%s', reason)
        return []
    except Unserved as reason:
        return [replace(nameless, unserved=reason)]
    except Exception as error:
        log.debug('', exc_info=True)
        return [replace(nameless, problem=problem_of(error, below.as_posix()))]


def _run(own: KspaceRun, image: RawImage, number: int, entities: dict[str, str]) -> KspaceRun:
    named = {**entities, **({'desc': FULL} if image.acceleration <= 1 else {}), 'datatype': 'anat'}
    return replace(
        own, case=Case(named, own.case.files), called=f'{stem(entities)}_{entities["suffix"]}',
        image=image, number=number, notes=(*own.notes, *image.notes),
    )  # fmt: skip


def _require_name(below: Path) -> None:
    if wrong := flaw(below):
        raise BadData(f'{below}: {wrong}. Rename the file.')
    suffix = parse(below.name)['suffix']
    if suffix not in SUFFIXES:
        raise BadData(
            f'{below}: its suffix is {suffix}; expected one of anat: {", ".join(SUFFIXES)}. Rename '
            'the file.'
        )


def entities_of(name: str) -> tuple[dict[str, str], list[str]]:
    """Of outputs, and what to say of it: ``rec-`` says there how they were reconstructed."""
    named = parse(name)
    own = {k: v for k, v in source_entities(named).items() if k not in ('reconstruction', 'part')}
    before = named.get('reconstruction')
    notes = [f'rec-{before} of the raw data is replaced by what rec- says here'] if before else []
    return {**own, 'suffix': named['suffix']}, notes


def _place_in(images: Sequence[RawImage], number: int) -> dict[str, str]:
    """``echo-`` and ``chunk-``: several contrasts, and several orientations, of one file."""
    echo = images[number].echo
    alike = [other for other, image in enumerate(images) if image.echo == echo]
    found = {'echo': str(echo)} if echo else {}
    return {**found, **({'chunk': str(alike.index(number) + 1)} if len(alike) > 1 else {})}


def _undersampled(run: KspaceRun, acceleration: float) -> KspaceRun:
    """The run with ``--undersample``, which only a full scan takes notice of."""
    if not acceleration or run.image is None:
        return run
    if run.image.acceleration > 1:
        note = f'--undersample: nothing, for R = {run.image.acceleration:.3g} was measured'
        return replace(run, notes=(*run.notes, note))
    return replace(run, undersample=acceleration)


def _told_apart(runs: Iterable[KspaceRun]) -> list[KspaceRun]:
    """``runs``; two whose outputs would have one name are both a problem."""
    found = list(runs)
    names = Counter(run.name for run in found)

    def told(run: KspaceRun) -> KspaceRun:
        if names[run.name] < 2 or run.image is None:
            return run
        both = sorted({other.path.name for other in found if other.name == run.name})
        problem = BadData(
            f'{" and ".join(both)} are one run by their names, for outputs have a rec- of their '
            'own. Tell them apart by acq- or run-.'
        )
        return replace(run, problem=problem)

    return [told(run) for run in found]
