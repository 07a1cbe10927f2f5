"""Regions of the user's own: ``-d dseg=PATH``, labels on the grid of a run; and ``--reference``."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from bidsapp.bids.classes import classes_of
from bidsapp.bids.dataset import images_of
from bidsapp.bids.images import check_grid, load_volume
from bidsapp.bids.names import parse
from bidsapp.modalities.gre.bids.runs import entities_of
from bidsapp.problems import BadData, MissingInput, problem_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np

    from bidsapp.core import Case
    from bidsapp.modalities.gre.bids.runs import GreRun
    from bidsapp.modalities.gre.physics.regions import Region

DSEG, CHIMAP = 'dseg', 'chimap'
HELPS = {DSEG: 'labels of regions', CHIMAP: 'susceptibility maps to learn from'}
#: `--reference` where no region is named.
WHOLE_BRAIN = 'whole-brain'
#: Entities of the table of regions and of what explains it.
TABLES = tuple(
    {'desc': 'susceptibility', 'suffix': 'stats', 'extension': extension}
    for extension in ('.json', '.tsv')
)


def columns(source: str, last: str, told: str) -> dict[str, dict[str, str]]:
    """What the columns are of a table of regions of ``desc-<source>``; ``last`` is the sixth."""
    return {
        'index': {'Description': 'Index of the label'},
        'name': {
            'Description': 'Name of the label in the table of the segmentation; n/a without one'
        },
        'voxels': {'Description': 'Voxels of the label in which susceptibility is known'},
        'mean': {'Description': f'Mean susceptibility of desc-{source}', 'Units': 'ppm'},
        'standard_deviation': {'Description': 'Standard deviation over its voxels', 'Units': 'ppm'},
        last: {'Description': told, 'Units': 'ppm'},
    }


def row_of(region: Region, names: Mapping[int, str]) -> tuple[int | str, ...]:
    """What a table says of a region, in the order of `columns`."""
    values = region.mean, region.spread, region.deviation
    name = names.get(region.index, 'n/a')
    return region.index, name, region.voxels, *(f'{value:.5f}' for value in values)


def tables(case: Case) -> tuple[Mapping[str, str], ...]:
    """Of a raw run: the table of its regions, where somebody has drawn some."""
    return TABLES if DSEG in case.files else ()


def with_regions(run: GreRun, root: Path | None, reference: str) -> GreRun:
    """``run`` with its labels below ``root``, and the one that ``reference`` names.

    Labels that do not lie as the run does, and a reference that is not among them, are the run's
    problem: they were meant.
    """
    if run.problem is not None or run.unserved is not None:
        return run
    try:
        return _with_regions(run, root, reference)
    except Exception as error:
        return replace(run, problem=problem_of(error, run.name))


def _with_regions(run: GreRun, root: Path | None, reference: str) -> GreRun:
    found = [] if root is None else _labels(run, root)
    named = reference != WHOLE_BRAIN
    if not found:
        if named:
            raise MissingInput(
                f'{run.name} has no labels for --reference {reference}: looked for '
                f'anat/{run.name}_[seg-*]_[desc-*]_dseg.nii.gz below the folder of -d {DSEG}. Give '
                'one, or leave --reference out.'
            )
        lacks = [f'-d {DSEG} holds no labels of it: there is no table of regions'] if root else []
        return replace(run, notes=(*run.notes, *lacks))
    path, *others = found
    index = _index(path, reference) if named else 0
    check_grid(path, run.path, 'Bring the labels onto the grid of the scan.')
    more = f', the first of {len(found)}' if others else ''
    case, note = run.case.with_files(dseg=path), f'regions: {path.name} of -d {DSEG}{more}'
    if named:
        case = replace(
            case, part={'reference': classes_of(path).get(index, reference), 'index': index}
        )
    return replace(run, case=case, notes=(*run.notes, note))


def _labels(run: GreRun, root: Path) -> list[Path]:
    """Label images of ``run``, those of the fewest entities first."""
    own = entities_of(run.case.entities)
    found = []
    for path in images_of(root / f'sub-{run.case.subject}', 'anat'):
        named = parse(path.name)
        if named['suffix'] == 'dseg' and entities_of(named) == own:
            found.append((len(named), path.name, path))
    return [path for *_, path in sorted(found)]


def _index(path: Path, reference: str) -> int:
    """Of the label that is called ``reference``, or has that index. Raises BadData."""
    known = classes_of(path)
    by_name = {name.casefold(): index for index, name in known.items()}
    if (index := by_name.get(reference.casefold())) is not None:
        return index
    if reference.isdecimal() and (not known or int(reference) in known):
        return int(reference)
    shown = ', '.join(f'{i} {name}' for i, name in list(known.items())[:8]) or 'no table of names'
    raise BadData(
        f'--reference {reference} is no label of {path.name}, which has {shown}. Give an index or '
        'a name of its table.'
    )


def reference_region(case: Case) -> tuple[str, np.ndarray | None]:
    """What is 0 on average, in words, and where that is (X, Y, Z); None: in all of the mask."""
    if not case.part.get('index'):
        return 'mean of the mask', None
    inside = load_volume(case.files[DSEG]) == case.part['index']
    return f'mean of {case.part["reference"]}', inside
