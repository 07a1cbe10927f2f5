"""The acquisition of raw k-space: coils, matrix, which of the lines were measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bidsapp.core import Quantity
from bidsapp.problems import Unavailable

if TYPE_CHECKING:
    from bidsapp.core import Sample

#: Share by which voxels may miss a range, for they are what a scanner rounds to.
VOXEL_SLACK = 0.02


@dataclass(frozen=True, slots=True)
class Acquisition:
    """What decides what a scan can give, known from headers."""

    coils: int
    matrix: tuple[int, ...]  #: X, Y of slices, or X, Y, Z of a slab, as measured
    slices: int  #: 1 of a slab
    acceleration: float  #: all lines over measured ones; of what is reconstructed
    calibration: tuple[int, ...]  #: lines about the origin that make maps, by direction
    voxel_mm: tuple[float, ...]
    pattern: str = ''  #: which lines were measured, in words
    retrospective: bool = False  #: lines of a full scan are left out afterwards

    @property
    def full(self) -> bool:
        """Whether every line is there, and nothing to reconstruct."""
        return self.acceleration <= 1

    @property
    def words(self) -> str:
        """One line for people: '8 coils, 256 x 256, 30 slices, R = 4, 24 calibration lines'."""
        size = ' x '.join(str(n) for n in self.matrix)
        slices = f', {self.slices} slice{"s" * (self.slices > 1)}' if len(self.matrix) < 3 else ''
        coils = f'{self.coils} coil{"s" * (self.coils > 1)}, {size}{slices}'
        if self.full:
            return f'{coils}, every line measured'
        lines = ' x '.join(str(n) for n in self.calibration)
        after = ' afterwards' if self.retrospective else ''
        return f'{coils}, R = {self.acceleration:.3g}{after}, {lines} calibration lines'

    def quantities(self, sample: Sample | None = None) -> tuple[Quantity, ...]:
        """What models are judged by; all of it is known before the input is."""
        edges = ' x '.join(f'{x:.3g}' for x in self.voxel_mm)
        return (
            Quantity('acceleration', (self.acceleration,),
                     f'this run has R = {self.acceleration:.3g}',
                     limits='R of {low:g} to {high:g}'),
            Quantity('coils', (float(self.coils),), f'this run has {self.coils} coils',
                     limits='{low:g} to {high:g} coils'),
            Quantity('voxel_mm', self.voxel_mm[:2], f'voxels of this run measure {edges} mm',
                     slack=VOXEL_SLACK, limits='edges of {low:g} to {high:g} mm'),
        )  # fmt: skip


def require_lines_left_out(acquisition: Acquisition) -> None:
    """Raises Unavailable where nothing is to be reconstructed."""
    if acquisition.full:
        raise Unavailable(
            'every line was measured, and the image of them all is the reference; --undersample R '
            'leaves lines out afterwards'
        )
