"""Finished fields of the user's own: ``-d fields=PATH``; of these only the inversion is left."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from bidsapp.bids.dataset import images_of
from bidsapp.bids.filters import matches
from bidsapp.bids.images import check_grid
from bidsapp.bids.names import build, parse
from bidsapp.bids.scans import read_scan
from bidsapp.core import Case
from bidsapp.modalities.gre.bids.facts import Facts, direction_said, frequency
from bidsapp.modalities.gre.bids.runs import GreRun, entities_of
from bidsapp.problems import BadData, MissingInput, problem_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from bidsapp.bids.dataset import Selection

FIELDS = 'fields'
HELPS = {FIELDS: 'local or total fields'}
#: Which field a file holds, by its ``desc-``; the one that needs less done to it first.
KINDS = ('local', 'total')
#: Kinds of files of a raw run that tell where the brain is.
MAGNITUDE = 'magnitude_'
#: What ``Units`` may be.
UNITS = ('Hz', 'rad/s', 'T')


def with_fields(runs: Sequence[GreRun], root: Path, raw: Selection) -> list[GreRun]:
    """``runs``, each with its field below ``root`` in the place of its phase; and runs of fields.

    A raw run without one is prepared as usual, and a field without a raw run is a run of its own.
    A field that cannot be used is its run's problem: it was meant.
    """
    known = {run.name: run for run in runs}
    found = {run.name: run for run in _found(root, raw, known)}
    note = f'-d {FIELDS} holds no field of it: the field is made here'
    others = [
        replace(run, notes=(*run.notes, note)) for run in runs if run.name not in found
    ]  # fmt: skip
    return sorted([*others, *found.values()], key=lambda run: run.name)


def _found(root: Path, raw: Selection, known: Mapping[str, GreRun]) -> list[GreRun]:
    best: dict[str, GreRun] = {}
    query = raw.filters.get('gre', {})
    for subject in raw.subjects:
        for path in images_of(root / f'sub-{subject}', 'fmap'):
            named = parse(path.name)
            chosen = not raw.sessions or named.get('session') in raw.sessions
            asked = {k: v for k, v in query.items() if k not in ('suffix', 'echo', 'part')}
            if (named['suffix'] != 'fieldmap' or named.get('desc') not in KINDS or not chosen
                    or not matches(asked, named)):  # fmt: skip
                continue
            run = _run(root, path, known)
            other = best.setdefault(run.name, run)
            if KINDS.index(run.given or KINDS[-1]) < KINDS.index(other.given or KINDS[-1]):
                best[run.name] = run
    return list(best.values())


def _run(root: Path, path: Path, known: Mapping[str, GreRun]) -> GreRun:
    named = parse(path.name)
    entities, kind = entities_of(named), named['desc']
    bare = GreRun('gre', Case(entities, {'field': path}), taken_from=FIELDS, given=kind)
    try:
        return _whole(root, path, bare, known.get(bare.name))
    except Exception as error:
        return replace(bare, problem=problem_of(error, path.name))


def _whole(root: Path, path: Path, bare: GreRun, raw: GreRun | None) -> GreRun:
    image = read_scan(root, path)
    if image.trouble is not None:
        raise image.trouble
    units_of(path.name, image.metadata)
    said = raw.facts if raw is not None else None
    if said is not None and not {'ImagingFrequency', 'MagneticFieldStrength'} & {*image.metadata}:
        mhz, origin = said.imaging_mhz, said.frequency_from
    else:
        mhz, origin = frequency([image])
    direction = direction_said([image]) or (said.said if said is not None else {})
    files = {'field': path}
    mask = root / build(
        {**bare.case.entities, 'desc': 'brain', 'suffix': 'mask', 'extension': '.nii.gz'}
    )
    notes = [f'field: {path.name} of -d {FIELDS}, {bare.given}: its phase is not looked at']
    if mask.is_file():
        check_grid(mask, path, 'Make it on the grid of the field.')
        files['mask'] = mask
    elif raw is not None and 'mask' in raw.case.files:
        files['mask'] = raw.case.files['mask']
    elif raw is not None:
        files |= {k: path for k, path in raw.case.files.items() if k.startswith(MAGNITUDE)}
    return replace(
        bare, case=Case(bare.case.entities, files), metadata=dict(image.metadata),
        notes=tuple(notes), facts=Facts((), mhz, origin, direction), doubts=image.doubts,
    )  # fmt: skip


def units_of(name: str, metadata: Mapping[str, object]) -> str:
    """The unit of a field. Raises MissingInput where it is not said, BadData for another."""
    unit = metadata.get('Units')
    if unit is None:
        raise MissingInput(
            f'{name} has no Units in its metadata; expected one of {", ".join(UNITS)}. Add it to '
            'the JSON file.'
        )
    if unit not in UNITS:
        raise BadData(
            f'{name}: Units in the metadata is {unit!r}; expected one of {", ".join(UNITS)}. '
            'Convert the field, or correct the JSON file.'
        )
    return str(unit)


def hertz_of(unit: str) -> float:
    """What a field in ``unit``, one of `UNITS`, is multiplied by to be in Hz."""
    from math import pi

    from bidsapp.modalities.gre.physics.acquisition import MHZ_PER_TESLA

    return {'Hz': 1.0, 'rad/s': 1 / (2 * pi), 'T': 1e6 * MHZ_PER_TESLA}[unit]


def masked(run: GreRun) -> GreRun:
    """``run``; a field without a mask or a magnitude is a problem: where is the brain?"""
    if run.taken_from != FIELDS or run.problem is not None:
        return run
    files = {k: path for k, path in run.case.files.items() if not k.startswith(MAGNITUDE)}
    if 'mask' in files:
        return replace(run, case=replace(run.case, files=files))
    if len(files) < len(run.case.files):
        note = 'brain mask: by the magnitude of the raw run'
        return replace(run, notes=(*run.notes, note))
    wanted = build({**run.case.entities, 'desc': 'brain', 'suffix': 'mask', 'extension': '.nii.gz'})
    problem = MissingInput(
        f'{run.path.name} has no brain mask, and no raw magnitude to find one by: looked for '
        f'{wanted} in -d {FIELDS} and -d masks. Put one there.'
    )
    return replace(run, problem=problem)
