"""Place, and the part `preparation` that every modality has: the Nipype graph of one run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from nipype import Workflow

    from bidsapp.bids.runs import Run, Size
    from bidsapp.core import Case, LongerVoxels
    from bidsapp.interfaces.base import Step


@dataclass(frozen=True, slots=True)
class Place:
    """Where a call reads and writes, and what it may use."""

    roots: Mapping[str, Path]  #: name in BIDS URIs → dataset: 'raw', 'qsiprep'
    out_root: Path
    seed: int
    device: str
    omp_nthreads: int


#: The steps of a graph by their classes, whose versions say which results it gives.
Steps = Sequence['type[Step]']


@dataclass(frozen=True, slots=True)
class Aid:
    """Makes a file that several labels rest on.

    ``graph`` makes a workflow of (run, size, place). Fields of its ``inputnode`` are connected
    by their names to the prepared files and to what it ``reads``; its ``outputnode`` has the aid's
    own name and may have ``quality``, for sidecars, which holds what the ``quality`` of its
    ``inputnode`` says of an aid that it reads. ``DerivedBy`` in it names the source of labels where
    that is another than was expected.
    """

    graph: Callable[[Any, Size, Place], Workflow]
    steps: Steps
    needs_t1w: bool = False  #: there is none of it without a T1w image
    reads: tuple[str, ...] = ()  #: other aids, where they are there


@dataclass(frozen=True, slots=True)
class Poorer:
    """A run made like a poorer scan: a raw one that is still to be prepared, or a prepared one."""

    source: str  #: 'raw' or 'prepared': which files were made poorer
    notes: Sequence[str]  #: what of the scan was not reached, for people
    figures: Mapping[str, float]  #: what was reached
    raw: Run | None = None
    prepared: Case | None = None


@dataclass(frozen=True, slots=True)
class Likeness:
    """How runs are made like another scan, for a network to learn from their labels.

    ``asked`` says of the modality's options what inputs shall be like, for cards: nothing where
    nothing is asked. It raises Problem for a scan that cannot be used. ``poorer`` takes a prepared
    run, (image, root) of the raw scan behind it where that is there, a folder and the options; it
    raises BadData where the run cannot be made so. ``grid`` gives means over the voxels of the
    poorer run: (X, Y, Z[, K]) values, (X, Y, Z) weights → means and share of each that weighs.
    """

    asked: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    poorer: Callable[[Case, tuple[Path, Path] | None, Path, Mapping[str, Any]], Poorer]
    grid: Callable[[Case, Mapping[str, Any]], LongerVoxels]


@dataclass(frozen=True, slots=True)
class Preparation:
    """What a modality does to a run; its package ``workflows`` has one, called ``preparation``.

    ``graph`` makes a workflow of (run, survey, place) whose ``outputnode`` has the kinds of
    `bids.runs.Prepared.names`, written below ``place.out_root``. Where its ``inputnode`` has a
    field ``t1w`` it gets the participant's T1w image, corrected for its receive field; where that
    cannot be used, ``t1w_quality`` says why, as `interfaces.anat.T1wStep` does.
    """

    graph: Callable[[Any, Any, Place], Workflow]
    steps: Callable[[Any], Steps]  #: of a Run, every step that its graph may hold
    aids: Mapping[str, Aid] = field(default_factory=dict)  #: by the kind of file that they make
    likeness: Likeness | None = None  #: how runs are made like another scan, if they can be
