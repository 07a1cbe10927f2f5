"""The raw scans behind a prepared run, and those of the same person."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlparse

from bidsapp import registry
from bidsapp.bids.derivatives import known_links
from bidsapp.bids.names import parse
from bidsapp.bids.scans import sidecar_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from bidsapp.bids.runs import Prepared
    from bidsapp.core import Case

    #: A prepared run and, where it is there, the raw scan behind it with the root of its dataset.
    Scan = tuple[Case, tuple[Path, Path] | None]


def scans_of_person(scan: Path, root: Path) -> list[Path]:
    """``scan``, a file of the dataset ``root``, and its person's others of the same suffix."""
    folders = [root / p for p in reversed(scan.relative_to(root).parents)]
    person = next((p for p in folders if p.name.startswith('sub-')), scan.parent)
    named = parse(scan.name)
    extension = '.nii*' if named['extension'].startswith('.nii') else named['extension']
    others = sorted(person.rglob(f'*_{named["suffix"]}{extension}'))
    return [scan, *(path for path in others if path != scan)]


def raw_scan(case: Case, prepared: Prepared, roots: Mapping[str, Path]) -> tuple[Path, Path] | None:
    """(scan, root of its dataset) that a prepared run was made from, by its sidecar.

    ``roots``: dataset → where it is, by the name in BIDS URIs. None where it is not there.
    """
    main = case.files[prepared.main]
    try:
        said = json.loads(sidecar_of(main).read_text(encoding='utf-8'))
        _, name, below = said['Sources'][0].split(':', 2)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
    if name not in roots or not (roots[name] / below).is_file():
        return None
    return roots[name] / below, roots[name]


def roots_of(root: Path, given: Mapping[str, Path]) -> dict[str, Path]:
    """Datasets that the derivatives in ``root`` were made from: those ``given``, else as linked."""
    linked = {}
    for name, url in known_links(root).items():
        said = urlparse(url)
        if said.scheme in ('', 'file'):
            linked[name] = (root / unquote(said.path)).resolve()
    return {**linked, **given}


def raw_scans(
    modality: str, groups: Mapping[str, Sequence[Case]], root: Path, given: Mapping[str, Path]
) -> dict[str, list[Scan]]:
    """Of each prepared run below ``root``, by split, its raw scan where that is there."""
    prepared, roots = registry.files(modality).prepared, roots_of(root, given)
    return {s: [(c, raw_scan(c, prepared, roots)) for c in own] for s, own in groups.items()}
