"""Models on disk, known by their cards; nothing here loads torch."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from bidsapp.problems import BadData, MissingInput

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

WEIGHTS, CARD, SPLIT = 'weights.safetensors', 'card.json', 'split.tsv'
#: Models that come with the package.
BUNDLED = Path(__file__).parents[1] / 'models'


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open('rb') as stream:
        return hashlib.file_digest(stream, 'sha256').hexdigest()


def load_card(folder: Path) -> Mapping[str, Any]:
    """The card alone. Raises MissingInput or BadData."""
    path = folder / CARD
    if not path.is_file():
        raise MissingInput(
            f'No model in {folder}: it holds no {CARD}. A model is a folder with {WEIGHTS} and '
            f'{CARD}, as `group` writes under models/<task>/<version>/.'
        )
    try:
        card: Mapping[str, Any] = json.loads(path.read_text())
        missing = {'name', 'version', 'heads', 'network', 'sha256'} - card.keys()
    except (ValueError, AttributeError) as error:
        raise BadData(f'{path} is not a model card: {error}') from error
    if missing:
        raise BadData(f'{path} is not a model card: it lacks {", ".join(sorted(missing))}')
    return card


def versions(models: Path, task: str) -> list[Path]:
    """Folders of the models of one task under ``models``, oldest first (v1, v2, …, v10)."""
    found = [p for p in (models / task).glob('v*') if re.fullmatch(r'v\d+', p.name)]
    return sorted((p for p in found if (p / CARD).is_file()), key=lambda p: int(p.name[1:]))


def next_version(models: Path, task: str) -> Path:
    """The folder for the next model of a task."""
    found = versions(models, task)
    return models / task / f'v{int(found[-1].name[1:]) + 1 if found else 1}'


def newest_model(models: Path, task: str) -> Path | None:
    """The newest fine-tuned model of a task."""
    found = versions(models, task)
    return found[-1] if found else None


def bundled_models() -> dict[str, Path]:
    """Task → folder of the newest pretrained model in the package, one for all its heads."""
    newest = newest_model(BUNDLED, 'pretrained')
    return dict.fromkeys(load_card(newest)['heads'], newest) if newest is not None else {}


def pretrained(models: Path) -> Path:
    """Where a user's own pretrained models stand, a folder an objective."""
    return models / 'pretrained'


def autoencoder(models: Path) -> Path | None:
    """The newest autoencoder of the user's own, else that of the package."""
    return newest_model(pretrained(models), 'autoencoder') or newest_model(BUNDLED, 'autoencoder')


def training_participants(folder: Path) -> set[str]:
    """Labels of the participants that a model has learnt from or was chosen by."""
    path = folder / SPLIT
    if not path.is_file():
        return set()
    with path.open(encoding='utf-8', newline='') as stream:
        rows = csv.DictReader(stream, delimiter='\t')
        return {
            row['participant_id'].removeprefix('sub-') for row in rows if row['split'] != 'test'
        }
