"""Objective, Scanner, Scan, and the part `pretraining`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bidsapp.modalities.dwi.physics import qspace

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bidsapp.core import Sample, Task
    from bidsapp.simulate.stream import Scanner


@dataclass(frozen=True, slots=True)
class Material:
    """What is learnt, and from what."""

    tasks: tuple[Task, ...]
    scanners: Mapping[str, Scanner]  #: train, val and test, which share no brain
    about: Mapping[str, Any]  #: the training distribution in words, for the card
    ranges: Mapping[str, Any]  #: as `learn.ranges` reads them
    slots: Sequence[int] = field(default=range(len(qspace.SLOTS)))  #: that are ever filled
    license: str = "the user's own"

    def sample(self, split: str, index: int) -> Sample:
        """A whole block of person ``index`` of a split, with the targets of all tasks in a row."""
        from bidsapp.modalities.dwi.simulate.simulator import scan_of_person
        from bidsapp.simulate.stream import validation_samples

        names = [task.name for task in self.tasks]
        scanner = self.scanners[split]
        return validation_samples(scanner, names, [scan_of_person(index)])[0]
