"""The dMRI runs of a raw dataset, each with its gradients, metadata, T1w image and field maps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bidsapp.bids.annex import check_content
from bidsapp.bids.dataset import choose_t1w
from bidsapp.bids.names import parse, source_entities
from bidsapp.bids.runs import Run
from bidsapp.bids.scans import inherited, read_scan
from bidsapp.core import Case
from bidsapp.modalities.dwi.bids.fieldmap_sources import MEASURED, PAIRED
from bidsapp.modalities.dwi.bids.fieldmaps import find_fieldmaps
from bidsapp.modalities.dwi.physics.gradients import B0_THRESHOLD
from bidsapp.problems import BadData, MissingInput

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from bidsapp.bids.dataset import Selection
    from bidsapp.bids.scans import BidsImage
    from bidsapp.modalities.dwi.bids.fieldmap_sources import FieldmapSource
    from bidsapp.problems import Problem


@dataclass(frozen=True, slots=True)
class DwiRun(Run):
    """One dMRI run, and the field maps that can be used for it."""

    fieldmaps: tuple[FieldmapSource, ...] = ()  #: the best first
    fieldmap_notes: tuple[str, ...] = ()  #: why others cannot be used
    doubts: tuple[str, ...] = ()  #: what of the metadata was left out, or read as something else
    b0_threshold: float = B0_THRESHOLD  #: s/mm², the greatest b that shall count as b = 0


def runs_of(raw: Selection) -> list[DwiRun]:
    """The selected dMRI runs, each with its gradients, metadata, T1w image and field maps."""
    scans = raw.files('dwi', suffix='dwi', datatype='dwi')
    if not scans:
        return []
    anatomies = raw.anatomies()
    maps = raw.files('fmap', suffix=[*PAIRED, *MEASURED], datatype='fmap')
    maps += raw.files('', suffix=list(PAIRED), datatype='dwi')
    others: dict[str, list[BidsImage]] = {}
    for path in maps:
        others.setdefault(parse(path.name)['subject'], []).append(read_scan(raw.root, path))
    limit = b0_asked(raw)
    return [
        raw_run(raw.root, p, anatomies, others.get(parse(p.name)['subject'], []), limit)
        for p in scans
    ]


def b0_asked(raw: Selection) -> float:
    """The greatest b (s/mm²) that shall count as b = 0, as the call has it."""
    return float(raw.options.get('b0_threshold', B0_THRESHOLD))


def raw_run(
    root: Path,
    scan: Path,
    anatomies: Sequence[Path],
    others: Sequence[BidsImage],
    b0_threshold: float = B0_THRESHOLD,
) -> DwiRun:
    """One dMRI run of a raw dataset; what is missing or unreadable of it is its ``problem``."""
    entities = {**source_entities(parse(scan.name)), 'datatype': 'dwi'}
    files = {'dwi': scan}
    anatomy, notes = choose_t1w(entities, anatomies)
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
    if own.trouble:
        problem = problem or BadData(own.trouble)
    fieldmaps, reasons = find_fieldmaps(own, others, b0_threshold)
    return DwiRun(
        'dwi', Case(entities, files), own.metadata, tuple(notes), problem,
        fieldmaps=fieldmaps, fieldmap_notes=reasons, doubts=own.doubts,
        b0_threshold=b0_threshold,
    )  # fmt: skip
