"""A model on disk: ``weights.safetensors`` and ``card.json``, written whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes

from bidsapp.core import Checkpoint
from bidsapp.learn.cards import CARD, WEIGHTS, load_card, next_version, sha256
from bidsapp.problems import BadData, MissingInput

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


def save(checkpoint: Checkpoint, folder: Path, add: Callable[[Path], None] | None = None) -> Path:
    """Write a checkpoint as ``folder``, which must not exist; ``add`` puts more files beside it.

    All is written in a hidden folder next to it, then renamed: a reader sees a whole model.
    """
    staging = folder.parent / f'.{folder.name}.{os.getpid()}'
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    tensors = {f'body.{k}': v.contiguous() for k, v in checkpoint.body.items()}
    for task, head in checkpoint.heads.items():
        tensors |= {f'head.{task}.{k}': v.contiguous() for k, v in head.items()}
    # Not save_file, whose files only their owner may read: a lab shares its models.
    (staging / WEIGHTS).write_bytes(to_bytes(tensors))
    card = {**checkpoint.card, 'sha256': sha256(staging / WEIGHTS)}
    (staging / CARD).write_text(json.dumps(card, indent=2) + '\n')
    if add is not None:
        add(staging)
    staging.rename(folder)
    return folder


def save_next(
    checkpoint: Checkpoint, models: Path, name: str, add: Callable[[Path], None] | None = None
) -> Path:
    """`save` as the next version of the model ``name`` under ``models``; returns its folder."""
    folder = next_version(models, name)
    return save(replace(checkpoint, card={**checkpoint.card, 'version': folder.name}), folder, add)


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

    heads = {task: part(f'head.{task}.') for task in card['heads']}
    return Checkpoint(card, part('body.'), heads)
