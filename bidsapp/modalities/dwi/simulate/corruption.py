"""What happens to a block's signal on its way to the network: drawn first, then applied.

The network stands after motion correction, so displacement comes mostly at the size that a
correction leaves, a tenth; sometimes in full, and in one scan of five there is none at all, nor
noise. The volumes without weighting, to which all others are aligned across another contrast, may
lie up to a millimetre away. Half of all scans have little noise or none. Susceptibility distortion,
which nobody can undo without a second polarity, is not among them: it would stand in input and
target alike.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bidsapp.modalities.dwi.physics.harmonics import harmonics_at, largest_order
from bidsapp.modalities.dwi.physics.qspace import SLOTS
from bidsapp.modalities.dwi.simulate.reconstruction import (
    draw_components,
    draw_measured,
    kept_by_components,
    ringing,
)
from bidsapp.modalities.dwi.simulate.scheme import draw_dropout, draw_eddy, eddy_shift
from bidsapp.simulate.acquisition import displaced, draw_bias, draw_motion
from bidsapp.simulate.grids import Grid, blurred, chance, normal, rigid, uniform

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: What training never draws, to see later whether it carries over: numbers of directions, b; and
#: directions of a half sphere only.
HELD_OUT_NUMBERS, HELD_OUT_B = range(21, 26), (1330.0, 1470.0)
#: Chance that a scan is not corrupted; that its displacements are those of a raw scan.
UNCORRUPTED, RAW = 0.2, 0.1
#: Most that the gain varies from volume to volume (standard deviation).
GAIN = 0.02
#: What motion and eddy-current correction leaves.
LEFT = 0.1
#: mm and degrees by which the b = 0 volumes lie elsewhere, at most, and the chance that they do.
B0_AWAY, B0_TURNED, B0_ELSEWHERE = 1.0, 0.5, 0.5
#: Signal-to-noise ratio of white matter at b = 0, and that of scans with little noise.
SNR, HIGH_SNR, QUIET = (6.0, 40.0), (40.0, 200.0), 0.4


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """A scheme in the axes of the grid: ``bvecs`` (N, 3), ``bvals`` (N,) s/mm²."""

    bvecs: Tensor
    bvals: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Corruption:
    """All that spoils the N volumes of one scan on a grid (X, Y, Z)."""

    motion: Tensor  #: (N, 4, 4) rigid, mm in the axes of the grid, about its middle
    shift: Tensor | None  #: (N, X, Y, Z) voxels along ``phase_axis``
    phase_axis: int
    kept: Tensor  #: (N, Z) factor of the signal of each slice: dropout, and drifts of the gain
    ghost: float  #: share of the signal that comes again half a field of view away
    bias: Tensor  #: (X, Y, Z)
    sigma: float  #: of the noise in each channel, in units of the signal
    interpolation_smoothing: Tensor | None  #: (3,) voxels by which an interpolation has mixed the
    #: noise of neighbours
    noise_correlation: tuple[float, ...]  #: share of neighbours in the noise along each axis, where
    #: the reconstruction is on a finer grid than the acquisition was
    noise_after_denoising: float  #: share of the noise that denoising has left
    components: int  #: principal components of the volumes in which it has left noise
    measured: tuple[float, ...]  #: share of the frequencies along each axis, the rest zero-filled

    @property
    def none(self) -> bool:
        """Nothing is spoilt."""
        return self.sigma == 0

    @property
    def undone(self) -> Corruption:
        """The same scan with nothing spoilt; the sensitivity stays, as it does in S/S0."""
        still = torch.eye(4).to(self.motion).expand_as(self.motion)
        return replace(self, motion=still, sigma=0.0)


def spread_directions(n: int, generator: torch.Generator, even: bool, half: bool = False) -> Tensor:
    """(n, 3) unit vectors: drawn at random, or pushed apart as charges and their antipodes."""
    u = normal((n, 3), generator)
    u = u / u.norm(dim=1, keepdim=True)
    for _ in range(60 if even else 3):
        both = torch.cat([u, -u])
        offset = u[:, None] - both[None]
        distance = offset.norm(dim=2).clamp_min(1e-3)
        force = (offset / distance[..., None] ** 3).sum(1)
        u = u + 0.4 / n * force / force.norm(dim=1).mean().clamp_min(1e-6) * n**0.5
        u = u / u.norm(dim=1, keepdim=True)
    if half:
        u = u * torch.where(u[:, 2:] < 0, -1.0, 1.0)
    return u


def draw_table(generator: torch.Generator) -> Table:
    """One to three shells of 6 to 100 directions, b from 700 to 3300, one to six b=0 volumes."""
    shells = 1 + chance(0.5, generator) + chance(0.2, generator)
    most = (100, 60, 45)[shells - 1]
    vectors, values = [], []
    for shell in range(shells):
        n = round(6 * (most / 6) ** uniform(0, 1, generator))
        while n in HELD_OUT_NUMBERS:
            n = round(6 * (most / 6) ** uniform(0, 1, generator))
        b = _draw_b(shell, shells, generator)
        while HELD_OUT_B[0] < b < HELD_OUT_B[1]:
            b = _draw_b(shell, shells, generator)
        vectors.append(spread_directions(n, generator, chance(0.8, generator)))
        values.append(torch.full((n,), round(b / 10) * 10.0))
    return with_b0(vectors, values, generator)


def with_b0(
    vectors: Sequence[Tensor], values: Sequence[Tensor], generator: torch.Generator
) -> Table:
    """Shells of directions (n, 3) and b (n,) after one to six b=0 volumes."""
    n_b0 = int(uniform(1, 7, generator))
    bvecs = torch.cat([torch.zeros(n_b0, 3), *vectors])
    return Table(bvecs, torch.cat([torch.zeros(n_b0), *values]))


def _draw_b(shell: int, shells: int, generator: torch.Generator) -> float:
    """b of one of ``shells``: often 1000 where it is alone, else one from each range of b."""
    if shells == 1:
        if chance(0.35, generator):
            return 1000.0
        return float(700 * (3300 / 700) ** uniform(0, 1, generator))
    each = [uniform(low, high, generator) for low, high in SLOTS]
    return each[shell + (shells == 2 and chance(0.4, generator))]


def draw_corruption(
    grid: Grid, table: Table, white: float, generator: torch.Generator
) -> Corruption:
    """Artefacts of a scan whose white matter has the signal ``white`` at b=0."""
    n, device = len(table.bvals), grid.affine.device
    still = torch.eye(4, device=device).expand(n, 4, 4)
    one = torch.ones(n, grid.shape[2], device=device)
    bias = draw_bias(grid, generator, 0.2)
    if chance(UNCORRUPTED, generator):
        return Corruption(
            still, None, 1, one, 0.0, bias, 0.0, None, (0.0,) * 3, 1.0, n,
            (1.0,) * 3,
        )  # fmt: skip
    size = 1.0 if chance(RAW, generator) else LEFT * uniform(0, 2, generator)
    middle = (torch.tensor(grid.shape) - 1) / 2 * torch.tensor(grid.spacing)
    motion = draw_motion(
        n, middle, generator, size * uniform(0.2, 1.5, generator),
        size * uniform(0.2, 1.5, generator), chance(0.2, generator),
    ).to(device)  # fmt: skip
    if chance(B0_ELSEWHERE, generator):
        motion = motion.clone()
        motion[table.bvals == 0] = _elsewhere(middle, generator).to(device) @ motion[0]
    axis = int(uniform(0, 2, generator))
    strength = (table.bvals / table.bvals.max()).sqrt()[:, None] * table.bvecs
    hz = torch.stack([
        field @ g for field, g in zip(draw_eddy(n, generator, 12.0), strength, strict=True)
    ])  # fmt: skip
    points = torch.stack(torch.meshgrid(*grid.axes(), indexing='ij'))
    offset = points - middle.to(points)[:, None, None, None]
    shift = eddy_shift(offset, hz.to(points), size * 0.06)
    kept = one
    if chance(0.3, generator):
        kept = draw_dropout(table.bvals > 0, grid.shape[2], uniform(0, 0.03, generator), generator)
    if chance(0.5, generator):
        kept = kept * (1 + uniform(0, GAIN, generator) * normal((n, 1), generator)).to(kept.device)
    low, high = HIGH_SNR if chance(QUIET, generator) else SNR
    snr = low * (high / low) ** uniform(0, 1, generator)
    denoised = chance(0.4, generator)
    interpolated = chance(0.5, generator)
    return Corruption(
        motion=motion,
        shift=shift,
        phase_axis=axis,
        kept=kept.to(device),
        ghost=uniform(0, 0.1, generator) if chance(0.2, generator) else 0.0,
        bias=bias,
        sigma=white / snr,
        interpolation_smoothing=0.5 * torch.rand(3, generator=generator) if interpolated else None,
        noise_correlation=_draw_noise_correlation(generator),
        noise_after_denoising=uniform(0.3, 0.8, generator) if denoised else 1.0,
        components=draw_components(n, generator) if denoised else n,
        measured=draw_measured(generator),
    )


def _elsewhere(middle: Tensor, generator: torch.Generator) -> Tensor:
    """(4, 4) a rigid motion about ``middle`` of up to B0_AWAY and B0_TURNED along some axis."""
    shift, turn = (F.normalize(normal((3,), generator), dim=0) for _ in range(2))
    return rigid(
        B0_TURNED * uniform(0, 1, generator) * turn, B0_AWAY * uniform(0, 1, generator) * shift,
        middle,
    )  # fmt: skip


def _draw_noise_correlation(generator: torch.Generator) -> tuple[float, ...]:
    """Noise correlation along each axis: in half of the scans, mostly in two of the axes."""
    if chance(0.5, generator):
        return (0.0, 0.0, 0.0)
    through = int(uniform(0, 3, generator)) if chance(0.7, generator) else 3
    return tuple(0.0 if k == through else uniform(0, 0.3, generator) for k in range(3))


def corrupted(
    volumes: Tensor, corruption: Corruption, grid: Grid, generator: torch.Generator
) -> Tensor:
    """What the scanner gives for the true ``volumes`` (N, X, Y, Z) ≥ 0 of a head at rest."""
    if corruption.none:
        return volumes * corruption.bias
    moving = turned_all(volumes, corruption.motion, grid)
    if corruption.shift is not None:
        moving = displaced(moving, corruption.shift, corruption.phase_axis + 1)
    moving = moving * corruption.kept[:, None, None, :]
    if corruption.ghost:
        half = grid.shape[corruption.phase_axis] // 2
        moving = moving + corruption.ghost * moving.roll(half, corruption.phase_axis + 1)
    moving = ringing(moving * corruption.bias, corruption.measured)
    real, imaginary = (
        corruption.sigma * _correlated(normal(moving.shape, generator, moving.device), corruption)
        for _ in range(2)
    )
    seen = torch.hypot(moving + real, imaginary)
    if corruption.noise_after_denoising == 1:
        return seen
    # Denoising takes away what differs from the expected magnitude; its floor stays.
    expected = torch.hypot(moving, torch.full_like(moving, corruption.sigma))
    left = kept_by_components(seen - expected, expected, corruption.components)
    if corruption.components < len(left):  # all noise in these components stays
        return expected + left
    return expected + corruption.noise_after_denoising * left


def _correlated(noise: Tensor, corruption: Corruption) -> Tensor:
    """``noise`` (N, X, Y, Z) of unit variance with noise correlation and interpolation smoothing.

    A scan that is reconstructed on a finer grid than it was acquired on has noise that neighbours
    share; its variance is what it is there. Interpolation, in the correction, lowers it.
    """
    for _ in range(2):
        noise = blurred(noise, corruption.noise_correlation)
    for share in corruption.noise_correlation:
        noise = noise / kept_deviation(share)
    if corruption.interpolation_smoothing is not None:
        for axis, share in enumerate(corruption.interpolation_smoothing.tolist(), start=1):
            noise = (1 - share) * noise + share * noise.roll(1, axis)
    return noise


def kept_deviation(share: float) -> float:
    """Standard deviation of white noise after two passes of [a, 1 - 2a, a]."""
    once = np.array([share, 1 - 2 * share, share])
    return float(np.sqrt(np.square(np.convolve(once, once)).sum()))


def turned_all(volumes: Tensor, motion: Tensor, grid: Grid) -> Tensor:
    """Each of ``volumes`` (N, X, Y, Z) after the head has moved by its ``motion`` (N, 4, 4).

    ``motion`` is in mm along the grid's own axes from its first voxel.
    """
    scale = torch.diag(torch.tensor([*grid.spacing, 1.0])).to(motion)
    back = torch.linalg.inv(scale) @ torch.linalg.inv(motion) @ scale
    half = (torch.tensor(grid.shape) - 1) / 2
    frame = torch.eye(4)
    frame[:3, :3], frame[:3, 3] = torch.diag(half), half
    frame = frame.to(motion)
    theta = (torch.linalg.inv(frame) @ back @ frame)[:, :3]
    # grid_sample names the last axis first.
    theta = torch.cat([theta[:, :, :3].flip(1, 2), theta[:, :, 3:].flip(1)], dim=2)
    where = F.affine_grid(theta, [len(volumes), 1, *grid.shape], align_corners=True)
    moved = F.grid_sample(volumes[:, None], where, padding_mode='border', align_corners=True)
    return moved[:, 0]


def true_volumes(
    harmonics: Mapping[float, Tensor], s0: Tensor, table: Table, motion: Tensor
) -> Tensor:
    """(N, X, Y, Z) signal of a head whose voxels rest while it turns under the gradients.

    ``harmonics`` (K, X, Y, Z) by b in s/mm²; the gradient turns back in the head's own axes.
    """
    volumes = s0.new_zeros(len(table.bvals), *s0.shape)
    volumes[table.bvals == 0] = s0
    seen = torch.einsum('nji,nj->ni', motion[:, :3, :3], table.bvecs.to(motion))
    for b, coefficients in harmonics.items():
        members = table.bvals == b
        at = harmonics_at(seen[members].T, largest_order(len(coefficients)))
        volumes[members] = torch.tensordot(at.T, coefficients, dims=1)
    return volumes.clamp_min(0)
