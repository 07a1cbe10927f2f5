"""Models on disk, known by their cards, and what a card says; nothing here loads torch."""

from __future__ import annotations

import csv
import hashlib
import json
import platform
import re
from pathlib import Path
from typing import TYPE_CHECKING

from bidsapp import __version__, registry
from bidsapp.problems import BadData, MissingInput

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from bidsapp.core import Head, Plan

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
        card: Mapping[str, Any] = json.loads(path.read_text(encoding='utf-8-sig'))
        missing = {'name', 'version', 'heads', 'network', 'sha256'} - card.keys()
    except (ValueError, AttributeError, RecursionError) as error:
        raise BadData(f'{path} is not a model card: {error}') from error
    if missing:
        raise BadData(f'{path} is not a model card: it lacks {", ".join(sorted(missing))}')
    if wrong := [name for name, right in FIELDS.items() if name in card and not right(card[name])]:
        said = ', '.join(f'{name} ({str(card[name])[:40]})' for name in wrong)
        raise BadData(
            f'{path} is not a model card: not what is expected of {said}. Copy the model again.'
        )
    return card


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _each(right: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(right(item) for item in value)


def _heads(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(n, int) and n > 0 for n in value.values())


def _network(value: Any) -> bool:
    kinds = {'name': str, 'channels_in': int, 'options': dict}
    return isinstance(value, dict) and all(
        isinstance(value[key], kind) for key, kind in kinds.items() if key in value
    )


def _turn(value: Any) -> bool:
    sides = isinstance(value, list) and [len(row) for row in value if _each(_number)(row)]
    return sides == [3, 3, 3]


def _range(value: Any) -> bool:
    return _each(_number)(value) and len(value) == 2


def _ranges(value: Any) -> bool:
    return isinstance(value, dict) and all(
        _range(own) or (_each(_range)(own) and own) for own in value.values()
    )


def _model(value: Any) -> bool:
    return isinstance(value, dict) and {'name', 'version', 'sha256'} <= value.keys()


#: What fields of a card must be, where they are there.
FIELDS: Mapping[str, Callable[[Any], bool]] = {
    **dict.fromkeys(('name', 'version', 'sha256', 'modality', 'objective', 'task'), _text),
    'heads': _heads,
    'network': _network,
    'averaged_turns': _each(_turn),
    'tested_ranges': _ranges,
    'training': lambda value: isinstance(value, dict),
    'scans': lambda value: isinstance(value, dict) and all(map(_each(_text), value.values())),
    'seen_scans': _each(_text),
    'ancestry': _each(_model),
    'started_from': lambda value: value is None or _model(value),
}


def versions(models: Path, task: str) -> list[Path]:
    """Folders of the models of one task under ``models``, oldest first (v1, v2, …, v10)."""
    return [folder for folder in _numbered(models / task) if (folder / CARD).is_file()]


def next_version(models: Path, task: str) -> Path:
    """The folder for the next model of a task; one that holds no model is not taken either."""
    found = _numbered(models / task)
    return models / task / f'v{int(found[-1].name[1:]) + 1 if found else 1}'


def _numbered(folder: Path) -> list[Path]:
    found = [path for path in folder.glob('v*') if re.fullmatch(r'v\d+', path.name)]
    return sorted(found, key=lambda path: int(path.name[1:]))


def newest_model(models: Path, task: str) -> Path | None:
    """The newest fine-tuned model of a task."""
    found = versions(models, task)
    return found[-1] if found else None


def fitted_before(models: Path, name: str, key: str) -> Path | None:
    """The newest model of this name, if its card says that it is of the plan and data ``key``."""
    newest = newest_model(models, name)
    return newest if newest and load_card(newest).get('fitted') == key else None


def modality_of(card: Mapping[str, Any]) -> str:
    """The modality that a model is of: said by its card, or that of the tasks it has heads for."""
    known = registry.tasks()
    found = (known[head] for head in card['heads'] if head in known)
    return str(card.get('modality') or next(found, registry.FIRST))


def bundled_model(modality: str) -> Path | None:
    """Folder of the newest pretrained model in the package, one for all tasks of a modality."""
    return newest_model(BUNDLED, modality)


def bundled_models() -> dict[str, Path]:
    """Task → folder of the bundled model that has a head for it."""
    found = [folder for m in registry.modalities() if (folder := bundled_model(m)) is not None]
    return {task: folder for folder in found for task in load_card(folder)['heads']}


def pretrained(models: Path, modality: str) -> Path:
    """Where a user's own pretrained models of a modality stand, a folder an objective."""
    return models / 'pretrained' / modality


def autoencoder(models: Path, modality: str) -> Path | None:
    """The newest autoencoder of the user's own.

    Before there were several modalities it stood one folder higher.
    """
    earlier = models / 'pretrained' if modality == registry.FIRST else None
    return newest_model(pretrained(models, modality), 'autoencoder') or (
        newest_model(earlier, 'autoencoder') if earlier else None
    )


def training_participants(folder: Path) -> set[str]:
    """Labels of the participants that a model has learnt from or was chosen by."""
    path = folder / SPLIT
    if not path.is_file():
        return set()
    with path.open(encoding='utf-8-sig', newline='') as stream:
        rows = list(csv.DictReader(stream, delimiter='\t'))
    if not all(row.get('participant_id') and row.get('split') for row in rows):
        raise BadData(f'{path} needs the columns participant_id and split, by tabs.')
    return {row['participant_id'].removeprefix('sub-') for row in rows if row['split'] != 'test'}


def described(plan: Plan, freeze: str = 'none') -> dict[str, Any]:
    """A plan as cards have it: the side of a cubic patch is one number."""
    sides = set(plan.patch)
    return {
        'steps': plan.steps,
        'patch': plan.patch[0] if len(sides) == 1 and all(plan.patch) else list(plan.patch),
        'batch': plan.batch,
        'lr': plan.lr,
        'freeze': freeze,
        'seed': plan.seed,
        'device': plan.device,
        'validate_every': plan.validate_every,
        'average': plan.average,
    }


def make_card(
    kind: Mapping[str, str],
    name: str,
    description: str,
    network: Mapping[str, Any],
    head: Head,
    about: Mapping[str, Any],
    plan: Mapping[str, Any],
    best_step: int,
    further: Mapping[str, Any],
) -> dict[str, Any]:
    """Everything about a model but its weights; version and hash are added on saving.

    ``kind`` says what it was made for, {'task': …} or {'objective': …}; ``about`` is what the
    modality says of the input, with what training there was; ``further`` is how well it does.
    """
    import torch

    from bidsapp.learn.predict import averaged_turns

    return {
        'name': f'transfermri-{name}',
        **kind,
        'description': description,
        'intended_use': 'Research. Not for clinical use.',
        'network': dict(network),
        'heads': dict(head.heads),
        'averaged_turns': averaged_turns(head.turns),
        **about,
        'plan': dict(plan),
        'best_step': best_step,
        **further,
        'software': {
            'transfermri': __version__,
            'torch': torch.__version__,
            'python': platform.python_version(),
        },
        'license': further.get('license', "the user's own"),
    }


def start_folder(init: str, modality: str) -> Path | None:
    """Where the weights to start from are: 'auto' and 'bundled', 'scratch', or a folder."""
    if init in ('auto', 'bundled'):
        return bundled_model(modality)
    return None if init == 'scratch' else Path(init).absolute()
