"""The nouns of TransferMRI. Nothing here reads a file, and importing this module loads no torch.

Case (the files of one run) → Sample (its tensors on one voxel grid) → Task (what is learnt)
→ Checkpoint (what was learnt) → Output (a file that is promised).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from bidsapp.modalities.dwi.physics.acquisition import Acquisition

    FloatArray = NDArray[np.floating[Any]]
    BoolArray = NDArray[np.bool_]

#: Classes of the segmentations: index, name, abbreviation.
TISSUES = ((1, 'Gray Matter', 'GM'), (2, 'White Matter', 'WM'), (3, 'Cerebrospinal Fluid', 'CSF'))


@dataclass(frozen=True, slots=True)
class Case:
    """The files of one dMRI run. ``entities`` are BIDS entities by their long names."""

    entities: Mapping[str, str]
    files: Mapping[str, Path]

    def with_files(self, **files: Path) -> Case:
        """The same run with more files known."""
        return Case(self.entities, {**self.files, **files})

    @property
    def subject(self) -> str:
        """The participant's label, without ``sub-``."""
        return self.entities['subject']


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One Case in memory; all tensors share one voxel grid.

    The grid is the run's own, its axes permuted and flipped to the nearest RAS and cropped to the
    brain: voxels are never interpolated, so ``affine`` is enough to put an array back.
    """

    image: Tensor  #: (C, X, Y, Z) float32, the network's canonical input
    mask: Tensor  #: (1, X, Y, Z) bool, the brain
    affine: FloatArray  #: (4, 4) voxel index → world (RAS+) mm
    target: Tensor | None = None  #: (K, X, Y, Z) float32; a task's own encoding
    context: Tensor | None = None  #: (P,) float32, acquisition parameters


@dataclass(frozen=True, slots=True)
class Output:
    """A file that is promised for each run.

    A derived label and a prediction of it are the same Output, told apart by its *source*:
    ``desc-<source>``, or ``model-<source>`` for a parameter map.
    """

    name: str
    entities: Mapping[str, str]  #: suffix, and seg or param; desc only where it is always the same
    dtype: str
    units: str = 'arbitrary'
    labels: tuple[tuple[int, str, str], ...] = ()  #: (index, name, abbreviation) of a dseg
    description: str = ''
    references: tuple[str, ...] = ('reference',)  #: sources a reference may have, best first

    def entities_from(self, source: str) -> dict[str, str]:
        """The entities that name this output when it comes from ``source``.

        An output with a ``desc`` of its own that is no map of a model keeps that name.
        """
        if 'param' in self.entities:
            return {**self.entities, 'model': source}
        return {'desc': source, **self.entities}


Arrays = Mapping[str, np.ndarray]  #: by Output.name; (X, Y, Z) or (X, Y, Z, K), on the run's grid


#: A rotation by right angles or a mirror: a (3, 3) signed permutation, by rows.
Turn = tuple[tuple[int, ...], ...]


def unchanged(tensor: Tensor, how: Any) -> Tensor:
    """``tensor`` itself: no turning of the target."""
    return tensor


def anywhere(acquisition: Acquisition) -> None:
    """A task whose prediction makes sense for every acquisition."""


def nothing_more(arrays: Arrays) -> Mapping[str, Mapping[str, Any]]:
    """No fields of sidecars that follow from the values."""
    return {}


@dataclass(frozen=True, slots=True)
class Task:
    """What is learnt. A task is one file in ``bidsapp/tasks``."""

    name: str  #: value on the command line, module name, folder under models/
    modality: str  #: which preprocessing makes its input: 'dwi'
    writes: tuple[Output, ...]  #: what a prediction writes; the first ``learns`` are learnt
    channels: int  #: output channels of the network
    targets: int  #: channels of the target
    load: Callable[[Case], Sample]  #: files → tensors; with target if the Case has the label file
    loss: Callable[[Tensor, Tensor, Tensor], Tensor]  #: prediction, target, mask (B, …) → scalar
    finish: Callable[[Tensor, Sample, Case], Arrays]  #: (K, X, Y, Z) output → what is written
    metrics: Callable[[Tensor, Sample], list[tuple[str, str, float]]]  #: → (metric, label, value)
    score: str  #: the metric by which the best step is chosen
    higher_is_better: bool
    reference: Callable[[Acquisition], str]  #: source of the label; raises Unavailable
    applies: Callable[[Acquisition], None] = anywhere  #: raises Unavailable: no prediction
    derive: Callable[[Case], Arrays] | None = None  #: files → reference label, on the run's grid
    reads: tuple[str, ...] = ()  #: files of a Case for ``derive``: 'tissue_posteriors', 'fibres'
    learns: int = 1
    beside: tuple[tuple[Output, str], ...] = ()  #: derived along with the label: output, source
    turns: tuple[Turn, ...] = ()  #: of the canonical input, under which the task is learnt
    turn_target: Callable[[Tensor, Turn], Tensor] = unchanged  #: values, not places, of a target
    turn_output: Callable[[Tensor, Turn], Tensor] = unchanged  #: the same of a network's output
    calibrate: Callable[[Sequence[Tensor], Sequence[Sample]], Tensor] | None = None  #: outputs of
    #: labelled samples → (K,) what to add to them so that stated uncertainty is the error found
    details: Callable[[Arrays], Mapping[str, Mapping[str, Any]]] = nothing_more  #: of sidecars, by
    #: Output.name, from what ``finish`` returns, which may hold more than what is written
    network: str = 'unet3d'
    options: Mapping[str, Any] = field(default_factory=dict)  #: of the network
    parts: Mapping[str, int] = field(default_factory=dict)  #: of a joint task: heads and channels

    @property
    def heads(self) -> Mapping[str, int]:
        """The network's heads: task → channels."""
        return self.parts or {self.name: self.channels}

    def labels(self, source: str) -> tuple[tuple[Output, str], ...]:
        """Every (output, source) that ``derive`` makes where the label is that of ``source``."""
        return (*((output, source) for output in self.writes[: self.learns]), *self.beside)


@dataclass(frozen=True, slots=True)
class Plan:
    """How a network is fitted."""

    steps: int
    patch: int  #: side in voxels, a multiple of 8
    batch: int
    lr: float
    freeze: str = 'none'  #: 'none', 'encoder' or 'body'
    seed: int = 0
    device: str = 'cpu'
    validate_every: int = 50  #: steps
    average: float = 0.0  #: decay of the moving average of weights that is kept; 0: none is


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """What was learnt: weights by parameter name, and a card that says everything else."""

    card: Mapping[str, Any]
    body: Mapping[str, Tensor]
    heads: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)  #: by task


@dataclass(frozen=True, slots=True)
class Finding:
    """Something noticed in a table. ``severity`` is 'error' or 'warning'."""

    severity: str
    code: str
    message: str
