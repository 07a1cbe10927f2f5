"""A multi-echo gradient-echo scan of a head, from its susceptibility, with the truth behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bidsapp.modalities.gre.physics.dipole import b0_direction, dipole
from bidsapp.modalities.gre.simulate.matter import Matter, matter_of
from bidsapp.simulate.acquisition import averaged, draw_bias
from bidsapp.simulate.grids import Grid, normal, smooth_field

if TYPE_CHECKING:
    from bidsapp.simulate.anatomy import Head

#: Voxels of the scan around its field of view in which sources still count.
AROUND = 8


@dataclass(frozen=True, slots=True)
class Protocol:
    """How a scan is made."""

    echo_times: tuple[float, ...] = (0.004, 0.010, 0.016, 0.022, 0.028)  #: s
    imaging_mhz: float = 123.25
    snr: float = 80.0  #: of white matter at TE = 0, magnitude over the noise of one channel
    fine: int = 2  #: voxels of the finer grid, on which all is worked out, along a scanned one
    bipolar: bool = False  #: even echoes are read backwards
    unexplained: float = 0.0  #: field that no χ explains, of the local field's spread
    sign: int = 1  #: -1 on scanners that count phase the other way


@dataclass(frozen=True, slots=True, eq=False)
class GradientEchoScan:
    """A scan and its truth, (X, Y, Z) on ``grid``."""

    signal: Tensor  #: (E, X, Y, Z) complex, with noise
    grid: Grid
    protocol: Protocol
    chi: Tensor  #: ppm relative to water, mean over a voxel
    total: Tensor  #: field, ppm of B0, up to a constant
    local: Tensor  #: field of the sources in ``brain`` less their mean, ppm
    r2star: Tensor  #: 1/s
    brain: Tensor  #: bool
    sigma: float  #: standard deviation of the noise in each channel


def simulate_scan(
    head: Head, grid: Grid, protocol: Protocol, generator: torch.Generator
) -> GradientEchoScan:
    """Scan ``head`` on ``grid``.

    Matter, field and signal live on a grid that is finer, so that a voxel dephases from within; it
    is wider too, and beyond it there is air.
    """
    factor = protocol.fine
    wide = _widened(grid, AROUND).refined(factor)
    matter = matter_of(head, wide, generator)
    b = b0_direction(wide.affine.double().numpy()).tolist()
    field_of = dipole(wide.shape, wide.spacing, b)
    # Zeros, with which a grid is enlarged, are air.
    air = float(matter.chi.max())
    total = field_of(matter.chi - air)
    inside = (matter.brain > 0.5).to(total)
    mean = (matter.chi * inside).sum() / inside.sum()
    local = field_of((matter.chi - mean) * inside)
    if protocol.unexplained:
        total = total + _unexplained(wide, inside, protocol.unexplained * local, generator)
    cut = tuple(slice(AROUND * factor, -AROUND * factor) for _ in range(3))
    total, local = total[cut], local[cut]
    fine = Matter(*(getattr(matter, name)[cut] for name in Matter.__slots__))
    total = total - total[fine.brain > 0.5].mean()
    signal = _echoes(fine, total, grid, protocol, generator)
    maps = torch.stack([fine.chi, total, local, fine.r2star, fine.brain])
    chi, total, local, r2star, brain = averaged(maps, factor)
    level = float(
        (signal[0].abs() * torch.exp(r2star * protocol.echo_times[0]))[brain > 0.9].mean()
    )
    sigma = level / protocol.snr
    noise = sigma * torch.complex(
        *(normal(signal.shape, generator, signal.device) for _ in range(2))
    )
    return GradientEchoScan(
        signal + noise, grid, protocol, chi, total, local, r2star, brain >= 0.5, sigma
    )


def _widened(grid: Grid, voxels: int) -> Grid:
    affine = grid.affine.clone()
    affine[:3, 3] -= voxels * affine[:3, :3].sum(1)
    x, y, z = (n + 2 * voxels for n in grid.shape)
    return Grid((x, y, z), affine)


def _unexplained(grid: Grid, inside: Tensor, local: Tensor, generator: torch.Generator) -> Tensor:
    """(X, Y, Z) a random field as spread in the brain as ``local`` is, smooth over 3 mm."""
    texture = smooth_field(grid.axes(), 3.0, 1, generator)[0] * inside
    return texture * local[inside > 0].std() / texture[inside > 0].std()


def _echoes(
    matter: Matter, field: Tensor, grid: Grid, protocol: Protocol, generator: torch.Generator
) -> Tensor:
    """(E, X, Y, Z) complex: means over the scan's voxels of the finer signal, without noise."""
    radians = 2 * torch.pi * protocol.imaging_mhz * field  # a second
    echoes = []
    for time in protocol.echo_times:
        size, turn = matter.density * torch.exp(-time * matter.r2star), time * radians
        parts = averaged(torch.stack([size * turn.cos(), size * turn.sin()]), protocol.fine)
        echoes.append(torch.complex(*parts))
    signal = torch.stack(echoes)
    # Of coils: a phase at TE = 0, and a sensitivity.
    axes = grid.axes()
    offset = 1.0 + 1.5 * smooth_field(axes, 70.0, 1, generator)[0]
    signal = signal * torch.polar(draw_bias(grid, generator), offset)
    if protocol.bipolar:
        ramp = torch.linspace(-1.2, 1.2, grid.shape[0])[:, None, None].expand(grid.shape)
        signal[1::2] *= torch.polar(torch.ones_like(ramp), ramp)
    return signal if protocol.sign > 0 else signal.conj().resolve_conj()
