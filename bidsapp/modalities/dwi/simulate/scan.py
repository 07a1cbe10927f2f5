"""One person in the scanner: a dMRI run with its truth, and a T1w image."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bidsapp.modalities.dwi.physics.peaks import MAX_FIBRES
from bidsapp.modalities.dwi.simulate.artefacts import Artefacts, draw_artefacts
from bidsapp.modalities.dwi.simulate.fibres import Bundles, Fibres, fibres_at, resolve
from bidsapp.modalities.dwi.simulate.microstructure import (
    FREE_WATER,
    Microstructure,
    draw_microstructure,
    evaluate,
    fibre_coefficients,
    powers,
)
from bidsapp.modalities.dwi.simulate.protocol import DIFFUSIVITY, DWI_UNITS, S0, Protocol
from bidsapp.modalities.dwi.simulate.scheme import draw_scheme
from bidsapp.modalities.dwi.simulate.truth import Truth
from bidsapp.simulate.acquisition import averaged, rician
from bidsapp.simulate.anatomy import CSF, GM, RIM, TISSUES, WM, Head

if TYPE_CHECKING:
    from bidsapp.simulate.grids import Grid

#: Share of white matter from which a fine voxel's fibres are worked out.
SOME_WHITE = 0.02


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
