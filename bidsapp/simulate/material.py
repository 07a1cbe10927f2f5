"""Scan, Scanner, Material, and the part `pretraining` that every modality has."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from bidsapp.core import Sample

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from bidsapp.core import Case, Task


@dataclass(frozen=True, slots=True, eq=False)
class Scan:
    """A network's input and the truth behind it, on one block of a simulated or auxiliary scan."""

    image: Tensor  #: (C, X, Y, Z)
    mask: Tensor  #: (1, X, Y, Z) bool
    truth: Mapping[str, Tensor]  #: what is known of the block, by name; tasks make targets of it
    voxel_mm: tuple[float, ...]
    context: Mapping[str, Tensor] = field(default_factory=dict)


class Scanner(Protocol):
    """What scans are drawn from; it never runs dry."""

    def scan(self, number: int) -> Scan:
        """Scan number ``number``, always the same."""


@dataclass(frozen=True, slots=True)
class Request:
    """What shall be pretrained, and from what."""

    objective: str
    tasks: Sequence[str]  #: those that were named; none: all that the objective teaches
    seed: int
    side: int  #: voxels along the edge of a block
    kept: Path  #: folder for what is worked out once
    cases: Mapping[str, Sequence[Case]]  #: prepared runs by split; none: simulated scans


def same_number(index: int) -> int:
    """Each scan is of another person."""
    return index


@dataclass(frozen=True, slots=True)
class Material:
    """What is learnt, and from what."""

    tasks: tuple[Task[Any], ...]  #: each with its ``truth``
    scanners: Mapping[str, Scanner]  #: train, val and test, which share nobody
    about: Mapping[str, Any]  #: the training distribution in words, for the card
    ranges: Mapping[str, Any]  #: as `learn.ranges` reads them
    card: Mapping[str, Any] = field(default_factory=dict)  #: what a card says of the input
    license: str = "the user's own"
    scan_of: Callable[[int], int] = same_number  #: person → the number of one of its scans
    #: Batches that a scan serves, differently turned and cut: as many as make up for drawing it.
    steps_a_scan: int = 24

    def sample(self, split: str, index: int) -> Sample:
        """A whole block of person ``index`` of a split, with the targets of all tasks in a row."""
        return labelled(self.scanners[split].scan(self.scan_of(index)), self.tasks)


def target_of(scan: Scan, tasks: Sequence[Task[Any]]) -> Tensor:
    """(K, X, Y, Z) the targets of ``tasks`` in a row. Raises ValueError for one without truth."""
    import torch

    parts = []
    for task in tasks:
        if task.truth is None:
            raise ValueError(f'task {task.name} has no truth that a simulator could tell')
        parts.append(task.truth(scan.truth))
    return torch.cat(parts)


def labelled(scan: Scan, tasks: Sequence[Task[Any]]) -> Sample:
    """A scan as a sample, with the targets of ``tasks``."""
    affine = np.diag([*scan.voxel_mm, 1.0])
    return Sample(scan.image, scan.mask, affine, target_of(scan, tasks), scan.context)


#: What sidecars of simulated scans say of the scanner.
SCANNER = {
    'Manufacturer': 'TransferMRI simulator',
    'ManufacturersModelName': 'synthetic head',
    'MagneticFieldStrength': 3,
}


@dataclass(frozen=True, slots=True)
class Person:
    """One simulated participant, about to be scanned."""

    label: str  #: 'sub-01'
    index: int
    head: Any  #: `simulate.anatomy.Head`
    axes: str  #: where the voxel axes of scans point before the field of view is tilted: 'RAS'
    generator: Any  #: torch's; what is drawn follows from it


@dataclass(frozen=True, slots=True)
class Flag:
    """An option of `transfermri-simulate`; the field of a design that it sets has its name."""

    name: str  #: 'voxel-size'
    type: Callable[[str], Any]
    metavar: str
    help: str
    several: bool = False
    choices: tuple[str, ...] | None = None  #: values that there are, where they can be listed


@dataclass(frozen=True, slots=True)
class Dataset:
    """A modality's part in `transfermri-simulate`: scans of a person, with their truth."""

    design: Callable[..., Any]  #: a frozen dataclass of options, all with defaults
    flags: tuple[Flag, ...]
    write: Callable[[Path, Person, Any], Mapping[str, str]]  #: folder of the dataset, person,
    #: design → columns of participants.tsv
    columns: Mapping[str, Mapping[str, Any]]  #: what these are
    truth: str  #: what is under derivatives/truth, for the README
    ignored: tuple[str, ...] = ()  #: lines of .bidsignore there


@dataclass(frozen=True, slots=True)
class Pretraining:
    """What a modality is pretrained from; its package ``simulate`` has one, ``pretraining``."""

    material: Callable[[Request], Material]  #: for each of the modality's objectives
    dataset: Dataset | None = None
