"""A model on disk: ``weights.safetensors`` and ``card.json``, written whole or not at all."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes

from bidsapp.core import Checkpoint
from bidsapp.hidden import hidden, put
from bidsapp.learn.cards import CARD, WEIGHTS, load_card, next_version, sha256, start_folder
from bidsapp.problems import BadData, MissingInput
from bidsapp.stopping import held

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from typing import Any

    from torch import Tensor
    from torch.nn import Module

    from bidsapp.networks.base import Network


def checkpoint_of(network: Network, card: Mapping[str, Any]) -> Checkpoint:
    """A network's weights, on the CPU, with their card."""

    def part(module: Module) -> dict[str, Tensor]:
        return {key: value.cpu() for key, value in module.state_dict().items()}

    heads = {task: part(head) for task, head in network.heads.items()}
    return Checkpoint(card, part(network.body), heads)


def save_next(
    checkpoint: Checkpoint, models: Path, name: str, add: Callable[[Path], None] | None = None
) -> Path:
    """Write a checkpoint as the next version of the model ``name`` under ``models``; its folder.

    ``add`` puts more files beside it. All is written in a hidden folder, then renamed: a reader
    sees a whole model. Where another call has just taken the version, it is the one after.
    """
    with held():
        while True:
            folder = next_version(models, name)
            card = {**checkpoint.card, 'version': folder.name}
            if save(replace(checkpoint, card=card), folder, add):
                return folder


def save(
    checkpoint: Checkpoint, folder: Path, add: Callable[[Path], None] | None = None
) -> Path | None:
    """Write a checkpoint as ``folder``; None where another call has been first."""
    staging = hidden(folder)
    staging.mkdir(parents=True)
    try:
        _fill(staging, checkpoint)
        if add is not None:
            add(staging)
        return folder if put(staging, folder) else None
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _fill(staging: Path, checkpoint: Checkpoint) -> None:
    """Weights, and the card with their hash."""
    tensors = {f'body.{k}': v.contiguous() for k, v in checkpoint.body.items()}
    for task, head in checkpoint.heads.items():
        tensors |= {f'head.{task}.{k}': v.contiguous() for k, v in head.items()}
    # Not save_file, whose files only their owner may read: a lab shares its models.
    (staging / WEIGHTS).write_bytes(to_bytes(tensors))
    card = {**checkpoint.card, 'sha256': sha256(staging / WEIGHTS)}
    (staging / CARD).write_text(json.dumps(card, indent=2) + '\n')


def load(folder: Path) -> Checkpoint:
    """Read a model and check that the weights are those of the card."""
    card = load_card(folder)
    path = folder / WEIGHTS
    if not path.is_file():
        raise MissingInput(f'{folder} holds a card but no {WEIGHTS}')
    if (found := sha256(path)) != card['sha256']:
        raise BadData(
            f'{path} has SHA-256 {found[:12]}…, its card says {card["sha256"][:12]}…: the file is '
            'damaged or was replaced. Copy the model folder again.'
        )
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise BadData(f'{path} is not a safetensors file: {error}') from error

    def part(prefix: str) -> dict[str, Any]:
        return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}

    if lacking := {'name', 'channels_in', 'options'} - card['network'].keys():
        raise BadData(f'{folder / CARD}: network lacks {", ".join(sorted(lacking))}.')
    heads = {task: part(f'head.{task}.') for task in card['heads']}
    return Checkpoint(card, part('body.'), heads)


def start_model(init: str, modality: str) -> Checkpoint | None:
    """The weights that --init names: the bundled ones if there are any, none, or a folder's."""
    folder = start_folder(init, modality)
    return load(folder) if folder else None
