"""Story: write a synthetic BIDS dataset, T1w and dMRI of simulated heads, with its truth."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bidsapp import __version__
from bidsapp.arguments import Parser
from bidsapp.bids.images import scanner_units, write_image
from bidsapp.bids.write import BIDS_VERSION, write_json, write_table, write_text
from bidsapp.modalities.dwi.physics.gradients import B0_THRESHOLD
from bidsapp.modalities.dwi.simulate.files import write_dwi, write_fieldmap, write_truth
from bidsapp.problems import CannotCreate, Problem
from bidsapp.simulate.t1w import SCANNER

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bidsapp.simulate.anatomy import Template

GENERATED_BY = {
    'Name': 'transfermri-simulate',
    'Version': __version__,
    'Description': 'Simulated heads; no person was scanned',
}
#: Voxel axes of the dMRI and of the T1w image; participants take them in turn.
ORIENTATIONS = (('RAS', 'PSR'), ('LAS', 'RAS'), ('RAS', 'LAS'), ('LAS', 'PSR'))
README = """# Simulated heads

Written by `transfermri-simulate` (version {version}, seed {seed}): T1w and diffusion MRI of
{participants} simulated heads, so nothing here comes from a person. What each voxel truly holds
(tissues, fibres, microstructure) is under `derivatives/truth`, on the grid of the diffusion run,
with the head where the first volume has it.
"""


@dataclass(frozen=True, slots=True)
class Design:
    """What a simulated dataset holds. Lengths in mm, b in s/mm²."""

    participants: int = 5
    seed: int = 0
    voxel_size: float = 3.0
    t1w_voxel_size: float = 1.5
    fine_voxel_size: float = 1.5  #: of the tissue inside a dMRI voxel, at most
    template_voxel_size: float = 1.5
    directions: int = 32  #: of each shell
    bvals: tuple[float, ...] = (1000.0,)
    snr: float = 12.0  #: of white matter at b=0; a quick clinical scan
    susceptibility: float = 0.0  #: Hz, largest off-resonance in the brain
    dropout: float = 0.0  #: share of the slices of weighted volumes that lose signal


def write_dataset(out: Path, design: Design, say: Callable[[str], None] = print) -> None:
    """Write the dataset that ``design`` describes into the new or empty folder ``out``.

    The same design gives the same voxels; a participant does not depend on how many there are.
    ``say`` gets one line a participant. Raises CannotCreate where ``out`` holds anything.
    """
    _claim(out)
    _write_dataset_files(out, design)
    template = _template(design.template_voxel_size)
    width = max(2, len(str(design.participants)))
    rows = []
    for index in range(design.participants):
        label = f'sub-{index + 1:0{width}d}'
        rows.append([label, *_write_participant(out, label, index, design, template)])
        say(f'{label}: written ({index + 1} of {design.participants})')
    write_table(out / 'participants.tsv', ['participant_id', 'dwi_axes', 'T1w_axes'], rows)


def _claim(out: Path) -> None:
    """Make ``out``, or accept it empty."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        used = any(out.iterdir())
    except OSError as error:
        raise CannotCreate(
            f'{out} cannot be made a folder ({error.strerror}); give another place'
        ) from error
    if used:
        raise CannotCreate(
            f'{out} is not empty; a dataset is written into a new or empty folder. '
            'Give another name, or remove it first'
        )


def _template(resolution: float) -> Template:
    import torch

    from bidsapp.physics.template import template_maps
    from bidsapp.simulate.anatomy import head_template

    _, gm, wm, csf, affine = template_maps(resolution)
    return head_template(*(torch.from_numpy(array) for array in (gm, wm, csf, affine)))


def _write_participant(
    out: Path, label: str, index: int, design: Design, template: Template
) -> tuple[str, str]:
    """Simulate and write one participant; returns the voxel axes of the dMRI and of the T1w."""
    import torch

    from bidsapp.modalities.dwi.simulate import fibres, scan
    from bidsapp.modalities.dwi.simulate.protocol import Protocol
    from bidsapp.simulate import acquisition, anatomy, t1w
    from bidsapp.simulate.grids import normal

    generator = torch.Generator().manual_seed(design.seed * 100_003 + index)
    dwi_axes, t1w_axes = ORIENTATIONS[index % len(ORIENTATIONS)]
    head = anatomy.draw_head(template, generator)
    bundles = fibres.draw_bundles(template, generator)
    protocol = Protocol(
        shells=tuple((b, design.directions) for b in design.bvals),
        snr=design.snr,
        fine=max(1, int(np.ceil(design.voxel_size / design.fine_voxel_size - 1e-6))),
        phase_sign=1 if index % 2 else -1,
        susceptibility_hz=design.susceptibility,
        dropout=design.dropout,
    )
    tilt = torch.tensor([6.0, 3.0, 3.0]) * normal((3,), generator)
    tilted = acquisition.oblique(tilt, dwi_axes)
    grid = t1w.field_of_view(head, tilted, design.voxel_size)
    run = scan.simulate_dwi(head, bundles, grid, protocol, generator)
    write_dwi(out / label, label, run)
    write_fieldmap(out / label, label, run)
    write_truth(out / 'derivatives' / 'truth' / label, label, run)

    upright = acquisition.oblique(2 * normal((3,), generator), t1w_axes)
    grid = t1w.field_of_view(head, upright, design.t1w_voxel_size, below=20)
    position = t1w.draw_repositioning(torch.zeros(3), generator)
    image = t1w.simulate_t1w(head, grid, position, protocol, generator)
    write_t1w(out / label, label, image, grid.affine)
    return dwi_axes, t1w_axes


def _write_dataset_files(out: Path, design: Design) -> None:
    text = README.format(version=__version__, seed=design.seed, participants=design.participants)
    folders = {
        out: ('Simulated heads', 'raw'),
        out / 'derivatives' / 'truth': ('Truth of the simulated heads', 'derivative'),
    }
    for folder, (name, kind) in folders.items():
        description = {
            'Name': name,
            'BIDSVersion': BIDS_VERSION,
            'DatasetType': kind,
            'License': 'CC0',
            'Authors': ['transfermri-simulate'],
            'GeneratedBy': [GENERATED_BY],
        }
        write_json(folder / 'dataset_description.json', description)
        write_text(folder / 'README.md', text)
    write_text(out / 'derivatives' / 'truth' / '.bidsignore', '*_dwimap.*\n')
    axes = 'Where the voxel axes point before the field of view is tilted'
    columns = {f'{scan}_axes': {'Description': f'{axes}: {scan}'} for scan in ('dwi', 'T1w')}
    write_json(out / 'participants.json', columns)


def _above(limit: float, kind: type[int] | type[float]) -> Callable[[str], Any]:
    def number(text: str) -> int | float:
        value = kind(text)
        if not limit < value < float('inf'):
            raise argparse.ArgumentTypeError(f'{text} given, a number above {limit:g} expected')
        return value

    return number


def _below(limit: float) -> Callable[[str], float]:
    def number(text: str) -> float:
        value = float(text)
        if not 0 <= value < limit:
            raise argparse.ArgumentTypeError(
                f'{text} given, a number of at least 0 and below {limit:g} expected'
            )
        return value

    return number


def _seed(text: str) -> int:
    if not 0 <= int(text) < 2**32:
        raise argparse.ArgumentTypeError(f'{text} given, a number from 0 to 4294967295 expected')
    return int(text)


def _parser() -> Parser:
    parser = Parser(
        prog='transfermri-simulate',
        description='Write a synthetic BIDS dataset (T1w and dMRI of simulated heads) with its '
        'truth under derivatives/truth.',
    )
    parser.add_argument('out', type=Path, metavar='OUT', help='new or empty folder')
    count, amount = _above(0, int), _above(0, float)
    for flag, kind, symbol, text in (
        ('participants', count, 'N', 'how many heads'),
        ('seed', _seed, 'S', 'the same seed gives the same voxels'),
        ('voxel-size', amount, 'MM', 'edge of a dMRI voxel'),
        ('directions', count, 'N', 'gradient directions of each shell'),
        ('snr', amount, 'SNR', 'b=0 signal of white matter over the noise'),
        ('susceptibility', _below(1000), 'HZ', 'largest off-resonance; adds a reversed b=0'),
        ('dropout', _below(1), 'SHARE', 'share of weighted slices that lose signal'),
    ):
        usual = getattr(Design(), flag.replace('-', '_'))
        parser.add_argument(
            f'--{flag}', type=kind, default=usual, metavar=symbol, help=f'{text} ({usual:g})'
        )
    parser.add_argument(
        '--bval',
        type=_above(B0_THRESHOLD, float),
        nargs='+',
        default=list(Design().bvals),
        metavar='B',
        help='b-values in s/mm², one a shell (1000)',
    )
    parser.add_argument('--version', action='version', version=__version__)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """``transfermri-simulate``; returns the exit code."""
    try:
        options = _parser().parse_args(argv)
        design = Design(
            participants=options.participants,
            seed=options.seed,
            voxel_size=options.voxel_size,
            directions=options.directions,
            bvals=tuple(options.bval),
            snr=options.snr,
            susceptibility=options.susceptibility,
            dropout=options.dropout,
        )
        write_dataset(options.out, design, say=lambda line: print(line, flush=True))
    except Problem as problem:
        print(f'transfermri-simulate: {problem}', file=sys.stderr)
        return problem.exit_code
    return 0


def write_t1w(folder: Path, label: str, image: Tensor, affine: Tensor) -> None:
    """``anat/``: the ``image`` (X, Y, Z) in scanner units."""
    stem = folder / 'anat' / f'{label}_T1w'
    write_image(stem.with_suffix('.nii.gz'), scanner_units(image), affine)
    sidecar = {
        **SCANNER,
        'EchoTime': 0.003,
        'RepetitionTime': 2.3,
        'InversionTime': 0.9,
        'FlipAngle': 9,
        'MRAcquisitionType': '3D',
        'PulseSequenceType': 'MPRAGE',
    }
    write_json(stem.with_suffix('.json'), sidecar)
