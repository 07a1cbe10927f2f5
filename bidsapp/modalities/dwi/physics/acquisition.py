"""The acquisition of a dMRI run: directions, shells, condition of the tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bidsapp.core import Quantity
from bidsapp.modalities.dwi.physics.gradients import B0_THRESHOLD, n_unique, tensor_design
from bidsapp.modalities.dwi.physics.qspace import filled_slots

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bidsapp.core import FloatArray, Sample
    from bidsapp.modalities.dwi.physics.gradients import GradientTable


#: Smallest number of different directions that determine a tensor.
MIN_DIRECTIONS = 6
#: Largest condition number of the tensor's design matrix that counts as determined.
MAX_CONDITION = 1e3
#: Shares by which a value may miss a range: b and voxel sizes are what a scanner rounds to.
B_SLACK, VOXEL_SLACK = 0.03, 0.02


def _count(name: str, value: int, what: str) -> Quantity:
    return Quantity(name, (float(value),), f'this run has {value} {what}')


@dataclass(frozen=True, slots=True)
class Acquisition:
    """What decides which labels a run can give, known from its gradient table and its folder."""

    directions: int  #: different directions up to sign, all shells together
    shells: tuple[tuple[float, int], ...]  #: (b in s/mm², directions) of each shell, b ascending
    condition: float  #: condition number of the tensor design matrix
    has_t1w: bool = False
    b: tuple[float, ...] = ()  #: s/mm², of the b-value bins of the canonical input that are filled
    voxel_mm: tuple[float, ...] = ()
    b0_threshold: float = B0_THRESHOLD  #: s/mm², the greatest b that counts as b = 0

    @property
    def words(self) -> str:
        """One line for people: '64 directions at b=1000, T1w'."""
        shells = ', '.join(f'{n} directions at b={b:.0f}' for b, n in self.shells)
        return f'{shells}{", T1w" if self.has_t1w else ", no T1w"}'

    def quantities(self, sample: Sample | None = None) -> tuple[Quantity, ...]:
        """What models are judged by; the noise is known once the input ``sample`` is."""
        edges = ' x '.join(f'{x:.3g}' for x in self.voxel_mm)
        found = [
            _count('directions', self.directions, 'different directions'),
            _count('shells', len(self.b), 'ranges of b in use'),
            Quantity('voxel_mm', self.voxel_mm, f'voxels of this run measure {edges} mm',
                     slack=VOXEL_SLACK, limits='edges of {low:g} to {high:g} mm'),
        ]  # fmt: skip
        if sample is not None and 'noise_variance' in sample.context:
            snr = float(1 / np.sqrt(max(float(sample.context['noise_variance']), 1e-12)))
            words = f'the signal-to-noise ratio of this run is about {snr:.1f}'
            found.append(Quantity('snr', (snr,), words, upper=False, limits='{low:g} or more'))
        words = 'this run has b={value:.0f} s/mm2'
        return (*found, Quantity('b', self.b, words, slack=B_SLACK, each=True))

    @property
    def best_shell(self) -> tuple[float, int]:
        """(b, directions) of the shell best suited to resolve fibres.

        Most directions, up to the 45 that harmonics of order 8 need; among equals the highest b.
        """
        return max(self.shells, key=lambda shell: (min(shell[1], 45), shell[0]), default=(0.0, 0))


def acquisition(
    gtab: GradientTable, has_t1w: bool = False, voxel_mm: Sequence[float] | FloatArray = ()
) -> Acquisition:
    """The facts that decide what a run can give: of its table (all volumes) and voxel edges."""
    weighted = gtab[~gtab.b0]
    groups = tuple((b, n_unique(gtab.bvecs[i])) for b, i in gtab.shells())
    quadratic = tensor_design(weighted)[:, :6] / np.maximum(weighted.bvals[:, None] * 1e-3, 1e-9)
    condition = float(np.linalg.cond(quadratic)) if len(weighted) >= MIN_DIRECTIONS else np.inf
    return Acquisition(
        n_unique(weighted.bvecs), groups, condition, has_t1w,
        b=tuple(filled_slots(gtab).values()), voxel_mm=tuple(float(x) for x in voxel_mm),
        b0_threshold=gtab.b0_threshold,
    )  # fmt: skip


def determines_tensor(facts: Acquisition) -> bool:
    """Whether six directions that differ up to sign are there, and well enough spread."""
    return facts.directions >= MIN_DIRECTIONS and facts.condition <= MAX_CONDITION
