"""What stands on disk of one preprocessed run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import numpy as np

from bidsapp.bids.names import build, parse, source_entities, stem
from bidsapp.core import Case
from bidsapp.problems import BadData

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Sources of a map, in the order in which they are shown; others follow by name.
ORDER = ('truth', 'reference', 'csd', 'tensor', 'noddi', 'smt', 'unet')
#: The source of what a network predicted.
PREDICTED = 'unet'


@dataclass(frozen=True, slots=True)
class WrittenRun:
    """The files of one run, found beside its preprocessed dMRI ``dwi`` below ``root``."""

    root: Path
    dwi: Path

    @property
    def entities(self) -> dict[str, str]:
        """BIDS entities of the recording."""
        return source_entities(parse(self.dwi.name))

    @property
    def name(self) -> str:
        """What the names of its files begin with."""
        return stem(self.entities)

    @property
    def case(self) -> Case:
        """The preprocessed run as the other rooms take it; its files may be missing."""
        base = self.dwi.name.removesuffix('.nii.gz')
        files = {kind: self.dwi.with_name(f'{base}.{kind}') for kind in ('bval', 'bvec')}
        mask = self.dwi.with_name(base.removesuffix('preproc_dwi') + 'brain_mask.nii.gz')
        return Case(self.entities, {'dwi': self.dwi, 'mask': mask, **files})

    def files(self) -> list[Path]:
        """Every file of the run, by name; those still being written have hidden names."""
        own = self.entities
        return [
            path for path in sorted(self.dwi.parent.glob(f'{self.name}_*'))
            if source_entities(parse(path.name)) == own
        ]  # fmt: skip

    def images(self, **entities: str) -> dict[str, Path]:
        """Images whose names hold exactly ``entities`` beside their source; source → path."""
        key = 'model' if 'param' in entities else 'desc'
        wanted = {**self.entities, **entities, 'extension': '.nii.gz'}
        found = {}
        for path in self.files():
            named = parse(path.name)
            source = named.pop(key, None)
            if source is not None and named == wanted:
                found[source] = path
        place = {source: i for i, source in enumerate(ORDER)}
        return dict(sorted(found.items(), key=lambda x: (place.get(x[0], len(ORDER)), x[0])))

    def figure(self, **entities: str) -> Path:
        """Where a figure of the run stands."""
        name = build({**self.entities, **entities, 'extension': '.png'}).name
        return self.root / f'sub-{self.entities["subject"]}' / 'figures' / name


def find_written(root: Path, subject: str) -> list[WrittenRun]:
    """Every preprocessed run of a participant, all sessions, by name."""
    folder = root / f'sub-{subject}'
    pattern = '*_desc-preproc_dwi.nii.gz'
    found = [*folder.glob(f'dwi/{pattern}'), *folder.glob(f'ses-*/dwi/{pattern}')]
    visible = (path for path in found if not path.name.startswith('.'))
    return [WrittenRun(root, path) for path in sorted(visible)]


def raw_image(run: WrittenRun) -> Path | None:
    """The raw image that a run was made from, if it is still where the dataset's links say."""
    own = sidecar(run.dwi).get('Sources')
    description = run.root / 'dataset_description.json'
    links = _object(description).get('DatasetLinks') if description.is_file() else None
    if not isinstance(own, list) or len(own) != 1 or not isinstance(links, dict):
        return None
    scheme, _, named = str(own[0]).partition(':')
    name, _, below = named.partition(':')
    url = urlsplit(str(links.get(name, '')))
    if scheme != 'bids' or url.scheme != 'file' or not below:
        return None
    path = Path(unquote(url.path)) / below
    return path if path.is_file() else None


def read_confounds(run: WrittenRun) -> dict[str, np.ndarray]:
    """Columns (N,) of a run's table of confounds, 'n/a' as NaN; empty if there is none.

    Raises BadData for a table that is none.
    """
    path = run.dwi.with_name(f'{run.name}_desc-confounds_timeseries.tsv')
    if not path.is_file():
        return {}
    header, *rows = [x.split('\t') for x in path.read_text(encoding='utf-8').splitlines()] or [[]]
    try:
        values = [[float('nan' if x == 'n/a' else x) for x in row] for row in rows]
        return dict(zip(header, np.array(values).reshape(-1, len(header)).T, strict=True))
    except ValueError as error:
        raise BadData(f'{path.name} is no table of numbers: {error}') from error


def number_of(value: Any) -> float | None:
    """A value of a JSON file if it is a number."""
    known = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if known else None


def sidecar(path: Path) -> Mapping[str, Any]:
    """The JSON beside an image; what is wrong with it stands under ``Warnings``."""
    beside = path.with_name(path.name.removesuffix('.nii.gz') + '.json')
    return _object(beside) if beside.is_file() else {}


def _object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except ValueError as error:
        return {'Warnings': [f'{path.name} is not valid JSON: {error}']}
    return content if isinstance(content, dict) else {'Warnings': [f'{path.name} holds no object']}
