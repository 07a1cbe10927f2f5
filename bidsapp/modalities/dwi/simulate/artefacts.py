"""What spoils a run between the head and its images: drawn, applied, and kept as truth."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from bidsapp.modalities.dwi.simulate.distortion import draw_off_resonance
from bidsapp.modalities.dwi.simulate.scheme import draw_dropout, draw_eddy, eddy_shift
from bidsapp.simulate.acquisition import averaged, displaced, draw_bias, draw_motion, pushed, turned
from bidsapp.simulate.grids import Grid, moved

if TYPE_CHECKING:
    from torch import Tensor

    from bidsapp.modalities.dwi.simulate.protocol import Protocol
    from bidsapp.simulate.anatomy import Head

#: What counts among ``anatomy.TISSUES`` as brain: grey and white matter and ventricles.
BRAIN = slice(0, 3)


@dataclass(frozen=True, slots=True, eq=False)
class Artefacts:
    """Displacement and loss of signal in the N volumes of a run on ``grid``.

    The head carries its off-resonance along when it moves; eddy currents stay in the scanner.
    """

    grid: Grid
    factor: int  #: fine voxels along the edge of a voxel of ``grid``
    motion: Tensor  #: (N, 4, 4) rigid, world mm: from the head in the first volume to each
    eddy: Tensor  #: (N, 4) Hz at the middle of the grid, then Hz/mm along world x, y, z
    hz: Tensor | None  #: off-resonance by susceptibility on the fine grid, head as in the first
    dropout: Tensor  #: (N, Z) factor of the signal of each slice along the third axis; 1 is whole
    phase_axis: int  #: voxel axis
    seconds: float  #: total readout time, negative for a reversed polarity
    bias: Tensor  #: (X, Y, Z) receive sensitivity, which stays in the scanner

    def applied(self, signal: Tensor, volume: int) -> Tensor:
        """(X, Y, Z) what is seen of the ``signal`` (fine grid) of a head at rest; bias aside."""
        fine, motion, hz = self.grid.refined(self.factor), self.motion[volume], self.hz
        if not torch.equal(motion, torch.eye(4).to(motion)):
            signal = turned(signal, fine, motion)
            hz = None if hz is None else turned(hz, fine, motion)
        rate, axis = self.seconds * self.factor, self.phase_axis
        shift = None
        if self.eddy[volume].any():
            points = fine.points()
            offset = points - points.flatten(1).mean(1)[:, None, None, None]
            shift = eddy_shift(offset, self.eddy[volume], rate)
        if hz is not None:
            signal = pushed(signal, hz * rate if shift is None else hz * rate + shift, axis)
        elif shift is not None:
            signal = displaced(signal, shift, axis)
        return averaged(signal[None], self.factor)[0] * self.dropout[volume]

    @property
    def off_resonance(self) -> Tensor:
        """(X, Y, Z) Hz by susceptibility, with the head as in the first volume."""
        if self.hz is None:
            return self.motion.new_zeros(self.grid.shape)
        return averaged(self.hz[None], self.factor)[0]

    @property
    def displacement(self) -> Tensor:
        """(X, Y, Z) voxels along the phase axis by susceptibility, as in `physics.distortion`."""
        return self.seconds * self.off_resonance

    def found_at(self, volume: int) -> Tensor:
        """(3, X, Y, Z) world mm where each voxel of the undistorted first volume is seen."""
        points = self.grid.points()
        middle = points.flatten(1).mean(1)[:, None, None, None]
        places = moved(self.motion[volume], points)
        shift = self.displacement + eddy_shift(places - middle, self.eddy[volume], self.seconds)
        return places + self.grid.affine[:3, self.phase_axis, None, None, None] * shift

    def reversed(
        self, n: int, generator: torch.Generator, sd_mm: float, sd_deg: float
    ) -> Artefacts:
        """Those of ``n`` b=0 volumes of the opposite polarity, all of which have moved."""
        centre = self.grid.points().flatten(1).mean(1)
        return replace(
            self,
            motion=draw_motion(n + 1, centre, generator, sd_mm, sd_deg)[1:],
            eddy=self.eddy.new_zeros(n, 4),
            dropout=self.dropout.new_ones(n, self.grid.shape[2]),
            seconds=-self.seconds,
        )


def draw_artefacts(
    head: Head, grid: Grid, gradients: Tensor, protocol: Protocol, generator: torch.Generator
) -> Artefacts:
    """Artefacts of a run with ``gradients`` (N, 3) sqrt(b / b_max) g in world axes.

    What ``protocol`` leaves out draws no random numbers, and the rest is drawn first.
    """
    n, slices, fine = len(gradients), grid.shape[2], grid.refined(protocol.fine)
    centre = fine.points().flatten(1).mean(1)
    steps = (protocol.motion_mm, protocol.motion_deg, protocol.motion_walk)
    motion = draw_motion(n, centre, generator, *steps)
    eddy = draw_eddy(n, generator, protocol.eddy_hz).to(gradients)
    bias = draw_bias(grid, generator)
    hz, dropout = None, gradients.new_ones(n, slices)
    if protocol.susceptibility_hz:
        hz = draw_off_resonance(head, fine, generator)
        brain = head.tissues(fine.points())[BRAIN].sum(0) > 0.5
        hz = hz * (protocol.susceptibility_hz / hz[brain].abs().max())
    if protocol.dropout:
        weighted = gradients.any(1)
        dropout = draw_dropout(weighted, slices, protocol.dropout, generator).to(gradients)
    return Artefacts(
        grid=grid,
        factor=protocol.fine,
        motion=motion,
        eddy=torch.stack([one @ g for one, g in zip(eddy, gradients, strict=True)]),
        hz=hz,
        dropout=dropout,
        phase_axis=protocol.phase_axis,
        seconds=protocol.readout * protocol.phase_sign,
        bias=bias,
    )
