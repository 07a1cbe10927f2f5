"""Drawn, and the part `page` that every modality has: what is drawn and said of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from bidsapp.bids.images import load_volume

if TYPE_CHECKING:
    from pathlib import Path

    from bidsapp.core import Case, FloatArray
    from bidsapp.reports.planes import View
    from bidsapp.reports.written import WrittenRun


@dataclass(frozen=True, slots=True)
class Drawn:
    """A figure and what to say of it; there may be something to say and nothing to draw."""

    heading: str
    path: Path | None
    caption: str


#: Draws one figure; None where the run has nothing of the kind. Raises BadData.
Figure = Callable[[], Drawn | None]


def usual_background(case: Case) -> FloatArray:
    """(X, Y, Z) the first image of a prepared run; the mean of its volumes if it has several."""
    path = next(path for path in case.files.values() if path.name.endswith('.nii.gz'))
    image = load_volume(path)
    return np.asarray(image.mean(-1) if image.ndim > 3 else image)


def usual_figures(run: WrittenRun, view: View) -> Sequence[Figure]:
    """Mask, segmentations and parameter maps, which are anybody's."""
    from bidsapp.reports import maps

    return maps.usual_figures(run, view)


def no_facts(run: WrittenRun) -> Mapping[str, Any]:
    """Nothing beside grid and volumes."""
    return {}


@dataclass(frozen=True, slots=True)
class Page:
    """What a modality shows of a run; its package ``reports`` has one, called ``page``."""

    background_name: str = 'image'  #: what masks and labels are laid over: 'mean b=0 image'
    background_words: str = 'image'  #: at more length: 'mean image without diffusion weighting'
    methods: str = ''  #: Markdown for a methods section
    references: str = ''  #: Markdown, a numbered list
    background: Callable[[Case], FloatArray] = usual_background  #: (X, Y, Z) on the run's grid
    figures: Callable[[WrittenRun, View], Sequence[Figure]] = usual_figures  #: in their order
    facts: Callable[[WrittenRun], Mapping[str, Any]] = no_facts  #: of the scan, in words
    processing: tuple[str, ...] = ()  #: fields of a sidecar that say what was done, in that order
    sources: Mapping[str, str] = field(default_factory=dict)  #: of maps, in words, in their order
    tables: Mapping[str, tuple[str, str]] = field(default_factory=dict)  #: suffix of a table →
    #: what is to be said of it, and its units
