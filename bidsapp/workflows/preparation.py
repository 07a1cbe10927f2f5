"""Place, and the part `preparation` that every modality has: the Nipype graph of one run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from nipype import Workflow

    from bidsapp.bids.runs import Size


@dataclass(frozen=True, slots=True)
class Place:
    """Where a call reads and writes, and what it may use."""

    roots: Mapping[str, Path]  #: name in BIDS URIs → dataset: 'raw', 'qsiprep'
    out_root: Path
    seed: int
    device: str
    omp_nthreads: int


#: Makes a file that several labels rest on: (entities, size, place) → a workflow. Fields of its
#: ``inputnode`` are connected by their names to the prepared files, to ``t1w`` and to other aids
#: that are there; its ``outputnode`` has the aid's own name and may have ``quality``, for sidecars.
Aid = Callable[[Mapping[str, str], 'Size', Place], 'Workflow']


@dataclass(frozen=True, slots=True)
class Preparation:
    """What a modality does to a run; its package ``workflows`` has one, called ``preparation``.

    ``graph`` makes a workflow of (run, survey, place) whose ``outputnode`` has the kinds of
    `bids.runs.Prepared.names`, written below ``place.out_root``. Where its ``inputnode`` has a
    field ``t1w`` it gets the participant's T1w image, corrected for its receive field.
    """

    graph: Callable[[Any, Any, Place], Workflow]
    aids: Mapping[str, Aid] = field(default_factory=dict)  #: by the kind of file that they make
