"""BIDS names: one pattern, in entities.json, for building names and for taking them apart."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Given to pybids as a configuration, and read here for naming.
ENTITIES = Path(__file__).with_name('entities.json')

#: Keys of a name that are not entities of the recording itself. A space is one: only what another
#: pipeline has preprocessed carries it, and all that is made from that is in the same.
DERIVED = ('segmentation', 'res', 'label', 'model', 'param', 'desc', 'suffix', 'extension')

#: A label as BIDS has it.
LABEL = re.compile(r'[0-9A-Za-z+]+')


@cache
def pattern() -> str:
    """The path pattern that all our files follow."""
    text: str = json.loads(ENTITIES.read_text())['default_path_patterns'][0]
    return text


@cache
def keys() -> dict[str, str]:
    """Short → long entity names ('ses' → 'session'), in the order of a file name."""
    return dict(re.findall(r'([a-z]+)-\{(\w+)\}', pattern()))


def parse(name: str) -> dict[str, str]:
    """Entities of a file name, by long names, with ``suffix`` and ``extension``.

    >>> parse('sub-01_ses-pre_seg-tissue_desc-unet_dseg.nii.gz')['segmentation']
    'tissue'
    """
    stem, dot, extension = name.rpartition('/')[2].partition('.')
    *pairs, suffix = stem.split('_')
    found = {keys().get(k, k): v for k, _, v in (pair.partition('-') for pair in pairs)}
    return {**found, 'suffix': suffix, 'extension': dot + extension}


def flaw(path: Path) -> str:
    """Why a raw image cannot be called after its path sub-X/[ses-Y/]datatype/name; '' if it can.

    >>> flaw(Path('sub-02/dwi/sub-02_b-1000_dwi.nii.gz'))
    "'b-1000' has no place in the names of outputs"
    """
    start = path.name.partition('.')[0]
    pairs = start.split('_')[:-1]
    entities = [keys().get(pair.partition('-')[0]) for pair in pairs]
    for pair, entity in zip(pairs, entities, strict=True):
        if not LABEL.fullmatch(pair.partition('-')[2]):
            return f'{pair!r} is no key with a label of letters and digits'
        if entity is None or entity in DERIVED:
            return f'{pair!r} has no place in the names of outputs'
    if len(set(entities)) < len(entities):
        return 'an entity stands there twice'
    for place in path.parts[:-2]:
        if place not in pairs:
            return f'it lies in the folder {place}, which its name does not say'
    return ''


def source_entities(entities: Mapping[str, str]) -> dict[str, str]:
    """Only those entities that name the recording."""
    return {k: v for k, v in entities.items() if k not in DERIVED}


def of_recording(entities: Mapping[str, str]) -> dict[str, str]:
    """Entities that files made of a recording have, and its suffix where they keep that."""
    kept = {'suffix': entities['suffix']} if 'suffix' in entities else {}
    return {**source_entities(entities), **kept}


def build(entities: Mapping[str, str]) -> Path:
    """Path below the dataset's root, in the folder ``datatype``.

    Raises ValueError for an entity that the pattern does not know, or without a datatype.

    >>> named = {'subject': '01', 'datatype': 'anat', 'suffix': 'mask', 'extension': '.json'}
    >>> build({**named, 'desc': 'brain'}).as_posix()
    'sub-01/anat/sub-01_desc-brain_mask.json'
    """
    values = {('segmentation' if k == 'seg' else k): v for k, v in entities.items()}
    if 'datatype' not in values:
        raise ValueError(f'a path needs a datatype; these entities have none: {dict(entities)}')
    known = set(re.findall(r'\{(\w+)\}', pattern()))
    if unknown := values.keys() - known:
        raise ValueError(f'entities without a place in a file name: {", ".join(sorted(unknown))}')

    def optional(match: re.Match[str]) -> str:
        name = re.search(r'\{(\w+)\}', match[1])
        return match[1] if name and name[1] in values else ''

    return Path(re.sub(r'\[([^]]*)\]', optional, pattern()).format(**values))


def stem(entities: Mapping[str, str]) -> str:
    """What all files of one recording begin with: 'sub-01_ses-pre_run-1'."""
    bare = {'datatype': 'x', **source_entities(entities), 'suffix': 'x', 'extension': ''}
    return build(bare).name.removesuffix('_x')
