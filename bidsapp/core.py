"""The nouns of TransferMRI. Nothing here reads a file, and importing this module loads no torch.

Case (the files of one run) → Sample (its tensors on one voxel grid) → Task (what is learnt)
→ Checkpoint (what was learnt) → Output (a file that is promised). None of them knows a modality.

Over 300 lines, for who knows the nouns knows the house: they are to be read in one go.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Generator, Tensor

    FloatArray = NDArray[np.floating[Any]]
    BoolArray = NDArray[np.bool_]

#: Parts of what is made of a run, as ``--redo`` names them beside single tasks.
PARTS = ('preprocessing', 'labels', 'predictions', 'page')
#: Classes of the segmentations: index, name, abbreviation.
TISSUES = ((1, 'Gray Matter', 'GM'), (2, 'White Matter', 'WM'), (3, 'Cerebrospinal Fluid', 'CSF'))


@dataclass(frozen=True, slots=True)
class Case:
    """The files of one run. ``entities`` are BIDS entities by their long names, and ``datatype``.

    Each modality has its own kinds of ``files``: 'dwi' and 'mask', or 'magnitude_1'. ``part`` says
    in the modality's own plain values that only some of their data are looked at, or what values
    are relative to.
    """

    entities: Mapping[str, str]
    files: Mapping[str, Path]
    part: Mapping[str, Any] = field(default_factory=dict)

    def with_files(self, **files: Path) -> Case:
        """The same run with more files known."""
        return replace(self, files={**self.files, **files})

    @property
    def subject(self) -> str:
        """The participant's label, without ``sub-``."""
        return self.entities['subject']


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One Case in memory; image, mask and target share one voxel grid.

    The grid is the run's own, turned and cropped but never interpolated, so ``affine`` is enough to
    put an array back. A slice is a volume one voxel thick; a complex image has two channels.
    """

    image: Tensor  #: (C, X, Y, Z) float32, the network's input
    mask: Tensor  #: (1, X, Y, Z) bool, where the input counts
    affine: FloatArray  #: (4, 4) voxel index → world (RAS+) mm
    target: Tensor | None = None  #: (K, X, Y, Z) float32; a task's own encoding
    context: Mapping[str, Tensor] = field(default_factory=dict)  #: what the network is told beside
    #: the image, by name: voxel edges, B0 direction, coil maps. It is never cut into patches.
    name: str = ''  #: of its run, for messages


class Batch(NamedTuple):
    """Samples or patches of samples, stacked along a first axis."""

    image: Tensor  #: (B, C, X, Y, Z)
    target: Tensor  #: (B, K, X, Y, Z)
    mask: Tensor  #: (B, 1, X, Y, Z) bool
    context: Mapping[str, Tensor]  #: (B, …) by name


@dataclass(frozen=True, slots=True)
class Finding:
    """Something noticed in a run's files. ``severity`` is 'error', 'warning' or 'note'."""

    severity: str
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number, or several, by which it is judged whether a model was tested for the like of a run.

    A card's ``tested_ranges`` holds [lowest, highest] by ``name``, or a list of such.
    """

    name: str  #: 'directions', 'b', 'voxel_mm', 'snr', 'tilt_deg', 'acceleration'
    values: tuple[float, ...]
    words: str  #: what was found; ``{value}`` where each value is judged for itself
    slack: float = 0.0  #: share by which a value may miss a range
    upper: bool = True  #: whether more than the highest is strange too
    each: bool = False  #: each value for itself, or the smallest and the largest together
    limits: str = '{low:g} to {high:g}'  #: a tested range in words


class Acquisition(Protocol):
    """The protocol of one run, as far as promises rest on it; each modality has its own."""

    @property
    def words(self) -> str:
        """One line for people: '64 directions at b=1000, T1w'."""

    def quantities(self, sample: Sample | None = None) -> tuple[Quantity, ...]:
        """What models are judged by; with the run's ``sample`` also what only it tells."""


A = TypeVar('A', bound=Acquisition)


@dataclass(frozen=True, slots=True)
class Output:
    """A file that is promised for each run.

    A derived label and a prediction of it are the same Output, told apart by its *source*, which
    stands in the entity ``told_by``.
    """

    name: str
    entities: Mapping[str, str]  #: suffix, and seg or param; desc only where it is always the same;
    #: without a suffix: that of the recording
    dtype: str
    units: str = 'arbitrary'
    labels: tuple[tuple[int, str, str], ...] = ()  #: (index, name, abbreviation) of a dseg
    description: str = ''
    references: tuple[str, ...] = ('reference',)  #: sources a reference may have, best first
    told_by: str = 'desc'  #: 'desc', 'model' or 'reconstruction'
    renamed: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  #: source → entities in
    #: which its file differs beside that
    beside: tuple[str, ...] = ()  #: extensions of files that are copied from beside the run's image
    sidecar: Mapping[str, Any] = field(default_factory=dict)  #: further fields, always the same
    heading: str = ''  #: on a page, in words; default: what its entities say
    white: tuple[float, float, str] | None = None  #: on a page: the value drawn white, and the
    #: factor and unit in its key; None: by its values
    palette: tuple[str, ...] = ()  #: on a page: colours of labels 1, 2, … that count something

    def entities_from(self, source: str) -> dict[str, str]:
        """The entities that name this output when it comes from ``source``.

        An output told by ``desc`` that has one of its own keeps that name.
        """
        if self.told_by == 'desc':
            return {'desc': source, **self.entities}
        return {**self.entities, self.told_by: source, **self.renamed.get(source, {})}


class LongerVoxels(Protocol):
    """The grid of a poorer scan over that of a run, for labels to be brought onto it."""

    @property
    def affine(self) -> FloatArray:
        """(4, 4) voxel index → world (RAS+) mm."""

    @property
    def same(self) -> bool:
        """Whether it is the run's own grid."""

    def __call__(self, values: FloatArray, weight: FloatArray) -> tuple[np.ndarray, np.ndarray]:
        """Means of (X, Y, Z[, K]) weighted by (X, Y, Z) ≥ 0; and the share of each that weighs."""


Arrays = Mapping[str, np.ndarray]  #: by Output.name; (X, Y, Z) or (X, Y, Z, K), on the run's grid


#: A signed permutation of the voxel axes, (3, 3) by rows: a rotation by right angles or a flip.
Turn = tuple[tuple[int, ...], ...]


def unchanged(tensor: Tensor, how: Any) -> Tensor:
    """``tensor`` itself: no turning of the target."""
    return tensor


def as_it_is(batch: Batch, generator: Generator) -> Batch:
    """``batch`` itself: no augmentation."""
    return batch


def anywhere(acquisition: Any) -> None:
    """A task whose prediction makes sense for every acquisition."""


def no_tables(case: Case) -> Sequence[Mapping[str, str]]:
    """No further files beside a label."""
    return ()


@dataclass(frozen=True, slots=True)
class Statistics:
    """A table that is written beside a prediction, with a JSON that explains it."""

    output: Output  #: how it is named
    rows: Callable[[Arrays, Case], Sequence[Mapping[str, Any]]]  #: of what is written, on the run's
    #: grid: for each row its values by column
    columns: Mapping[str, Mapping[str, Any]]  #: column → what it is


def no_statistics(case: Case) -> Sequence[Statistics]:
    """No table beside a prediction."""
    return ()


def nothing_more(arrays: Arrays) -> Mapping[str, Mapping[str, Any]]:
    """No fields of sidecars that follow from the values."""
    return {}


@dataclass(frozen=True, slots=True)
class Head:
    """What is learnt: the last layer of a network with its loss, metrics and augmentation.

    All that `learn` needs to know of a task. Several heads are fitted as one by `learn.joint`.
    """

    channels: int  #: output channels of the network
    targets: int  #: channels of the target
    loss: Callable[[Tensor, Tensor, Tensor], Tensor]  #: prediction, target, mask (B, …) → scalar
    metrics: Callable[[Tensor, Sample], list[tuple[str, str, float]]]  #: → (metric, label, value)
    score: str  #: the metric by which the best step is chosen
    higher_is_better: bool
    words: Mapping[str, str] = field(default_factory=dict)  #: metric → what it is, for people
    turns: tuple[Turn, ...] = ()  #: of the input, under which the task is learnt
    turn_target: Callable[[Tensor, Turn], Tensor] = unchanged  #: values, not places, of a target
    turn_output: Callable[[Tensor, Turn], Tensor] = unchanged  #: the same of a network's output
    augment: Callable[[Batch, Generator], Batch] = as_it_is  #: anew at each step: a sampling mask,
    #: noise, a scaled field
    calibrate: Callable[[Sequence[Tensor], Sequence[Sample]], Tensor] | None = None  #: outputs of
    #: labelled samples → (2, K) by what to multiply each channel, and what to add then, so that
    #: stated uncertainty is the error found
    weight: float = 1.0  #: of its loss, where several heads are learnt together
    from_nothing: bool = False  #: its output is a correction, which begins as none
    name: str = ''  #: that of its task; the registry fills it in
    parts: Mapping[str, int] = field(default_factory=dict)  #: of a joint head: its heads' channels
    zeros: tuple[str, ...] = ()  #: of a joint head: its heads that begin as nothing

    @property
    def heads(self) -> Mapping[str, int]:
        """The network's heads: task → channels."""
        return self.parts or {self.name: self.channels}

    @property
    def heads_from_nothing(self) -> tuple[str, ...]:
        """Which of them begin with an output of zero."""
        return self.zeros or ((self.name,) if self.from_nothing else ())


@dataclass(frozen=True, slots=True)
class Label(Generic[A]):
    """Where the reference of a task comes from: derived from the run, or given with it.

    The label of neurite density, for example: ``source`` says 'noddi' where the shells allow it,
    ``derive`` fits it, ``learns`` is 3 (its maps), and ``beside`` holds what is fitted along.
    """

    source: Callable[[A], str]  #: which source a run's label will have; raises Unavailable
    derive: Callable[[Case], Arrays]  #: files → label, on the run's grid; raises Unavailable where
    #: the scan turns out to hold none
    reads: tuple[str, ...] = ()  #: further files of the Case for it, which the modality's
    #: preparation knows how to make, or which the user gave: 'tissue_posteriors', 'fibres'
    learns: int = 1  #: the task's first outputs, so many, are what is learnt
    beside: tuple[tuple[Output, str], ...] = ()  #: derived along with the label: output, source;
    #: one of the label's own sources: only along with the label of that
    averaged: Callable[[Case, LongerVoxels], Arrays] | None = None  #: of a Case with the label's
    #: files, what is learnt on longer voxels; None: the commonest label, means of maps in the mask
    tables: Callable[[Case], Sequence[Mapping[str, str]]] = no_tables  #: of a raw run: entities of
    #: further files that come with its label, which what it ``reads`` leaves below OUTPUT_DIR
    given: str = ''  #: name in ``-d`` of a folder whose maps of runs are learnt from instead
    of_run: bool = True  #: derived from the data that a network sees, whose noise it then shares;
    #: else from another image, as tissue from a T1w
    version: int = 1  #: raised when what ``derive`` gives changes: labels are then derived again


@dataclass(frozen=True, slots=True)
class Classical:
    """What a task is done by without a network, as a comparator on the network's own input.

    ``fitted`` takes labelled inputs to learn from, where there is anything to learn, and gives what
    estimates from the Case and Sample of an input, in the channels of the head. That raises
    Unavailable where the input does not carry it.
    """

    words: str
    fitted: Callable[[Sequence[tuple[Case, Sample]]], Callable[[Case, Sample], Tensor]]


@dataclass(frozen=True, slots=True)
class Task(Generic[A]):
    """What is learnt, and what is written of it: one file in ``modalities/<modality>/tasks``.

    The file's name is the task's name, its folder says the modality; the registry fills them in.
    """

    head: Head
    writes: tuple[Output, ...]  #: what a prediction writes; the first ``label.learns`` are learnt
    load: Callable[[Sample, Case], Sample]  #: adds the target if the Case has the label's files
    finish: Callable[[Mapping[str, Tensor], Sample, Case], Arrays]  #: the network's output
    #: (K, X, Y, Z) by task, its own and those that it ``uses`` → what is written
    label: Label[A] | None = None  #: None: learnt in pretraining only
    truth: Callable[[Mapping[str, Tensor]], Tensor] | None = None  #: what a simulator knows of a
    #: scan, by name → target; None: not learnt from simulated scans
    applies: Callable[[A], None] = anywhere  #: raises Unavailable: no prediction
    uses: tuple[str, ...] = ()  #: tasks whose outputs `finish` takes where the same model has them
    #: What is written of outputs, in the channels of the head, to be judged; None: as they are.
    written: Callable[[Mapping[str, Tensor], Sample, Case], Tensor] | None = None
    classical: Classical | None = None
    details: Callable[[Arrays], Mapping[str, Mapping[str, Any]]] = nothing_more  #: of sidecars, by
    #: Output.name, from what ``finish`` or ``label.derive`` returns, which may hold more than what
    #: is written
    tables: Callable[[Case], Sequence[Statistics]] = no_statistics  #: of a run with what its user
    #: gave: what comes with its prediction
    version: int = 1  #: raised when what ``finish`` gives changes: predictions are then made again
    name: str = ''
    modality: str = ''

    @property
    def learnt(self) -> tuple[Output, ...]:
        """The outputs whose references are learnt from; none without a label."""
        return self.writes[: self.label.learns] if self.label else ()

    def labels(self, source: str) -> tuple[tuple[Output, str], ...]:
        """Every (output, source) that is derived where the label is that of ``source``.

        What is beside the label of another source that it may have is not.
        """
        others = {other for output in self.learnt for other in output.references} - {source}
        beside = self.label.beside if self.label else ()
        return (
            *((output, source) for output in self.learnt),
            *((output, own) for output, own in beside if own not in others),
        )


@dataclass(frozen=True, slots=True)
class Objective:
    """What pretraining teaches, in words, and from what: a modality lists its own by name."""

    words: str  #: goes on after 'pretrained to'
    simulated: bool = True  #: from simulated scans (BIDS_DIR is -)
    dataset: bool = True  #: from the prepared runs of an auxiliary dataset
    tasks: bool = False  #: every task by its truth, or those that are named
    labels: str = ''  #: the task whose labels the runs of an auxiliary dataset must have
    labels_words: str = ''  #: what these are, for people


@dataclass(frozen=True, slots=True)
class Option:
    """A command-line option that means something to one modality only."""

    flag: str  #: '--input-directions'
    type: type[int] | type[float] | type[str] | type[bool]  #: bool: given or not
    metavar: str
    help: str
    levels: tuple[str, ...]  #: analysis levels at which it has a meaning
    least: float | None = None
    choices: tuple[str, ...] | None = None  #: values that there are, where they can be listed

    @property
    def name(self) -> str:
        """After parsing: 'input_directions'."""
        return self.flag.removeprefix('--').replace('-', '_')


#: Shape of a patch in voxels; None is the whole axis.
Patch = tuple[int | None, int | None, int | None]


@dataclass(frozen=True, slots=True)
class Plan:
    """How a network is fitted."""

    steps: int
    patch: Patch
    batch: int
    lr: float
    rates: Mapping[str, float] = field(default_factory=dict)  #: part of the network → factor of
    #: its learning rate; 0 keeps the part as it was
    rest: float = 1.0  #: that of what is in none of these parts
    seed: int = 0
    device: str = 'cpu'
    validate_every: int = 50  #: steps
    average: float = 0.0  #: decay of the moving average of weights that is kept; 0: none is


@dataclass(frozen=True, slots=True)
class Recipe:
    """A published way of fine-tuning a network of a modality: ``--freeze published``."""

    lr: float
    rates: Mapping[str, float]  #: as `Plan.rates`: of parts that a network must have for it
    fixed: tuple[str, ...]  #: parts that stay as they were in a network that has them
    rest: float  #: as `Plan.rest`
    patches: int  #: drawn of each scan, in an epoch
    epochs: int
    words: str  #: what it is, and where it was published

    def steps(self, scans: int, batch: int) -> int:
        """Steps in which ``scans`` are seen that often, in batches of so many patches."""
        return -(-self.epochs * self.patches * scans // batch)


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """What was learnt: weights by parameter name, and a card that says everything else."""

    card: Mapping[str, Any]
    body: Mapping[str, Tensor]
    heads: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)  #: by task
