"""The gradient-echo runs of a raw dataset: the files of all echoes, and what is known of them."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from bidsapp.bids.annex import check_content
from bidsapp.bids.names import flaw, parse, source_entities
from bidsapp.bids.runs import Run
from bidsapp.bids.scans import read_scan
from bidsapp.core import Case
from bidsapp.modalities.gre.bids.facts import Facts, cannot_serve, facts_of
from bidsapp.problems import BadData, MissingInput, problem_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from bidsapp.bids.dataset import Selection

log = logging.getLogger('transfermri')

#: What gradient echoes are called.
SUFFIXES = ('MEGRE', 'T2starw')
#: Entities that tell the files of one run apart.
WITHIN = ('echo', 'part')
#: Label of ``part-`` → what such files are called here.
PARTS = {'mag': 'magnitude', 'phase': 'phase', 'real': 'real', 'imag': 'imaginary'}
#: Pairs that make a complex signal, the better first.
PAIRS = (('mag', 'phase'), ('real', 'imag'))


@dataclass(frozen=True, slots=True)
class GreRun(Run):
    """One gradient-echo run, or a finished field.

    Of E echoes, in the order of their times, its files are ``magnitude_1`` and ``phase_1`` to
    ``magnitude_E`` and ``phase_E``, or ``real_`` and ``imaginary_``; of a field ``field``; and
    ``mask`` and ``dseg`` where somebody has drawn the brain and regions in it. Of the case,
    ``part`` has name and index of the region whose mean χ is 0, where it is not the whole brain.
    """

    facts: Facts | None = None  #: None where there is a problem
    doubts: tuple[str, ...] = ()  #: what of the metadata was left out, or read as something else
    turned: bool = False  #: the user says that the phase has the other sign
    given: str = ''  #: 'local' or 'total': which field it is; '' of a raw run

    def sources(self) -> tuple[Path, ...]:
        """Regions serve labels only."""
        regions = self.case.files.get('dseg')
        return tuple(path for path in Run.sources(self) if path != regions)

    def told_of_labels(self) -> dict[str, Any]:
        """What of χ is 0."""
        return {'--reference': self.case.part.get('reference', 'whole-brain')}

    def told(self) -> dict[str, Any]:
        """Metadata, what of all echoes' the field follows from, and the user's word on the sign."""
        told: dict[str, Any] = {**Run.told(self), '--phase-sign': 'turn' if self.turned else 'keep'}
        if self.facts is not None:
            told['the echo times'] = list(self.facts.echo_times)
            told['the frequency'] = self.facts.imaging_mhz
            told['the direction of B0'] = str(dict(self.facts.said))
        return told


def several(files: Mapping[str, Path], kind: str) -> list[Path]:
    """The files ``kind``\\ _1, _2, … of a run."""
    numbers = sorted(int(k.rpartition('_')[2]) for k in files if k.rpartition('_')[0] == kind)
    return [files[f'{kind}_{n}'] for n in numbers]


def runs_of(raw: Selection) -> list[GreRun]:
    """The selected gradient-echo runs: one for each set of entities but ``echo-`` and ``part-``."""
    turned = raw.options.get('phase_sign') == 'turn'
    found: dict[Any, list[Path]] = {}
    for path in raw.parts('gre', suffix=list(SUFFIXES), datatype='anat'):
        found.setdefault(_recording(raw.root, path), []).append(path)
    runs = [raw_run(raw.root, paths, turned) for paths in found.values()]
    return _told_apart(sorted(runs, key=lambda run: run.name))


def _recording(root: Path, path: Path) -> Any:
    if flaw(path.relative_to(root)):
        return path
    named = parse(path.name)
    return path.parent, named['suffix'], *sorted(entities_of(named).items())


def entities_of(named: Mapping[str, str]) -> dict[str, str]:
    """Those that the outputs of a run begin with."""
    own = {k: v for k, v in source_entities(named).items() if k not in WITHIN}
    return {**own, 'datatype': 'anat'}


def _told_apart(runs: Iterable[GreRun]) -> list[GreRun]:
    """``runs``; two whose outputs would have one name are both a problem."""
    found = list(runs)
    by_name: dict[str, list[GreRun]] = {}
    for run in found:
        if run.unserved is None:
            by_name.setdefault(run.name, []).append(run)

    def told(run: GreRun) -> GreRun:
        alike = by_name.get(run.name, [])
        if run.unserved is not None or len(alike) < 2:
            return run
        both = ' and '.join(one.path.name for one in alike)
        problem = BadData(
            f'{both} are one run by their names, for outputs have no suffix {SUFFIXES[0]} or '
            f'{SUFFIXES[1]}. Tell them apart by acq-.'
        )
        return replace(run, problem=problem)

    return [told(run) for run in found]


def raw_run(root: Path, paths: Sequence[Path], turned: bool = False) -> GreRun:
    """The run of the images ``paths``; what is wrong with its files is its ``problem``."""
    below = paths[0].relative_to(root)
    files = {f'image_{n}': path for n, path in enumerate(paths, 1)}
    if wrong := flaw(below):
        problem = BadData(f'{below}: {wrong}. Rename the file and what belongs to it.')
        subject = below.parts[0].removeprefix('sub-')
        nameless = Case({'subject': subject, 'datatype': 'anat'}, files)
        return GreRun('gre', nameless, problem=problem, called=str(below).partition('.')[0])
    entities = entities_of(parse(paths[0].name))
    try:
        return _whole_run(root, by_echo(paths), entities, turned)
    except Exception as error:
        log.debug('', exc_info=True)
        return GreRun('gre', Case(entities, files), problem=problem_of(error, str(below)))


def by_echo(paths: Sequence[Path]) -> list[dict[str, Path]]:
    """Of each echo, by its number, the image of each part. Raises BadData for two of one name."""
    if len({'echo' in parse(path.name) for path in paths}) > 1:
        raise BadData(
            f'{paths[0].name}: some of its images have echo- in their names and others none; '
            'expected all or none. Rename them.'
        )
    found: dict[int, dict[str, Path]] = {}
    for path in paths:
        named = parse(path.name)
        echo, part = named.get('echo', '1'), named.get('part', 'mag')
        if not echo.isdecimal() or part not in PARTS:
            raise BadData(
                f'{path.name}: expected a number after echo- and one of {", ".join(PARTS)} after '
                'part-. Rename the file.'
            )
        other = found.setdefault(int(echo), {}).setdefault(part, path)
        if other != path:
            raise BadData(
                f'{other.name} and {path.name} are one image by their names; expected one. Take '
                'one away.'
            )
    return [found[number] for number in sorted(found)]


def _whole_run(
    root: Path, echoes: Sequence[Mapping[str, Path]], entities: Mapping[str, str], turned: bool
) -> GreRun:
    check_content(root, [path for echo in echoes for path in echo.values()])
    every = [{part: read_scan(root, path) for part, path in echo.items()} for echo in echoes]
    images = [image for echo in every for image in echo.values()]
    for image in images:
        if image.trouble is not None:
            raise image.trouble
    doubts = tuple(dict.fromkeys(doubt for image in images for doubt in image.doubts))
    metadata = dict(images[0].metadata)
    if (unserved := cannot_serve(every)) is not None:
        files = {f'image_{n}': image.path for n, image in enumerate(images, 1)}
        case = Case(entities, files)
        return GreRun('gre', case, metadata, unserved=unserved, doubts=doubts, turned=turned)
    pair = _pair(echoes)
    files = {f'{PARTS[p]}_{n}': echo[p] for n, echo in enumerate(echoes, 1) for p in pair}
    used = [[echo[part] for part in pair] for echo in every]
    spare = sorted({part for echo in echoes for part in echo} - set(pair))
    notes = [f'part-{", part-".join(spare)} is there too, and not used'] if spare else []
    return GreRun(
        'gre', Case(entities, files), metadata, tuple(notes), facts=facts_of(used), doubts=doubts,
        turned=turned,
    )  # fmt: skip


def _pair(echoes: Sequence[Mapping[str, Path]]) -> tuple[str, str]:
    """The two parts of the signal that every echo has. Raises MissingInput."""
    for pair in PAIRS:
        if all(part in echo for echo in echoes for part in pair):
            return pair
    begun = PAIRS[0] if any('phase' in echo for echo in echoes) else PAIRS[1]
    echo = next(echo for echo in echoes if not set(begun) <= set(echo))
    lacking = next(part for part in begun if part not in echo)
    there = next(iter(echo.values()))
    raise MissingInput(
        f'{there.name} has no part-{lacking} beside it, as every echo needs. Convert all parts of '
        'all echoes again, or take this echo away.'
    )
