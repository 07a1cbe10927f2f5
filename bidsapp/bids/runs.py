"""Run, Survey, and the part `files` that every modality has."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bidsapp.bids.names import stem

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bidsapp.core import Case
    from bidsapp.modalities.dwi.bids.fieldmap_sources import FieldmapSource
    from bidsapp.problems import Problem


@dataclass(frozen=True, slots=True)
class Run:
    """One dMRI run, or why it cannot be used."""

    case: Case
    metadata: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    problem: Problem | None = None
    fieldmaps: tuple[FieldmapSource, ...] = ()  #: the best first
    fieldmap_notes: tuple[str, ...] = ()  #: why others cannot be used
    preprocessed: str | None = None  #: the pipeline that has already corrected it, 'qsiprep'

    @property
    def name(self) -> str:
        """What its outputs begin with."""
        return stem(self.case.entities)
