"""A training example: a block scanned, made canonical, and with the truth of every task."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from bidsapp.modalities.dwi.physics import qspace
from bidsapp.modalities.dwi.physics.gradients import GradientTable
from bidsapp.modalities.dwi.physics.noise import map_noise
from bidsapp.modalities.dwi.simulate.blocks import fractions_of
from bidsapp.modalities.dwi.simulate.corruption import corrupted, true_volumes
from bidsapp.modalities.dwi.simulate.model_mismatch import with_model_mismatch
from bidsapp.modalities.dwi.simulate.tissue_parameters import (
    parameters,
    signal_at_rest,
    signal_harmonics,
)
from bidsapp.simulate.anatomy import GM, WM
from bidsapp.simulate.grids import blurred
from bidsapp.simulate.material import Scan

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from torch import Tensor

    from bidsapp.modalities.dwi.simulate.blocks import Block
    from bidsapp.modalities.dwi.simulate.corruption import Corruption, Table
    from bidsapp.modalities.dwi.simulate.model_mismatch import ModelMismatch
    from bidsapp.modalities.dwi.simulate.tissue_parameters import TissueParameters


@dataclass(frozen=True, slots=True, eq=False)
class DwiScan(Scan):
    """A canonical input and the truth behind it, with the gradient table that it was seen by."""

    table: Table = field(kw_only=True)


def clean_harmonics(
    harmonics: Mapping[float, Tensor], s0: Tensor, b_of_slot: Mapping[int, float]
) -> Tensor:
    """(slots · N_SH, X, Y, Z) the canonical harmonics that an endless noiseless scan would give."""
    clean = s0.new_zeros(len(qspace.SLOTS) * qspace.N_SH, *s0.shape)
    for slot, b in b_of_slot.items():
        values = harmonics[b][: qspace.N_SH] / s0.clamp_min(1e-6)
        mean, spread = qspace.standard(b)
        values[0] -= mean * (4 * torch.pi) ** 0.5
        first = slot * qspace.N_SH
        clean[first : first + qspace.N_SH] = (
            values / torch.tensor(spread).to(values)[:, None, None, None]
        )
    return clean


def canonical(
    volumes: Tensor, table: Table, mask: Tensor, spacing: Sequence[float]
) -> tuple[Tensor, GradientTable]:
    """The canonical input (N_CHANNELS, X, Y, Z) of ``volumes`` (N, X, Y, Z), and their table."""
    gtab = GradientTable(table.bvecs.double().numpy(), table.bvals.double().numpy())
    s0 = volumes[table.bvals == 0].mean(0)
    floor = 1e-3 * float(s0[mask].median()) + 1e-12
    relative = (volumes / s0.clamp_min(floor)).cpu().numpy()
    attenuation = relative[~gtab.b0].clip(0, 1.5)
    brain = mask.cpu().numpy()
    variance = map_noise(attenuation, brain, gtab[~gtab.b0], relative[gtab.b0])
    image = qspace.canonical_channels(
        attenuation, s0.cpu().numpy(), brain, gtab, variance, np.array(spacing)
    )
    return torch.from_numpy(image), gtab


@dataclass(frozen=True, slots=True, eq=False)
class ScanParameters:
    """Sampled parameters: all that a scan of a block follows from; noise, from the generator."""

    block: Block
    tissue_parameters: TissueParameters
    table: Table
    corruption: Corruption
    model_mismatch: ModelMismatch
    generator: torch.Generator

    def signal(self, b: float) -> Tensor:
        """(K, X, Y, Z) harmonics of the uncorrupted signal at ``b`` s/mm²."""
        at_rest = signal_at_rest(self.block, self.tissue_parameters)
        harmonics = signal_harmonics(self.block, self.tissue_parameters, b)
        return with_model_mismatch(harmonics, at_rest, b, self.model_mismatch)

    @property
    def s0(self) -> Tensor:
        """(X, Y, Z) the uncorrupted signal at b=0."""
        return blurred(signal_at_rest(self.block, self.tissue_parameters), self.model_mismatch.blur)


def acquired(drawn: ScanParameters, harmonics: Mapping[float, Tensor]) -> Tensor:
    """(N, X, Y, Z) the volumes that the scanner gives; ``harmonics`` of the signal at each b."""
    volumes = true_volumes(harmonics, drawn.s0, drawn.table, drawn.corruption.motion)
    return corrupted(volumes, drawn.corruption, drawn.block.grid, drawn.generator)


def scan_block(drawn: ScanParameters) -> DwiScan:
    """Scan a block and tell the truth."""
    block, table = drawn.block, drawn.table
    harmonics = {float(b): drawn.signal(float(b)) for b in table.bvals.unique() if b > 0}
    volumes = acquired(drawn, harmonics)
    image, gtab = canonical(volumes, table, block.mask, block.grid.spacing)
    slots = qspace.filled_slots(gtab)
    # Shells that lie close together stand in the canonical input as one, at their mean b.
    for b in slots.values():
        if b not in harmonics:
            harmonics[b] = drawn.signal(b)
    clean = clean_harmonics(harmonics, drawn.s0, slots).to(image)
    truth = truth_of(block, drawn.tissue_parameters, image, clean, slots)
    spacing = tuple(block.grid.spacing)
    return DwiScan(image, block.mask[None].cpu(), truth, spacing, table=table)


def correction_to(clean: Tensor, image: Tensor, mask: Tensor, slots: Collection[int]) -> Tensor:
    """(87, X, Y, Z) what task restore shall say of ``image``, whose clean harmonics are known."""
    filled = torch.stack([mask & (slot in slots) for slot in range(len(qspace.SLOTS))]).float()
    wanted = (clean - qspace.input_harmonics(image)) * filled.repeat_interleave(qspace.N_SH, 0)
    return torch.cat([wanted, filled])


def truth_of(
    block: Block,
    tissue_parameters: TissueParameters,
    image: Tensor,
    clean: Tensor,
    slots: Mapping[int, float],
) -> dict[str, Tensor]:
    """What is known of a block, zero outside the brain.

    ``tissue`` fractions (3, X, Y, Z), ``fibres`` (9, …) unit vectors, strongest first,
    ``microstructure`` (3, …) icvf, od, isovf, negative where it cannot be known, ``correction``
    (87, …) of the input's harmonics, ``brain`` (X, Y, Z).
    """
    mask = block.mask.cpu()
    fractions = fractions_of(block.tissues).cpu() * mask
    structure = parameters(block, tissue_parameters).cpu()
    # One shell does not tell density from dispersion; and fluid has neither.
    if len(slots) < 2:
        structure = torch.full_like(structure, -1.0)
    neurites = (block.tissues[[GM, WM]].sum(0) > 0.2).cpu()
    structure[:2, ~neurites] = -1
    return {
        'tissue': fractions / fractions.sum(0).clamp_min(1e-6),
        'fibres': block.directions.cpu() * mask,
        'microstructure': structure,
        'correction': correction_to(clean, image, mask, slots),
        'brain': mask,
    }
