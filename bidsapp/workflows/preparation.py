"""Place, and the part `preparation` that every modality has: the Nipype graph of one run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from nipype import Workflow

    from bidsapp.bids.runs import Size
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

    ``graph`` makes a workflow of (entities, size, place). Fields of its ``inputnode`` are connected
    by their names to the prepared files and to what it ``reads``; its ``outputnode`` has the aid's
    own name and may have ``quality``, for sidecars, which holds what the ``quality`` of its
    ``inputnode`` says of an aid that it reads. ``DerivedBy`` in it names the source of labels where
    that is another than was expected.
    """

    graph: Callable[[Mapping[str, str], Size, Place], Workflow]
    steps: Steps
    needs_t1w: bool = False  #: there is none of it without a T1w image
    reads: tuple[str, ...] = ()  #: other aids, where they are there


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
