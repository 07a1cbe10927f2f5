"""One person in the scanner: a dMRI run with its truth, and a T1w image."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from bidsapp.core import MAX_FIBRES
from bidsapp.simulate.acquisition import averaged, draw_bias, draw_scheme, rician
from bidsapp.simulate.anatomy import AIR, CSF, GM, RIM, TISSUES, WM, Head
from bidsapp.simulate.artefacts import Artefacts, draw_artefacts
from bidsapp.simulate.fibres import Bundles, Fibres, fibres_at, resolve
from bidsapp.simulate.grids import Grid, moved, normal, rigid
from bidsapp.simulate.microstructure import (
    FREE_WATER,
    Microstructure,
    draw_microstructure,
    evaluate,
    fibre_coefficients,
    powers,
)
from bidsapp.simulate.truth import Truth

#: Of ``anatomy.TISSUES``: signal at b=0 (white matter = 1), diffusivity (µm²/ms; GM and WM have
#: their own), T1w intensity. Fat is suppressed in dMRI and hardly diffuses.
S0 = (1.20, 1.00, 2.30, 2.30, 0.04, 0.15, 0.40, 2.00, 0.0)
DIFFUSIVITY = (0.0, 0.0, FREE_WATER, FREE_WATER, 0.5, 0.10, 1.3, FREE_WATER, 0.0)
T1W = (0.58, 0.90, 0.18, 0.20, 0.08, 1.15, 0.50, 0.22, 0.0)
#: Scanner units of white matter: b=0 signal, and T1w intensity 1.
DWI_UNITS, T1W_UNITS = 600.0, 500.0
#: Share of white matter from which a fine voxel's fibres are worked out.
SOME_WHITE = 0.02


@dataclass(frozen=True, slots=True)
class Protocol:
    """What is asked of the scanner."""

    shells: tuple[tuple[float, int], ...] = ((1000.0, 32),)  #: (b in s/mm², directions)
    n_b0: int = 2
    snr: float = 20.0  #: mean b=0 signal of white matter over the noise's standard deviation
    fine: int = 2  #: fine voxels along the edge of a dMRI voxel
    motion_mm: float = 0.5  #: standard deviation from volume to volume, along each axis
    motion_deg: float = 0.5
    motion_walk: bool = False  #: steps add up, as those of a person do; or each is from rest
    eddy_hz: float = 6.0  #: standard deviation of the eddy field 80 mm from the isocentre
    susceptibility_hz: float = 0.0  #: largest off-resonance in the brain; 0 for none
    dropout: float = 0.0  #: share of the slices of weighted volumes that lose signal
    readout: float = 0.05  #: s, total readout time
    phase_axis: int = 1  #: voxel axis of phase encoding
    phase_sign: int = 1  #: -1 for reversed polarity
    t1w_snr: float = 25.0  #: white matter over noise


@dataclass(frozen=True, slots=True, eq=False)
class Opposite:
    """Two b=0 volumes of the opposite polarity, for a reversed pair with the run."""

    signal: Tensor  #: (2, X, Y, Z) scanner units, on the run's grid
    artefacts: Artefacts


@dataclass(frozen=True, slots=True, eq=False)
class DiffusionScan:
    """A dMRI run and its truth."""

    signal: Tensor  #: (N, X, Y, Z) scanner units
    bvecs: Tensor  #: (N, 3) world axes
    bvals: Tensor  #: (N,) s/mm²
    grid: Grid
    truth: Truth
    sigma: float  #: standard deviation of the noise in each channel, scanner units
    artefacts: Artefacts
    opposite: Opposite | None  #: where susceptibility distorts the run


def field_of_view(head: Head, axes: Tensor, voxel: float, below: float = 6.0) -> Grid:
    """The smallest grid along ``axes`` (3, 3) that holds the head, with even lengths.

    It ends ``below`` mm under the brain, along the voxel axis nearest to inferior-superior.
    """
    coarse = Grid((54, 66, 58), torch.diag(torch.tensor([4.0, 4.0, 4.0, 1.0])))
    coarse.affine[:3, 3] = -torch.tensor([106.0, 134.0, 112.0])
    device = head.affine.device
    coarse = Grid(coarse.shape, coarse.affine.to(device))
    tissues = head.tissues(coarse.points())
    axes = axes.to(device)
    position = torch.tensordot(axes.T, coarse.points(), dims=1)
    upright = int(axes[2].abs().argmax())
    up = float(axes[2, upright].sign())
    brain, solid = tissues[:3].sum(0) > 0.5, tissues[AIR] < 0.5
    floor = (up * position[upright])[brain].min() - below
    kept = position[:, solid & (up * position[upright] >= floor)]
    lowest, highest = kept.amin(1), kept.amax(1)
    lengths = [2 * int(torch.ceil((size + 4.0) / voxel / 2)) for size in highest - lowest]
    affine = torch.eye(4, device=device)
    affine[:3, :3] = axes * voxel
    middle = (lowest + highest) / 2
    half = torch.tensor([(n - 1) / 2 * voxel for n in lengths], device=device)
    affine[:3, 3] = axes @ (middle - half)
    return Grid((lengths[0], lengths[1], lengths[2]), affine)


@dataclass(frozen=True, slots=True, eq=False)
class _Specimen:
    """All that decides the signal, on the fine grid."""

    tissues: Tensor  #: (9, X, Y, Z)
    white: Tensor  #: (X, Y, Z) bool
    fibres: Fibres  #: at the voxels of ``white``
    structure: Microstructure
    polynomials: dict[float, Tensor] = field(default_factory=dict)  #: by b in s/mm²
    isotropic: dict[float, Tensor] = field(default_factory=dict)  #: by b in s/mm²

    def signal(self, b: float, g: Tensor) -> Tensor:
        """(X, Y, Z) noiseless signal at ``b`` s/mm² along ``g`` (3,), in the head's own axes."""
        if b not in self.isotropic:
            self._prepare(b)
        cosines = torch.einsum('fcv,c->fv', self.fibres.directions, g)
        spread = (self.fibres.shares * evaluate(self.polynomials[b], cosines)).sum(0)
        water = self.structure.isovf[self.white]
        free = torch.exp(water.new_tensor(-b * 1e-3 * FREE_WATER))
        volume = self.isotropic[b].clone()
        volume[self.white] += (
            S0[WM] * self.tissues[WM][self.white] * ((1 - water) * spread + water * free)
        )
        return volume

    def _prepare(self, b: float) -> None:
        ms = b * 1e-3
        total = S0[GM] * self.tissues[GM] * torch.exp(-ms * self.structure.d_gm)
        for k in range(WM + 1, len(TISSUES)):
            weight = S0[k] * torch.exp(torch.tensor(-ms * DIFFUSIVITY[k]))
            total = total + float(weight) * self.tissues[k]
        self.isotropic[b] = total
        parameters = (self.structure.icvf, self.structure.od, self.structure.d_par)
        self.polynomials[b] = powers(fibre_coefficients(ms, *(p[self.white] for p in parameters)))


def simulate_dwi(
    head: Head, bundles: Bundles, grid: Grid, protocol: Protocol, generator: torch.Generator
) -> DiffusionScan:
    """Scan ``head`` on ``grid``; the first volume is b=0, with the head at its nominal position."""
    specimen = _specimen(head, bundles, grid.refined(protocol.fine), generator)
    truth = _truth(specimen, protocol.fine)
    bvecs, bvals = draw_scheme(protocol.n_b0, protocol.shells, generator)
    strength = (bvals / bvals.max().clamp_min(1)).sqrt()[:, None]
    directions = bvecs.to(grid.affine)
    artefacts = draw_artefacts(
        head, grid, strength.to(directions) * directions, protocol, generator
    )
    volumes = []
    for v, (g, b) in enumerate(zip(directions, bvals.tolist(), strict=True)):
        # The head turns under fixed gradients, so in its own axes the gradient turns back.
        signal = specimen.signal(b, artefacts.motion[v, :3, :3].T @ g)
        volumes.append(artefacts.applied(signal, v))
    signal = DWI_UNITS * torch.stack(volumes) * artefacts.bias
    pure = truth.tissue[WM] >= 0.9 * truth.tissue[WM].max()
    sigma = float(signal[0][pure].mean()) / protocol.snr
    signal = rician(signal, sigma, generator)
    opposite = None
    if protocol.susceptibility_hz:
        other = artefacts.reversed(2, generator, protocol.motion_mm, protocol.motion_deg)
        still = specimen.signal(0.0, torch.zeros_like(directions[0]))
        both = torch.stack([other.applied(still, v) for v in range(2)])
        opposite = Opposite(rician(DWI_UNITS * both * other.bias, sigma, generator), other)
    return DiffusionScan(signal, bvecs, bvals, grid, truth, sigma, artefacts, opposite)


def _specimen(head: Head, bundles: Bundles, fine: Grid, generator: torch.Generator) -> _Specimen:
    tissues = head.tissues(fine.points())
    white = tissues[WM] > SOME_WHITE
    structure = draw_microstructure(fine.axes(), generator)
    return _Specimen(tissues, white, fibres_at(bundles, head, fine, white), structure)


def _truth(specimen: _Specimen, factor: int) -> Truth:
    """Average the fine grid's fractions, and merge its fibres, over the voxels of the run."""
    mask = averaged(specimen.tissues[:3], factor).sum(0) >= 0.5
    fluid = specimen.tissues[CSF] + specimen.tissues[RIM]
    tissue = averaged(torch.stack([*specimen.tissues[:CSF], fluid]), factor)
    structure = specimen.structure
    white = specimen.tissues[WM]
    s0 = specimen.tissues.new_tensor(S0)[:, None, None, None]
    total = (s0 * specimen.tissues).sum(0)
    # Free water is counted by signal, as a fit of the signal would.
    water = s0[WM] * white * structure.isovf + (s0 * specimen.tissues)[[CSF, RIM]].sum(0)
    weights = torch.stack([white, white * structure.icvf, white * structure.od, total, water])
    amount, icvf, od, total, water = averaged(weights, factor)
    fibrous = mask & (tissue.argmax(0) == WM)
    directions = _merged(specimen, fibrous, factor)
    amount = amount.clamp_min(1e-6)
    return Truth(
        tissue=tissue,
        mask=mask,
        directions=directions,
        icvf=icvf / amount * fibrous,
        od=od / amount * fibrous,
        isovf=water / total.clamp_min(1e-6) * mask,
    )


def _merged(specimen: _Specimen, where: Tensor, factor: int) -> Tensor:
    """(3 MAX_FIBRES, X, Y, Z) directions that count in each voxel of the run in ``where``."""
    shape = specimen.white.shape
    directions = specimen.tissues.new_zeros(MAX_FIBRES * 3, *shape)
    directions[:, specimen.white] = specimen.fibres.directions.flatten(0, 1)
    weights = specimen.tissues.new_zeros(MAX_FIBRES, *shape)
    weights[:, specimen.white] = specimen.fibres.shares * specimen.tissues[WM][specimen.white]
    candidates = blocks_of(directions, factor)[..., where]
    found, _ = resolve(
        candidates.reshape(MAX_FIBRES, 3, factor**3, -1).movedim(2, 1).flatten(0, 1),
        blocks_of(weights, factor)[..., where].flatten(0, 1),
    )
    merged = specimen.tissues.new_zeros(3 * MAX_FIBRES, *where.shape)
    merged[:, where] = found.flatten(0, 1)
    return merged


def blocks_of(volume: Tensor, factor: int) -> Tensor:
    """(C, X, Y, Z) → (C, factor³, X / factor, Y / factor, Z / factor)."""
    x, y, z = (n // factor for n in volume.shape[1:])
    split = volume.reshape(len(volume), x, factor, y, factor, z, factor)
    return split.permute(0, 2, 4, 6, 1, 3, 5).flatten(1, 3)


def draw_repositioning(
    centre: Tensor, generator: torch.Generator, sd_mm: float = 1.2, sd_deg: float = 1.2
) -> Tensor:
    """(4, 4) how the head has moved between two scans: about 2 mm and 2 degrees in all."""
    degrees = sd_deg * normal((3,), generator, centre.device)
    return rigid(degrees, sd_mm * normal((3,), generator, centre.device), centre)


def simulate_t1w(
    head: Head, grid: Grid, position: Tensor, protocol: Protocol, generator: torch.Generator
) -> Tensor:
    """(X, Y, Z) T1w image on ``grid`` of a head moved by ``position`` (4, 4); scanner units."""
    points = moved(torch.linalg.inv(position), grid.points())
    tissues = head.tissues(points)
    weight = tissues.new_tensor(T1W) * (1 + 0.03 * normal((len(T1W),), generator)).to(tissues)
    image = torch.tensordot(weight, tissues, dims=1) * draw_bias(grid, generator, 0.12)
    sigma = T1W[WM] / protocol.t1w_snr
    return T1W_UNITS * rician(image, sigma, generator)
