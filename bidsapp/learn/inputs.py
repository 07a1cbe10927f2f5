"""The part `input` that every modality has: what a network sees of a run; inputs kept on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from bidsapp.core import Sample
from bidsapp.hidden import whole_folder
from bidsapp.physics.geometry import turned_voxels
from bidsapp.problems import BadData

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from bidsapp.core import Case, Checkpoint, Patch, Recipe, Turn

#: Some of a run's data as plain values, of which JSON can be made: they name the kept file.
Part = Mapping[str, Any]
#: (image, context) of a sample or batch, and a turn → both for the scan whose axes are turned.
Turned = Callable[
    ['Tensor', Mapping[str, 'Tensor'], 'Turn'], tuple['Tensor', Mapping[str, 'Tensor']]
]


@dataclass(frozen=True, slots=True)
class Use:
    """What an input is for, under a modality's own options.

    ``training``: its label was derived from all of the run, so parts of it are shown: to learn
    from, and to be judged by where nothing else is the input.
    """

    training: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)  #: `core.Option.name` → value


@dataclass(frozen=True, slots=True)
class Shape:
    """The network that a modality's tasks are learnt by, and the patches that it is shown."""

    name: str  #: as cards have it; looked up in the modality's ``networks``
    words: str = '3D U-Net'  #: for people
    options: Mapping[str, Any] = field(default_factory=dict)
    patch: Patch = (32, 32, 32)  #: voxels; None: the whole axis
    batch: int | None = None  #: patches of a step, where the story's number will not do: 1 where
    #: samples are told things of different sizes


def whole(case: Case, use: Use) -> list[Part]:
    """A run enters once, with all that it has."""
    return [{}]


def only_voxels(
    image: Tensor, context: Mapping[str, Tensor], turn: Turn
) -> tuple[Tensor, Mapping[str, Tensor]]:
    """Voxels are permuted and flipped; neither values nor context know of directions."""
    return turned_voxels(image, turn), context


def nothing_special(samples: Sequence[Sample]) -> dict[str, Any]:
    """An input of which a card need not say anything."""
    return {}


@dataclass(frozen=True, slots=True)
class Input:
    """What a modality's networks see; its package ``learn`` has one, called ``input``."""

    modality: str
    sample: Callable[[Case, Part], Sample]  #: prepared files → input, without target
    network: Shape
    parts: Callable[[Case, Use], Sequence[Part]] = whole  #: a run enters once for each: halves
    turned: Turned = only_voxels
    about: Callable[[Sequence[Sample]], Mapping[str, Any]] = nothing_special  #: for a card
    networks: Mapping[str, Shape] = field(default_factory=dict)  #: others that pretraining can
    #: make, by the name that ``--network`` gives
    published: Recipe | None = None  #: what ``--freeze published`` is to the modality's networks
    version: int = 1  #: raised when what ``sample`` gives changes: predictions are then made again


def save_input(sample: Sample, folder: Path) -> Path:
    """Keep a sample's input on disk, to be mapped into memory later; what is there stays.

    So is a target, where the input brings it along.
    """
    with whole_folder(folder) as staging:
        (staging / 'context').mkdir()
        np.save(staging / 'image.npy', sample.image.numpy())
        np.save(staging / 'mask.npy', sample.mask.numpy())
        np.save(staging / 'affine.npy', sample.affine)
        if sample.target is not None:
            np.save(staging / 'target.npy', sample.target.numpy())
        for name, value in sample.context.items():
            np.save(staging / 'context' / f'{name}.npy', value.numpy())
    return folder


def open_input(folder: Path) -> Sample:
    """A kept sample. Its image is mapped copy-on-write, so only what is used is read."""
    import torch

    target = folder / 'target.npy'
    return Sample(
        torch.from_numpy(np.load(folder / 'image.npy', mmap_mode='c')),
        torch.from_numpy(np.load(folder / 'mask.npy')),
        np.load(folder / 'affine.npy'),
        torch.from_numpy(np.load(target)) if target.is_file() else None,
        context={
            path.stem: torch.from_numpy(np.load(path)) for path in folder.glob('context/*.npy')
        },
    )


def kept_inputs(own: Input, case: Case, kinds: Sequence[str], use: Use, folder: Path) -> list[Path]:
    """Folders with a run's inputs, each computed once for all tasks and calls.

    ``kinds`` are those of the prepared files that they are made from: if one of them, or a JSON
    beside one, is another, so is the input. Raises BadData for one that does not hold numbers.
    """
    import torch

    files = [case.files[kind] for kind in kinds if kind in case.files]
    made_from = [[str(path), *state] for path, state in states(files).items()]
    found = []
    for part in own.parts(case, use):
        identity = json.dumps([made_from, part])
        place = folder / hashlib.sha256(identity.encode()).hexdigest()[:16]
        if not place.is_dir():
            sample = own.sample(case, part)
            if not torch.isfinite(sample.image).all():
                raise BadData(
                    f'{files[0]}: what a network would see of it is not made of numbers alone. '
                    'Look at the run and its mask; a brain of few voxels can be the reason.'
                )
            save_input(sample, place)
        found.append(place)
    return found


def states(files: Sequence[Path]) -> dict[Path, tuple[int, int]]:
    """Files, and the JSON beside each where there is one, with size and time of change."""
    beside = (path.with_name(path.name.partition('.')[0] + '.json') for path in files)
    every = dict.fromkeys([*files, *(path for path in beside if path.is_file())])
    found = {path: path.stat() for path in every}
    return {path: (stat.st_size, stat.st_mtime_ns) for path, stat in found.items()}


def with_network_of(own: Input, start: Checkpoint | None) -> Input:
    """``own`` with the network of the weights to start from in the place of its usual.

    Of the usual network it is the shape of today; another is as the card has it, in the patches in
    which the modality learns it. None: the usual.
    """
    if start is None:
        return own
    found = start.card['network']
    name, options = found['name'], dict(found.get('options', {}))
    if name == own.network.name:
        return own
    known = [shape for shape in own.networks.values() if shape.name == name]
    other = Shape(name, patch=own.network.patch)
    shape = next((s for s in known if dict(s.options) == options), known[0] if known else other)
    return replace(own, network=replace(shape, options=options))
