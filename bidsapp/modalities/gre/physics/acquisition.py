"""The acquisition of a gradient-echo run: echo times, frequency, voxels, direction of B0."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bidsapp.core import Quantity
from bidsapp.problems import BadData

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bidsapp.core import FloatArray, Sample

#: MHz a tesla: γ/2π of the proton.
MHZ_PER_TESLA = 42.577
#: Shares by which a value may miss a range: voxels are what a scanner rounds to, and a nominal 3 T
#: may be 2.89.
VOXEL_SLACK, FIELD_SLACK = 0.02, 0.05
#: Of a tilt, which lies near 0 in many scans, the slack as a share says little.
TILT_SLACK = 0.02


@dataclass(frozen=True, slots=True)
class Acquisition:
    """What decides what a run can give, known from headers and metadata."""

    echo_times: tuple[float, ...]  #: s, rising; none where a finished field was given
    imaging_mhz: float  #: ppm = Hz over this
    voxel_mm: tuple[float, ...]
    direction: tuple[float, ...]  #: (3,) unit vector of B0 along the voxel axes

    @property
    def field_t(self) -> float:
        """Strength of B0 in tesla."""
        return self.imaging_mhz / MHZ_PER_TESLA

    @property
    def tilt_deg(self) -> float:
        """Angle between B0 and the voxel axis that is nearest to it."""
        return float(np.degrees(np.arccos(min(max(map(abs, self.direction)), 1.0))))

    @property
    def words(self) -> str:
        """One line for people: '5 echoes of 4 to 28 ms at 2.89 T, voxels of 1 x 1 x 2 mm, …'."""
        times = [f'{1000 * time:.3g}' for time in self.echo_times]
        if not times:
            echoes = 'a finished field'
        elif len(times) == 1:
            echoes = f'1 echo of {times[0]} ms'
        else:
            echoes = f'{len(times)} echoes of {times[0]} to {times[-1]} ms'
        return f'{echoes} at {self.field_t:.3g} T, voxels of {self._edges} mm, {self._tilted}'

    @property
    def _edges(self) -> str:
        return ' x '.join(f'{x:.3g}' for x in self.voxel_mm)

    @property
    def _tilted(self) -> str:
        return f'tilted {self.tilt_deg:.0f}° to B0'

    def quantities(self, sample: Sample | None = None) -> tuple[Quantity, ...]:
        """What models are judged by; all of it is known before the input is."""
        count = len(self.echo_times)
        found = (
            Quantity('voxel_mm', self.voxel_mm, f'voxels of this run measure {self._edges} mm',
                     slack=VOXEL_SLACK, limits='edges of {low:g} to {high:g} mm'),
            Quantity('tilt_deg', (self.tilt_deg,), f'this run is {self._tilted}', slack=TILT_SLACK,
                     limits='{low:g} to {high:g} degrees'),
            Quantity('field', (self.field_t,), f'this run was made at {self.field_t:.3g} T',
                     slack=FIELD_SLACK, limits='{low:g} to {high:g} T'),
        )  # fmt: skip
        if not count:
            return found
        return (Quantity('echoes', (float(count),), f'this run has {count} echoes'), *found)


def check_times(echo_times: Sequence[float] | FloatArray, bipolar: bool = False) -> None:
    """Raises BadData for ``echo_times`` that do not rise or are no seconds, or 2 bipolar echoes."""
    times = np.asarray(echo_times, float)
    said = ', '.join(f'{time:g}' for time in times)
    if not (np.diff(times) > 0).all() or times[0] <= 0:
        raise BadData(f'EchoTime: {said} s were found; rising positive times were expected.')
    if times[-1] >= 1:
        raise BadData(
            f'EchoTime: {said} s were found; less than 1 s was expected. BIDS has seconds: these '
            'look like milliseconds.'
        )
    if bipolar and len(times) < 3:
        raise BadData(
            f'{len(times)} bipolar echoes were found; at least 3 are needed to tell the offset of '
            'the even ones from the field.'
        )
