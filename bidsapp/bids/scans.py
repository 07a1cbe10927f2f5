"""An image of a dataset and what BIDS says of it: inherited files, metadata, phase encoding."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from bidsapp.bids.annex import check_content
from bidsapp.bids.folders import listing
from bidsapp.bids.images import open_image
from bidsapp.bids.metadata import understood
from bidsapp.bids.names import parse, source_entities
from bidsapp.bids.text import text_of
from bidsapp.problems import BadData, problem_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from bidsapp.core import FloatArray
    from bidsapp.problems import Problem


def inherited(root: Path, scan: Path, extension: str) -> list[Path]:
    """Files of ``extension`` that apply to ``scan``, the most specific last (BIDS inheritance).

    One applies if it stands in the scan's folder or above, and all its entities are the scan's. A
    folder that is named so is among them, for who reads it to refuse.
    """
    own = parse(scan.name)
    folders = [scan.parent, *scan.parent.parents]
    folders = folders[: folders.index(root) + 1]
    found: list[Path] = []
    for folder in reversed(folders):
        seen = listing(folder)
        here = [
            (len(wanted), name)
            for name, wanted in _by_end(seen.files + seen.odd).get(own['suffix'] + extension, ())
            if all(own.get(k) == v for k, v in wanted.items())
        ]
        found += [folder / name for _, name in sorted(here)]
    return found


@lru_cache(maxsize=256)
def _by_end(names: tuple[str, ...]) -> dict[str, list[tuple[str, dict[str, str]]]]:
    """'dwi.json' → files of a folder that end so, each with the entities that it is for."""
    found: dict[str, list[tuple[str, dict[str, str]]]] = {}
    for name in names:
        entities = parse(name)
        end = entities['suffix'] + entities['extension']
        found.setdefault(end, []).append((name, source_entities(entities)))
    return found


def metadata_of(root: Path, scan: Path) -> dict[str, Any]:
    """All that sidecars say of ``scan``. Raises BadData for one that is not a JSON object."""
    metadata: dict[str, Any] = {}
    for sidecar in inherited(root, scan, '.json'):
        metadata |= read_object(sidecar)
    return metadata


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object. Raises BadData if the file holds anything else, MissingInput if nothing."""
    check_content(path.parent, [path])
    try:
        content = json.loads(text_of(path))
    except (ValueError, RecursionError) as error:
        raise BadData(f'{path} is not valid JSON: {error}') from error
    if not isinstance(content, dict):
        raise BadData(f'{path} holds no JSON object but {type(content).__name__}')
    return content


def said_beside(image: Path) -> dict[str, Any]:
    """What the JSON beside an image says, nothing inherited; nothing where there is none."""
    sidecar = sidecar_of(image)
    return read_object(sidecar) if sidecar.is_file() else {}


def sidecar_of(image: Path) -> Path:
    """The JSON beside an image, whether there or not."""
    return image.with_name(image.name.partition('.')[0] + '.json')


@dataclass(frozen=True, slots=True)
class BidsImage:
    """An image of a BIDS dataset with what its metadata say."""

    root: Path
    path: Path
    metadata: Mapping[str, Any]
    trouble: Problem | None = None  #: why the metadata cannot be read
    doubts: tuple[str, ...] = ()  #: entries of them that were left out, or read as others

    @property
    def entities(self) -> dict[str, str]:
        """Entities of its name."""
        return parse(self.path.name)

    def listed(self, key: str) -> set[str]:
        """A metadata entry that may be a text or a list of them."""
        value = self.metadata.get(key)
        several = value if isinstance(value, list) else [value]
        return {v for v in several if isinstance(v, str)}

    def grid(self) -> tuple[tuple[int, ...], FloatArray]:
        """(X, Y, Z) and affine. Raises BadData or MissingInput if there is no image."""
        check_content(self.root, [self.path])
        if not self.path.is_file() or not self.path.stat().st_size:
            raise BadData(f'{self.path.name} is empty or not there')
        image = open_image(self.path)
        if len(image.shape) < 3 or 0 in image.shape:
            raise BadData(f'{self.path.name} holds no volume, its shape is {image.shape}')
        return image.shape[:3], image.affine


def read_scan(root: Path, path: Path) -> BidsImage:
    """The image ``path`` and its metadata; what is wrong with them is its ``trouble``."""
    try:
        metadata, doubts = understood(metadata_of(root, path))
        return BidsImage(root, path, metadata, doubts=tuple(doubts))
    except Exception as error:
        return BidsImage(root, path, {}, problem_of(error, path.name))


def phase_encoding(metadata: Mapping[str, Any]) -> tuple[int | None, int]:
    """(array axis, sign) along which a scan is distorted.

    The sign is 0 if only PhaseEncodingAxis is said, the axis None if neither is.
    """
    said = metadata.get('PhaseEncodingDirection')
    if said in ('i', 'j', 'k', 'i-', 'j-', 'k-'):
        return 'ijk'.index(said[0]), -1 if said.endswith('-') else 1
    axis = metadata.get('PhaseEncodingAxis')
    return ('ijk'.index(axis), 0) if axis in ('i', 'j', 'k') else (None, 0)


def readout_time(metadata: Mapping[str, Any]) -> tuple[float | None, str]:
    """Total readout time in s, and what to say of it: where it is from, or why there is none."""
    spacing, lines = (number(metadata, key) for key in ('EffectiveEchoSpacing', 'ReconMatrixPE'))
    product = spacing * (lines - 1) if spacing is not None and lines is not None else None
    for seconds, note in (
        (number(metadata, 'TotalReadoutTime'), ''),
        (
            number(metadata, 'EstimatedTotalReadoutTime'),
            'TotalReadoutTime is estimated (EstimatedTotalReadoutTime)',
        ),
        (product, 'TotalReadoutTime is EffectiveEchoSpacing times (ReconMatrixPE - 1)'),
    ):
        if seconds is not None and 0 < seconds < 1:
            return seconds, note
    if 'TotalReadoutTime' in metadata:
        return None, f'TotalReadoutTime {metadata["TotalReadoutTime"]!r} is no time in seconds'
    return None, 'TotalReadoutTime is not in the metadata'


def number(metadata: Mapping[str, Any], key: str) -> float | None:
    """A metadata entry if it is a number."""
    value = metadata.get(key)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
