"""Story: write a synthetic BIDS dataset, T1w and dMRI of simulated heads, with its truth."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from bidsapp import __version__
from bidsapp.bids.write import BIDS_VERSION, whole, write_json, write_text
from bidsapp.core import B0_THRESHOLD, CannotCreate, GradientTable, Problem, WrongUsage
from bidsapp.physics.gradients import to_fsl

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bidsapp.simulate.anatomy import Template
    from bidsapp.simulate.scan import DiffusionScan

GENERATED_BY = {
    'Name': 'transfermri-simulate',
    'Version': __version__,
    'Description': 'Simulated heads; no person was scanned',
}
SCANNER = {
    'Manufacturer': 'TransferMRI simulator',
    'ManufacturersModelName': 'synthetic head',
    'MagneticFieldStrength': 3,
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
    _write_table(out / 'participants.tsv', ['participant_id', 'dwi_axes', 'T1w_axes'], rows)


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

    from bidsapp.simulate.anatomy import head_template
    from bidsapp.simulate.template import template_maps

    _, gm, wm, csf, affine = template_maps(resolution)
    return head_template(*(torch.from_numpy(array) for array in (gm, wm, csf, affine)))


def _write_participant(
    out: Path, label: str, index: int, design: Design, template: Template
) -> tuple[str, str]:
    """Simulate and write one participant; returns the voxel axes of the dMRI and of the T1w."""
    import torch

    from bidsapp.simulate import acquisition, anatomy, fibres, scan
    from bidsapp.simulate.grids import normal

    generator = torch.Generator().manual_seed(design.seed * 100_003 + index)
    dwi_axes, t1w_axes = ORIENTATIONS[index % len(ORIENTATIONS)]
    head = anatomy.draw_head(template, generator)
    bundles = fibres.draw_bundles(template, generator)
    protocol = scan.Protocol(
        shells=tuple((b, design.directions) for b in design.bvals),
        snr=design.snr,
        fine=max(1, int(np.ceil(design.voxel_size / design.fine_voxel_size - 1e-6))),
        phase_sign=1 if index % 2 else -1,
    )
    tilt = torch.tensor([6.0, 3.0, 3.0]) * normal((3,), generator)
    tilted = acquisition.oblique(tilt, dwi_axes)
    grid = scan.field_of_view(head, tilted, design.voxel_size)
    run = scan.simulate_dwi(head, bundles, grid, protocol, generator)
    _write_dwi(out / label / 'dwi', label, run, protocol.phase_sign, protocol.readout)
    _write_truth(out / 'derivatives' / 'truth' / label / 'dwi', label, run)

    upright = acquisition.oblique(2 * normal((3,), generator), t1w_axes)
    grid = scan.field_of_view(head, upright, design.t1w_voxel_size, below=20)
    position = scan.draw_repositioning(torch.zeros(3), generator)
    image = scan.simulate_t1w(head, grid, position, protocol, generator)
    _write_t1w(out / label / 'anat', label, image.numpy(), grid.affine.numpy())
    return dwi_axes, t1w_axes


def _write_dwi(folder: Path, label: str, run: DiffusionScan, sign: int, readout: float) -> None:
    affine = run.grid.affine.double().numpy()
    _write_image(folder / f'{label}_dwi.nii.gz', _counts(run.signal.movedim(0, -1).numpy()), affine)
    table = GradientTable(run.bvecs.double().numpy(), run.bvals.double().numpy())
    rows = [' '.join(f'{value:.6f}' for value in row) for row in to_fsl(table, affine)]
    write_text(folder / f'{label}_dwi.bvec', '\n'.join(rows) + '\n')
    write_text(folder / f'{label}_dwi.bval', ' '.join(f'{b:g}' for b in table.bvals) + '\n')
    sidecar = {
        **SCANNER,
        'EchoTime': 0.085,
        'RepetitionTime': 6.0,
        'FlipAngle': 90,
        'PhaseEncodingDirection': 'j' if sign > 0 else 'j-',
        'TotalReadoutTime': readout,
        'EffectiveEchoSpacing': round(readout / (run.grid.shape[1] - 1), 8),
        'MRAcquisitionType': '2D',
        'PulseSequenceType': 'Spin echo EPI',
    }
    write_json(folder / f'{label}_dwi.json', sidecar)


def _write_t1w(folder: Path, label: str, image: np.ndarray, affine: np.ndarray) -> None:
    _write_image(folder / f'{label}_T1w.nii.gz', _counts(image), affine.astype(float))
    sidecar = {
        **SCANNER,
        'EchoTime': 0.003,
        'RepetitionTime': 2.3,
        'InversionTime': 0.9,
        'FlipAngle': 9,
        'MRAcquisitionType': '3D',
        'PulseSequenceType': 'MPRAGE',
    }
    write_json(folder / f'{label}_T1w.json', sidecar)


def _write_truth(folder: Path, label: str, run: DiffusionScan) -> None:
    """The truth as derivatives, on the grid of the run."""
    from bidsapp.simulate.truth import FIBRES, TISSUES, named_maps

    affine = run.grid.affine.double().numpy()
    for name, (array, sidecar) in named_maps(run.truth).items():
        _write_image(folder / f'{label}_{name}.nii.gz', array, affine)
        write_json(folder / f'{label}_{name}.json', sidecar)
    for seg, rows in (('tissue', TISSUES), ('nfib', FIBRES)):
        name = f'{label}_seg-{seg}_desc-truth_dseg.tsv'
        _write_table(folder / name, ['index', 'name', 'abbreviation'], [list(row) for row in rows])


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


def _counts(image: np.ndarray) -> np.ndarray:
    """Scanner units as whole numbers."""
    return np.asarray(np.clip(np.rint(image), 0, np.iinfo(np.int16).max), np.int16)


def _write_image(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    import nibabel as nib

    image = nib.Nifti1Image(array, affine)
    image.set_sform(affine, 'scanner')
    image.set_qform(affine, 'scanner')
    image.header.set_xyzt_units('mm', 'sec')
    with whole(path) as hidden:
        nib.save(image, hidden)


def _write_table(path: Path, header: list[str], rows: Sequence[Sequence[object]]) -> None:
    lines = ['\t'.join(str(cell) for cell in row) for row in [header, *rows]]
    write_text(path, '\n'.join(lines) + '\n')


class _Parser(argparse.ArgumentParser):
    """A parser that raises WrongUsage, since exit code 2 means something else here."""

    def error(self, message: str) -> NoReturn:
        raise WrongUsage(f'{message}\n{self.format_usage().rstrip()}')


def _above(limit: float, kind: type[int] | type[float]) -> Callable[[str], Any]:
    def number(text: str) -> int | float:
        value = kind(text)
        if not limit < value < float('inf'):
            raise argparse.ArgumentTypeError(f'{text} given, a number above {limit:g} expected')
        return value

    return number


def _seed(text: str) -> int:
    if not 0 <= int(text) < 2**32:
        raise argparse.ArgumentTypeError(f'{text} given, a number from 0 to 4294967295 expected')
    return int(text)


def _parser() -> _Parser:
    parser = _Parser(
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
        )
        write_dataset(options.out, design, say=lambda line: print(line, flush=True))
    except Problem as problem:
        print(f'transfermri-simulate: {problem}', file=sys.stderr)
        return problem.exit_code
    return 0
