"""What stands on disk of one prepared run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from bidsapp import registry
from bidsapp.bids.identity import roots_of
from bidsapp.bids.names import DERIVED, build, parse, source_entities, stem
from bidsapp.bids.prepared import mains_of, prepared_files, recording_of, telling_apart
from bidsapp.bids.scans import sidecar_of
from bidsapp.core import Case

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from bidsapp.core import Output

#: The source of what a network predicted.
PREDICTED = 'unet'


@dataclass(frozen=True, slots=True)
class WrittenRun:
    """The files of one run of a modality below ``root``, known by its prepared file ``main``."""

    root: Path
    modality: str
    main: Path

    @property
    def entities(self) -> dict[str, str]:
        """BIDS entities of the recording, and the folder of its outputs."""
        prepared = registry.files(self.modality).prepared
        found = recording_of(prepared, parse(self.main.name))
        return found or {**source_entities(parse(self.main.name)), 'datatype': prepared.datatype}

    @property
    def name(self) -> str:
        """What it is called: what the names of its files begin with, and a suffix of its own."""
        own = self.entities
        return '_'.join([stem(own), *([own['suffix']] if 'suffix' in own else [])])

    @property
    def case(self) -> Case:
        """The prepared run as the other rooms take it; its files may be missing."""
        prepared = registry.files(self.modality).prepared
        found = prepared_files(prepared, self.entities)
        return Case(self.entities, {kind: self.root / path for kind, path in found.items()})

    def files(self) -> list[Path]:
        """Every file of the run, by name; those still being written have hidden names."""
        session = self.main.parent.parent
        found = [
            path for folder in folders_of(self.modality)
            for path in (session / folder).glob(f'{stem(self.entities)}_*')
            if self._owns(parse(path.name))
        ]  # fmt: skip
        return sorted(found)

    def _owns(self, named: Mapping[str, str]) -> bool:
        """Whether a file with the entities ``named`` is one of the run's."""
        prepared = registry.files(self.modality).prepared
        main, own = prepared.main_of(self.entities), self.entities
        apart = telling_apart(prepared, outputs_of(self.modality))
        there = {k: v for k, v in source_entities(named).items() if k not in apart}
        return (
            there == source_entities({k: v for k, v in own.items() if k != 'datatype'})
            and named['suffix'] == own.get('suffix', named['suffix'])
            and all(key in named for key in main if key not in (*DERIVED, 'datatype'))
        )

    def images(self, told_by: str = '', **entities: str) -> dict[str, Path]:
        """Images whose names hold exactly ``entities`` beside their source; source → path.

        ``told_by`` is the entity that says the source: 'model' of parameter maps, else 'desc'.
        """
        key = told_by or ('model' if 'param' in entities else 'desc')
        own = {k: v for k, v in source_entities(self.entities).items() if k != 'datatype'}
        wanted = {**own, **entities, 'extension': '.nii.gz'}
        found = {}
        for path in self.files():
            named = parse(path.name)
            source = named.pop(key, None)
            if source is not None and named == wanted:
                found[source] = path
        order = ('truth', 'reference', *registry.page(self.modality).sources, PREDICTED)
        place = {source: i for i, source in enumerate(order)}
        return dict(sorted(found.items(), key=lambda x: (place.get(x[0], len(order)), x[0])))

    def suffix_of(self, param: str) -> str:
        """The suffix of a parameter's maps, as its first file has it; none without a file."""
        named = (parse(path.name) for path in self.files())
        return next((n['suffix'] for n in named if n.get('param') == param), '')

    def figure(self, **entities: str) -> Path:
        """Where a figure of the run stands."""
        name = build({**self.entities, **entities, 'extension': '.png'}).name
        return self.root / f'sub-{self.entities["subject"]}' / 'figures' / name


@cache
def folders_of(modality: str) -> tuple[str, ...]:
    """Folders that a modality writes to: 'dwi', or 'anat' and 'fmap'."""
    prepared = registry.files(modality).prepared
    named = [*prepared.names.values(), *(output.entities for output in outputs_of(modality))]
    found = (str(entities.get('datatype', prepared.datatype)) for entities in named)
    return tuple(dict.fromkeys([prepared.datatype, *found]))


@cache
def outputs_of(modality: str) -> tuple[Output, ...]:
    """Every output that a modality promises anywhere: what prepares, and its tasks."""
    found = [output for output, _ in registry.files(modality).prepared.outputs]
    for task in registry.tasks_of(modality):
        found += task.writes
        found += [output for output, _ in task.label.beside] if task.label else []
    return tuple(found)


def find_written(root: Path, subject: str) -> list[WrittenRun]:
    """Every prepared run of a participant, all sessions and modalities, by name."""
    return [
        WrittenRun(root, modality, path)
        for modality in registry.modalities()
        for path in sorted(mains_of(registry.files(modality).prepared, root / f'sub-{subject}'))
    ]


def raw_image(run: WrittenRun) -> Path | None:
    """The raw image that a run was made from, if it is still where the dataset's links say.

    None for one that was joined from several.
    """
    own = sidecar(run.main).get('Sources')
    named = [str(uri) for uri in own] if isinstance(own, list) else []
    scans = [uri for uri in named if '_mask.' not in uri]  # a brain mask of the user's own
    if len(scans) != 1:
        return None
    scheme, _, rest = scans[0].partition(':')
    name, _, below = rest.partition(':')
    root = roots_of(run.root, {}).get(name) if name else None
    if scheme != 'bids' or root is None or not below:
        return None
    path = root / below
    return path if path.is_file() else None


def number_of(value: Any) -> float | None:
    """A value of a JSON file if it is a number."""
    known = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if known else None


def sidecar(path: Path) -> Mapping[str, Any]:
    """The JSON beside an image; what is wrong with it stands under ``Warnings``."""
    beside = sidecar_of(path)
    return _object(beside) if beside.is_file() else {}


def _object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except ValueError as error:
        return {'Warnings': [f'{path.name} is not valid JSON: {error}']}
    return content if isinstance(content, dict) else {'Warnings': [f'{path.name} holds no object']}
