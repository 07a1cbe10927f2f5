"""The acquisition of a dMRI run: directions, shells, condition of the tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bidsapp.modalities.dwi.physics.gradients import GradientTable, n_unique, shells, tensor_design
from bidsapp.modalities.dwi.physics.qspace import filled_slots

if TYPE_CHECKING:
    from bidsapp.core import FloatArray
    from bidsapp.modalities.dwi.physics.gradients import GradientTable


@dataclass(frozen=True, slots=True)
class Acquisition:
    """What decides which labels a run can give, known from its gradient table and its folder."""

    directions: int  #: different directions up to sign, all shells together
    shells: tuple[tuple[float, int], ...]  #: (b in s/mm², directions) of each shell, b ascending
    condition: float  #: condition number of the tensor design matrix
    has_t1w: bool = False

    @property
    def best_shell(self) -> tuple[float, int]:
        """(b, directions) of the shell best suited to resolve fibres.

        Most directions, up to the 45 that harmonics of order 8 need; among equals the highest b.
        """
        return max(self.shells, key=lambda shell: (min(shell[1], 45), shell[0]), default=(0.0, 0))


@dataclass(frozen=True, slots=True)
class Facts:
    """What of a scan decides whether a model was tested for the like."""

    directions: int  #: different up to sign, all shells together
    b: tuple[float, ...]  #: s/mm², of the slots of the canonical input that are filled
    voxel_mm: tuple[float, ...]
    snr: float | None = None  #: of the b=0 image; None while nothing has been computed


def facts_of(gtab: GradientTable, voxel_mm: FloatArray, variance: float | None = None) -> Facts:
    """Of a run's table (all volumes), voxel edges and, if known, noise variance of S/S0."""
    snr = None if variance is None else float(1 / np.sqrt(max(variance, 1e-12)))
    b = tuple(filled_slots(gtab).values())
    return Facts(acquisition(gtab).directions, b, tuple(float(x) for x in voxel_mm), snr)


#: Smallest number of different directions that determine a tensor.
MIN_DIRECTIONS = 6
#: Largest condition number of the tensor's design matrix that counts as determined.
MAX_CONDITION = 1e3


def acquisition(gtab: GradientTable, has_t1w: bool = False) -> Acquisition:
    """The facts that decide what a run can give."""
    weighted = gtab[~gtab.b0]
    groups = tuple((b, n_unique(gtab.bvecs[i])) for b, i in shells(gtab.bvals))
    quadratic = tensor_design(weighted)[:, :6] / np.maximum(weighted.bvals[:, None] * 1e-3, 1e-9)
    condition = float(np.linalg.cond(quadratic)) if len(weighted) >= MIN_DIRECTIONS else np.inf
    return Acquisition(n_unique(weighted.bvecs), groups, condition, has_t1w)


def determines_tensor(facts: Acquisition) -> bool:
    """Whether six directions that differ up to sign are there, and well enough spread."""
    return facts.directions >= MIN_DIRECTIONS and facts.condition <= MAX_CONDITION
