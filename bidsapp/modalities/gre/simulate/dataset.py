"""A simulated participant's gradient echoes with their truth, for `transfermri-simulate`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bidsapp.arguments import above, below
from bidsapp.modalities.gre.physics.acquisition import check_times
from bidsapp.modalities.gre.simulate.files import ENCODINGS
from bidsapp.simulate.material import Dataset, Flag

if TYPE_CHECKING:
    from pathlib import Path

    from bidsapp.simulate.material import Person

#: Degrees by which fields of view are tilted about the three axes: standard deviations.
TILT = (12.0, 5.0, 5.0)


@dataclass(frozen=True, slots=True)
class GreDesign:
    """What a simulated run is like. Raises BadData for echo times that no scanner has."""

    gre_voxel_size: float = 2.0  #: mm
    fine: int = 2  #: finer voxels, on which all is worked out, along one of these
    echo_times: tuple[float, ...] = (0.004, 0.010, 0.016, 0.022, 0.028)  #: s
    imaging_frequency: float = 123.25  #: MHz; what is called 3 T
    gre_snr: float = 80.0  #: of white matter at TE = 0
    unexplained: float = 0.1  #: field that no χ explains, of the local field's spread
    phase_format: tuple[str, ...] = tuple(ENCODINGS)  #: as of vendors; participants take turns

    def __post_init__(self) -> None:
        check_times(self.echo_times)


def write_scan(out: Path, person: Person, design: GreDesign) -> dict[str, str]:
    """Simulate and write one run below ``out``; returns its columns of participants.tsv."""
    import torch

    from bidsapp.modalities.gre.simulate import files, scan
    from bidsapp.simulate.acquisition import oblique
    from bidsapp.simulate.grids import normal
    from bidsapp.simulate.t1w import field_of_view

    generator, label = person.generator, person.label
    protocol = scan.Protocol(
        echo_times=design.echo_times,
        imaging_mhz=design.imaging_frequency,
        snr=design.gre_snr,
        fine=design.fine,
        unexplained=design.unexplained,
    )
    tilt = torch.tensor(TILT) * normal((3,), generator)
    grid = field_of_view(person.head, oblique(tilt, person.axes), design.gre_voxel_size)
    run = scan.simulate_scan(person.head, grid, protocol, generator)
    encoding = design.phase_format[person.index % len(design.phase_format)]
    files.write_scan(out / label, label, run, encoding)
    files.write_truth(out / 'derivatives' / 'truth' / label, label, run)
    return {'gre_axes': person.axes, 'phase_format': encoding}


#: What `unexplained` is.
_LEFT = 'field that no susceptibility explains, of the spread of the local field'
DATASET = Dataset(
    design=GreDesign,
    flags=(
        Flag('gre-voxel-size', above(0, float), 'MM', 'edge of a voxel'),
        Flag('echo-times', above(0, float), 'S', 'in seconds, rising', True),
        Flag('imaging-frequency', above(20, float, 500), 'MHZ', 'which tells the field strength'),
        Flag('gre-snr', above(0, float), 'SNR', 'signal of white matter at TE = 0 over the noise'),
        Flag('unexplained', below(1), 'SHARE', _LEFT),
        Flag('phase-format', str, 'NAME', 'one a participant, in turn', True, tuple(ENCODINGS)),
    ),
    write=write_scan,
    columns={
        'gre_axes': {
            'Description': 'Where the voxel axes point before the field of view is tilted: gre'
        },
        'phase_format': {'Description': 'How the phase is written, as by a vendor'},
    },
    truth='(susceptibility, R2*, and the total and local field) is under `derivatives/truth`, on '
    'the grid of the\ngradient echoes; `-d fields=` takes the fields from there.',
)
