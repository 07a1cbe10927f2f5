"""A raw dataset: whether it is one, and which of its images labels and filters select."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from bidsapp.bids.annex import check_content
from bidsapp.bids.filters import matches
from bidsapp.bids.folders import Listing, listing
from bidsapp.bids.names import LABEL, parse
from bidsapp.bids.text import text_of
from bidsapp.problems import BadData, InvalidDataset, MissingInput

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from bidsapp.bids.filters import Filters

#: What an image's name ends in.
IMAGES = ('.nii', '.nii.gz')
#: Folder of what was there before the images: raw data.
SOURCE = 'sourcedata'


def check_dataset(root: Path) -> None:
    """Raises MissingInput or InvalidDataset if ``root`` as a whole is not a raw BIDS dataset."""
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
        description = json.loads(text_of(path))
    except (ValueError, RecursionError, BadData) as error:
        raise InvalidDataset(f'{path} is not valid JSON: {error}') from error
    wanted = {'Name', 'BIDSVersion'}
    if not isinstance(description, dict) or (missing := wanted - description.keys()):
        lacking = ', '.join(sorted(missing if isinstance(description, dict) else wanted))
        raise InvalidDataset(f'{path} lacks {lacking}, which BIDS requires.')
    refuse_derivative(root, description)


def refuse_derivative(root: Path, description: Mapping[str, Any]) -> None:
    """Raises InvalidDataset for the results of a pipeline: they are not what was measured."""
    derived = str(description.get('DatasetType', 'raw')).lower() == 'derivative'
    if derived or 'PipelineDescription' in description:
        raise InvalidDataset(
            f'{root} is a derivative dataset: its dataset_description.json says '
            f'{"DatasetType derivative" if derived else "PipelineDescription"}. Expected the raw '
            'dataset as BIDS_DIR; results of another pipeline are given by -d NAME=PATH beside it.'
        )


def participants_of(root: Path) -> list[str]:
    """Labels of the sub- folders, whether BIDS or not, and of links that lead to none."""
    here = listing(root)
    lost = [name for name in here.files if name.startswith('sub-') and (root / name).is_symlink()]
    return sorted(n[4:] for n in (*here.folders, *lost) if n.startswith('sub-'))


def subjects_of(root: Path) -> list[str]:
    """Labels of the sub- folders, also of source data. Raises InvalidDataset if there is none."""
    source = root / SOURCE
    found = participants_of(root) + (participants_of(source) if source.is_dir() else [])
    if not found:
        raise InvalidDataset(
            f'{root} holds no sub-<label> folder, and {SOURCE} none; a BIDS dataset has one for '
            'each participant.'
        )
    return sorted(set(found))


def readable(folder: Path) -> Listing:
    """What ``folder`` holds; nothing if it cannot be read, which `Selection.unreadable` says."""
    try:
        return listing(folder)
    except OSError:
        return Listing((), ())


def places(folder: Path) -> list[tuple[str | None, Path]]:
    """(session, folder) of a participant's folder itself and of those of its sessions."""
    sessions = [name for name in readable(folder).folders if name.startswith('ses-')]
    return [(None, folder), *((name[4:], folder / name) for name in sessions)]


def sessions_of(root: Path, subject: str) -> list[str]:
    """Sessions of a participant, by their folders."""
    return [s for s, _ in places(root / f'sub-{subject}') if s is not None]


def images_in(folder: Path) -> list[Path]:
    """Images of one folder by their names, sorted, whatever they are."""
    here = readable(folder)
    return [folder / name for name in sorted(here.files + here.folders) if name.endswith(IMAGES)]


def images_of(participant: Path, datatype: str) -> list[Path]:
    """Images of a participant's folder in the folders ``datatype`` of all sessions."""
    return [path for _, place in places(participant) for path in images_in(place / datatype)]


#: The part of a complex signal that an image is of where its name does not say it.
MAGNITUDE = 'mag'


@dataclass(frozen=True, slots=True)
class Selection:
    """What labels and filters select of a dataset.

    Names are parsed below the root only, and nothing is listed but folders of the participants.
    """

    root: Path
    subjects: tuple[str, ...]
    sessions: tuple[str, ...] = ()
    filters: Filters = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)  #: of modalities, by name

    def each(self) -> Iterator[Selection]:
        """The same of one participant after the other."""
        return (replace(self, subjects=(subject,)) for subject in self.subjects)

    def files(self, kind: str, **query: Any) -> list[Path]:
        """Images that the labels, ``query`` and the filter for ``kind`` select: the runs."""
        return self._answering(self._asked(kind, query), MAGNITUDE)

    def parts(self, kind: str, **query: Any) -> list[Path]:
        """The same of every part of a complex signal: phase, real and imaginary images too."""
        return self._answering(self._asked(kind, query))

    def beside(self, kind: str, **query: Any) -> list[Path]:
        """Images of all sessions that ``query`` and the filter select: what serves the runs.

        '' is a kind that nothing filters. Of an image that is there as .nii and as .nii.gz the
        second is taken.
        """
        found = self._answering([query, self._filter(kind)], MAGNITUDE)
        return list({path.with_name(path.name.partition('.')[0]): path for path in found}.values())

    def anatomies(self) -> list[Path]:
        """T1w images of the participants."""
        return self.beside('t1w', suffix='T1w', datatype='anat')

    def unreadable(self, *datatypes: str) -> list[tuple[Path, OSError]]:
        """Folders of the participants, of their sessions and ``datatypes`` that cannot be read."""
        found = []
        for subject in self.subjects:
            participant = self.root / f'sub-{subject}'
            if not participant.is_dir() and (self.root / SOURCE / participant.name).is_dir():
                continue  # there are source data alone
            for _, place in places(participant):
                own = [place / name for name in readable(place).folders if name in datatypes]
                for folder in (place, *own):
                    try:
                        listing(folder)
                    except OSError as error:
                        found.append((folder, error))
        return found

    def _filter(self, kind: str) -> Mapping[str, Any]:
        return self.filters.get(kind, {})

    def _asked(self, kind: str, query: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        sessions = [{'session': self.sessions}] if self.sessions else []
        return [query, *sessions, self._filter(kind)]

    def _answering(
        self, queries: Sequence[Mapping[str, Any]], part: str | None = None
    ) -> list[Path]:
        """Images that answer all ``queries``; of one ``part`` only, if it is named."""
        return [
            path
            for path, entities in self._images()
            if part in (None, entities.get('part', MAGNITUDE))
            and all(matches(query, entities) for query in queries)
        ]

    def _images(self) -> Iterator[tuple[Path, dict[str, str]]]:
        """Every image, and its entities; the folders that it lies in have the word."""
        for subject in self.subjects:
            for session, place in places(self.root / f'sub-{subject}'):
                if session is not None and not LABEL.fullmatch(session):
                    continue  # its files' names cannot say it
                known = {'subject': subject} | ({'session': session} if session else {})
                for datatype in readable(place).folders:
                    if not datatype.startswith('ses-'):
                        for path in images_in(place / datatype):
                            yield path, {**parse(path.name), **known, 'datatype': datatype}


def select(
    root: Path,
    subjects: Sequence[str],
    sessions: Sequence[str] = (),
    filters: Filters | None = None,
) -> Selection:
    """These participants of ``root``, and what labels and filters leave of them."""
    return Selection(root, tuple(subjects), tuple(sessions), filters or {})


def choose_t1w(
    entities: Mapping[str, str], anatomies: Sequence[Path]
) -> tuple[Path | None, list[str]]:
    """The T1w image of the same session, else the participant's only one; and what to say of it."""
    named = [(parse(path.name), path) for path in anatomies]
    own = [(e, path) for e, path in named if e.get('subject') == entities['subject']]
    same = [(e, path) for e, path in own if e.get('session') == entities.get('session')]
    if same:
        _, _, chosen = min((len(e), path.name, path) for e, path in same)
        others = f'; the session has {len(same)} of them' if len(same) > 1 else ''
        return chosen, [f'T1w: {chosen.name}, of the same session{others}']
    if len(own) == 1:
        name = own[0][1].name
        return own[0][1], [f'T1w: {name}, the only one of the participant, of another session']
    if own:
        return None, [f'T1w: none of this session, and {len(own)} of others, so none is used']
    return None, []
