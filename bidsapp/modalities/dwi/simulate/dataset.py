"""A simulated participant's dMRI run with its truth, for `transfermri-simulate`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bidsapp.arguments import above, below
from bidsapp.modalities.dwi.physics.gradients import B0_THRESHOLD
from bidsapp.simulate.material import Dataset, Flag

if TYPE_CHECKING:
    from pathlib import Path

    from bidsapp.simulate.material import Person


@dataclass(frozen=True, slots=True)
class DwiDesign:
    """What a simulated run is like. Lengths in mm, b in s/mm²."""

    voxel_size: float = 3.0
    fine_voxel_size: float = 1.5  #: of the tissue inside a voxel, at most
    directions: int = 32  #: of each shell
    bval: tuple[float, ...] = (1000.0,)
    snr: float = 12.0  #: of white matter at b=0; a quick clinical scan
    susceptibility: float = 0.0  #: Hz, largest off-resonance in the brain
    dropout: float = 0.0  #: share of the slices of weighted volumes that lose signal


def write_scan(out: Path, person: Person, design: DwiDesign) -> dict[str, str]:
    """Simulate and write one run below ``out``; returns its columns of participants.tsv."""
    import torch

    from bidsapp.modalities.dwi.simulate import files, scan
    from bidsapp.modalities.dwi.simulate.fibres import draw_bundles
    from bidsapp.modalities.dwi.simulate.protocol import Protocol
    from bidsapp.simulate.acquisition import oblique
    from bidsapp.simulate.grids import normal
    from bidsapp.simulate.t1w import field_of_view

    generator, label = person.generator, person.label
    bundles = draw_bundles(person.head.template, generator)
    protocol = Protocol(
        shells=tuple((b, design.directions) for b in design.bval),
        snr=design.snr,
        fine=max(1, math.ceil(design.voxel_size / design.fine_voxel_size - 1e-6)),
        phase_sign=1 if person.index % 2 else -1,
        susceptibility_hz=design.susceptibility,
        dropout=design.dropout,
    )
    tilt = torch.tensor([6.0, 3.0, 3.0]) * normal((3,), generator)
    grid = field_of_view(person.head, oblique(tilt, person.axes), design.voxel_size)
    run = scan.simulate_dwi(person.head, bundles, grid, protocol, generator)
    files.write_dwi(out / label, label, run)
    files.write_fieldmap(out / label, label, run)
    files.write_truth(out / 'derivatives' / 'truth' / label, label, run)
    return {'dwi_axes': person.axes}


DATASET = Dataset(
    design=DwiDesign,
    flags=(
        Flag('voxel-size', above(0, float), 'MM', 'edge of a dMRI voxel'),
        Flag('directions', above(0, int), 'N', 'gradient directions of each shell'),
        Flag('snr', above(0, float), 'SNR', 'b=0 signal of white matter over the noise'),
        Flag('susceptibility', below(1000), 'HZ', 'largest off-resonance; adds a reversed b=0'),
        Flag('dropout', below(1), 'SHARE', 'share of weighted slices that lose signal'),
        Flag('bval', above(B0_THRESHOLD, float), 'B', 'b-values in s/mm², one a shell', True),
    ),
    write=write_scan,
    columns={
        'dwi_axes': {
            'Description': 'Where the voxel axes point before the field of view is tilted: dwi'
        }
    },
    truth='(tissues, fibres, microstructure) is under `derivatives/truth`, on the grid of the '
    'diffusion run,\nwith the head where the first volume has it.',
    ignored=('*_dwimap.*',),
)
