"""Asking BIDS: what labels and filters select of a raw dataset (pybids queries)."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bidsapp.bids.annex import check_content
from bidsapp.bids.names import ENTITIES, parse
from bidsapp.problems import InvalidDataset, MissingInput, NothingSelected, WrongUsage

if TYPE_CHECKING:
    from bids import BIDSLayout


#: fMRIPrep's filter format: a query for each kind of file.
Filters = Mapping[str, Mapping[str, Any]]


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
    options: Mapping[str, Any] = field(default_factory=dict)  #: of modalities, by name

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


def nothing_selected(raw: Selection, looked_for: Mapping[str, str]) -> NothingSelected:
    """The problem that no run is left; ``looked_for`` is where runs were, by what they are."""
    kinds = ' and no '.join(looked_for)
    places = ' and '.join(looked_for.values())
    return NothingSelected(
        f'The labels and filters select no {kinds} run of {raw.root} (looked for {places} of '
        f'{len(raw.subjects)} participants). Take a filter away, or see with --dry-run what is '
        'there.'
    )


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
