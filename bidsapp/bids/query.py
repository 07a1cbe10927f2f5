"""Asking BIDS: the dMRI runs of a raw dataset, and the preprocessed runs of a derivative one."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bidsapp.bids.annex import check_content
from bidsapp.bids.fieldmap_sources import MEASURED, PAIRED, FieldmapSource
from bidsapp.bids.fieldmaps import find_fieldmaps
from bidsapp.bids.names import ENTITIES, parse, source_entities, stem
from bidsapp.bids.scans import inherited, read_scan
from bidsapp.core import BadData, Case, InvalidDataset, MissingInput, NothingSelected, WrongUsage

if TYPE_CHECKING:
    from bids import BIDSLayout

    from bidsapp.bids.scans import Scan
    from bidsapp.core import Output, Problem

#: fMRIPrep's filter format: a query for each kind of file.
Filters = Mapping[str, Mapping[str, Any]]
#: Kinds of file that a filter can be about here; others are accepted and mean nothing.
FILTERED = ('dwi', 't1w', 'fmap')


@dataclass(frozen=True, slots=True)
class Run:
    """One dMRI run, or why it cannot be used."""

    case: Case
    metadata: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    problem: Problem | None = None
    fieldmaps: tuple[FieldmapSource, ...] = ()  #: the best first
    fieldmap_notes: tuple[str, ...] = ()  #: why others cannot be used
    preprocessed: str | None = None  #: the pipeline that has already corrected it, 'qsiprep'

    @property
    def name(self) -> str:
        """What its outputs begin with."""
        return stem(self.case.entities)


def check_dataset(root: Path) -> None:
    """Raises MissingInput or InvalidDataset if ``root`` as a whole is not a BIDS dataset."""
    if not root.is_dir():
        raise MissingInput(
            f'The BIDS folder {root} does not exist. Is it mounted in the container?'
        )
    path = root / 'dataset_description.json'
    check_content(root, [path])
    if not path.is_file():
        raise InvalidDataset(
            f'{root} has no dataset_description.json, which every BIDS dataset has at its root. '
            'Is this the root of the dataset?'
        )
    try:
        description = json.loads(path.read_text(encoding='utf-8'))
    except ValueError as error:
        raise InvalidDataset(f'{path} is not valid JSON: {error}') from error
    wanted = {'Name', 'BIDSVersion'}
    if not isinstance(description, dict) or (missing := wanted - description.keys()):
        lacking = ', '.join(sorted(missing if isinstance(description, dict) else wanted))
        raise InvalidDataset(f'{path} lacks {lacking}, which BIDS requires.')


def subjects_of(root: Path) -> list[str]:
    """Labels of the sub- folders. Raises InvalidDataset if there is none."""
    found = sorted(p.name[4:] for p in root.glob('sub-*') if p.is_dir())
    if not found:
        raise InvalidDataset(
            f'{root} holds no sub-<label> folder; a BIDS dataset has one for each participant.'
        )
    return found


def read_filters(path: Path | None) -> Filters:
    """A filter file. Raises MissingInput or WrongUsage."""
    if path is None:
        return {}
    if not path.is_file():
        raise MissingInput(f'The filter file {path} does not exist.')
    try:
        filters = json.loads(path.read_text(encoding='utf-8'))
    except ValueError as error:
        raise WrongUsage(f'The filter file {path} is not valid JSON: {error}') from error
    if not isinstance(filters, dict) or not all(isinstance(q, dict) for q in filters.values()):
        raise WrongUsage(
            f'The filter file {path} must hold an object of queries, such as '
            '{"dwi": {"session": "01"}, "t1w": {"acquisition": null}}.'
        )
    return filters


def _query(spec: Mapping[str, Any]) -> dict[str, Any]:
    """fMRIPrep's spelling of a query → pybids': null and '*' stand for absent and any."""
    from bids.layout import Query

    special = {
        None: Query.NONE,
        '*': Query.ANY,
        'Query.NONE': Query.NONE,
        'Query.ANY': Query.ANY,
        'Query.OPTIONAL': Query.OPTIONAL,
    }
    return {
        key: special.get(value, value) if isinstance(value, str | None) else value
        for key, value in spec.items()
    }


def open_layout(root: Path, subjects: Sequence[str] | None, database: Path | None) -> BIDSLayout:
    """An index of ``root``; only the folders of ``subjects``, never of derivatives."""
    from bids import BIDSLayout, BIDSLayoutIndexer

    ignore: list[Any] = [re.compile(r'/(derivatives|sourcedata|code|models|figures|logs)(/|$)')]
    ignore.append(re.compile(r'/\.'))
    if subjects is not None:
        names = '|'.join(re.escape(s) for s in subjects)
        ignore.append(re.compile(rf'/sub-(?!({names})(/|_|$))'))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # pybids and its database layer warn about themselves
        return BIDSLayout(
            root,
            validate=False,
            config=['bids', 'derivatives', str(ENTITIES)],
            indexer=BIDSLayoutIndexer(validate=False, index_metadata=False, ignore=ignore),
            database_path=database,
        )


@dataclass(frozen=True, slots=True)
class Selection:
    """What labels and filters select of an indexed dataset."""

    root: Path
    layout: BIDSLayout
    subjects: tuple[str, ...]
    sessions: tuple[str, ...] = ()
    filters: Filters = field(default_factory=dict)

    def files(self, kind: str, **query: Any) -> list[Path]:
        """Images that answer ``query`` and the filter for ``kind``; '' is filtered by nothing."""
        if self.sessions:
            query['session'] = list(self.sessions)
        query |= _query(self.filters.get(kind, {}))
        extensions = ['.nii', '.nii.gz']
        found = self.layout.get(subject=list(self.subjects), extension=extensions, **query)
        paths = sorted(Path(file.path) for file in found)
        return [p for p in paths if parse(p.name).get('part', 'mag') == 'mag']

    def anatomies(self) -> list[Path]:
        """T1w images."""
        return self.files('t1w', suffix='T1w', datatype='anat')

    def runs(self) -> list[Run]:
        """dMRI runs, each with its gradients, metadata, T1w image and field maps."""
        scans = self.files('dwi', suffix='dwi', datatype='dwi')
        if not scans:
            return []
        anatomies = self.anatomies()
        maps = self.files('fmap', suffix=[*PAIRED, *MEASURED], datatype='fmap')
        maps += self.files('', suffix=list(PAIRED), datatype='dwi')
        others: dict[str, list[Scan]] = {}
        for path in maps:
            others.setdefault(parse(path.name)['subject'], []).append(read_scan(self.root, path))
        return [
            _run(self.root, p, anatomies, others.get(parse(p.name)['subject'], [])) for p in scans
        ]


def select(
    root: Path,
    subjects: Sequence[str],
    sessions: Sequence[str] = (),
    filters: Filters | None = None,
    database: Path | None = None,
) -> Selection:
    """Index the participants of ``root``."""
    layout = open_layout(root, subjects, database)
    return Selection(root, layout, tuple(subjects), tuple(sessions), filters or {})


def nothing_selected(root: Path, subjects: Sequence[str]) -> NothingSelected:
    """The problem that no dMRI run is left."""
    return NothingSelected(
        f'The labels and filters select no dMRI run of {root} (looked for '
        f'sub-*/[ses-*/]dwi/*_dwi.nii.gz of {len(subjects)} participants). '
        'Take a filter away, or see with --dry-run what is there.'
    )


def find_runs(
    root: Path,
    subjects: Sequence[str],
    sessions: Sequence[str] = (),
    filters: Filters | None = None,
    database: Path | None = None,
) -> list[Run]:
    """Every dMRI run of ``subjects`` in a raw dataset.

    A run whose files are incomplete is returned with its ``problem``. Raises NothingSelected.
    """
    runs = select(root, subjects, sessions, filters, database).runs()
    if not runs:
        raise nothing_selected(root, subjects)
    return runs


def _run(root: Path, scan: Path, anatomies: Sequence[Path], others: Sequence[Scan]) -> Run:
    entities = source_entities(parse(scan.name))
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
    fieldmaps, reasons = find_fieldmaps(own, others)
    return Run(Case(entities, files), own.metadata, tuple(notes), problem, fieldmaps, reasons)


def choose_t1w(
    entities: Mapping[str, str], anatomies: Sequence[Path]
) -> tuple[Path | None, list[str]]:
    """The T1w image of the same session, else the participant's only one; and what to say of it."""
    own = [p for p in anatomies if parse(p.name)['subject'] == entities['subject']]
    same = [p for p in own if parse(p.name).get('session') == entities.get('session')]
    if same:
        chosen = min(same, key=lambda p: (len(parse(p.name)), p.name))
        others = f'; the session has {len(same)} of them' if len(same) > 1 else ''
        return chosen, [f'T1w: {chosen.name}, of the same session{others}']
    if len(own) == 1:
        return own[0], [f'T1w: {own[0].name}, the only one of the participant, of another session']
    if own:
        return None, [f'T1w: none of this session, and {len(own)} of others, so none is used']
    return None, []


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
    from bidsapp.bids.write import output_path

    for source in output.references:
        path = root / output_path(case.entities, output, source, '.nii.gz')
        if path.is_file():
            return source, path
    return None
