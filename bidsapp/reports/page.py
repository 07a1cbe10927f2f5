"""Drawn, and the part `page` that every modality has: what is drawn and said of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

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


@dataclass(frozen=True, slots=True)
class Page:
    """What a modality shows of a run; its package ``reports`` has one, called ``page``."""

    background: Callable[[Case], FloatArray]  #: (X, Y, Z) under masks and labels, on the run's grid
    background_name: str  #: what that image is: 'mean b=0 image'
    background_words: str  #: the same at more length: 'mean image without diffusion weighting'
    figures: Callable[[WrittenRun, View], Sequence[Figure]]  #: in their order on the page
    facts: Callable[[WrittenRun], Mapping[str, Any]]  #: of the scan, in words
    methods: str  #: Markdown for a methods section
    references: str  #: Markdown, a numbered list
    processing: tuple[str, ...] = ()  #: fields of a sidecar that say what was done, in that order
    sources: Mapping[str, str] = field(default_factory=dict)  #: of maps, in words, in their order
    tables: Mapping[str, tuple[str, str]] = field(default_factory=dict)  #: suffix of a table →
    #: what is to be said of it, and its units
