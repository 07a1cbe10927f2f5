"""Story: write a synthetic BIDS dataset, T1w and scans of simulated heads, with its truth."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bidsapp import __version__, registry
from bidsapp.arguments import Parser, above
from bidsapp.bids.derivatives import scans
from bidsapp.bids.images import scanner_units, write_volume
from bidsapp.bids.write import BIDS_VERSION, write_json, write_table, write_text
from bidsapp.problems import CannotCreate, Problem
from bidsapp.simulate.material import SCANNER, Dataset, Person

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import Tensor

    from bidsapp.simulate.anatomy import Template

GENERATED_BY = {
    'Name': 'transfermri-simulate',
    'Version': __version__,
    'Description': 'Simulated heads; no person was scanned',
}
#: Voxel axes of the scans and of the T1w image; participants take them in turn.
ORIENTATIONS = (('RAS', 'PSR'), ('LAS', 'RAS'), ('RAS', 'LAS'), ('LAS', 'PSR'))
README = """# Simulated heads

Written by `transfermri-simulate` (version {version}, seed {seed}): T1w and {scans} of
{participants} simulated heads, so nothing here comes from a person. What each voxel truly holds
{truth}
"""
#: What is simulated where --modality is not given.
MODALITIES = (registry.FIRST,)
#: mm below the brain at which the T1w image ends.
NECK = 20.0


def usual_scans() -> dict[str, Any]:
    """The designs of what is simulated where nothing else is said, by modality."""
    return {modality: dataset_of(modality).design() for modality in MODALITIES}


def dataset_of(modality: str) -> Dataset:
    """What a modality simulates. Raises ValueError if it simulates nothing."""
    found: Dataset | None = registry.pretraining(modality).dataset
    if found is None:
        raise ValueError(f'{registry.title(modality)} simulates no dataset')
    return found


@dataclass(frozen=True, slots=True)
class Design:
    """What a simulated dataset holds. Lengths in mm."""

    participants: int = 5
    seed: int = 0
    t1w_voxel_size: float = 1.5
    template_voxel_size: float = 1.5
    scans: Mapping[str, Any] = field(default_factory=usual_scans)  #: by modality, its own design


def write_dataset(out: Path, design: Design, say: Callable[[str], None] = print) -> None:
    """Write the dataset that ``design`` describes into the new or empty folder ``out``.

    The same design gives the same voxels; a participant does not depend on how many there are.
    ``say`` gets one line a participant. Raises CannotCreate where ``out`` holds anything.
    """
    _claim(out)
    _write_dataset_files(out, design)
    width = max(2, len(str(design.participants)))
    rows = []
    with _one_thread():
        template = _template(design.template_voxel_size)
        for index in range(design.participants):
            label = f'sub-{index + 1:0{width}d}'
            row = _write_participant(out, label, index, design, template)
            rows.append([label, *row.values()])
            say(f'{label}: written ({index + 1} of {design.participants})')
    write_table(out / 'participants.tsv', ['participant_id', *row], rows)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums and products of matrices on one thread: with more, some processors round them otherwise.

    What is computed is small; two threads cost twice the processor time.
    """
    import torch
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1, user_api='blas'):
            yield
    finally:
        torch.set_num_threads(before)


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
) -> dict[str, str]:
    """Simulate and write one participant; returns its columns of participants.tsv."""
    import torch

    from bidsapp.physics.streams import stream
    from bidsapp.simulate import acquisition, t1w
    from bidsapp.simulate.anatomy import draw_head
    from bidsapp.simulate.grids import normal

    generator = torch.Generator().manual_seed(design.seed * 100_003 + index)
    axes, t1w_axes = ORIENTATIONS[index % len(ORIENTATIONS)]
    head = draw_head(template, generator)
    columns: dict[str, str] = {}
    for place, (modality, own) in enumerate(design.scans.items()):
        drawn = generator
        if place:  # of its own, so that what else is scanned changes nothing
            drawn = stream(design.seed, index, of=modality)
        person = Person(label, index, head, axes, drawn)
        columns |= dataset_of(modality).write(out, person, own)

    upright = acquisition.oblique(2 * normal((3,), generator), t1w_axes)
    grid = t1w.field_of_view(head, upright, design.t1w_voxel_size, below=NECK)
    position = t1w.draw_repositioning(torch.zeros(3), generator)
    image = t1w.simulate_t1w(head, grid, position, generator)
    write_t1w(out / label, label, image, grid.affine)
    return {**columns, 'T1w_axes': t1w_axes}


def write_t1w(folder: Path, label: str, image: Tensor, affine: Tensor) -> None:
    """``anat/``: the ``image`` (X, Y, Z) in scanner units."""
    stem = folder / 'anat' / f'{label}_T1w'
    write_volume(stem.with_suffix('.nii.gz'), scanner_units(image), affine)
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


def _write_dataset_files(out: Path, design: Design) -> None:
    parts = [dataset_of(modality) for modality in design.scans]
    text = README.format(
        version=__version__, seed=design.seed, participants=design.participants,
        scans=scans(design.scans), truth='\n'.join(part.truth for part in parts),
    )  # fmt: skip
    truth = out / 'derivatives' / 'truth'
    folders = {
        out: ('Simulated heads', 'raw'),
        truth: ('Truth of the simulated heads', 'derivative'),
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
    lines = dict.fromkeys(line for part in parts for line in part.ignored)
    write_text(truth / '.bidsignore', ''.join(f'{line}\n' for line in lines))
    axes = 'Where the voxel axes point before the field of view is tilted: T1w'
    columns = {name: own for part in parts for name, own in part.columns.items()}
    write_json(out / 'participants.json', {**columns, 'T1w_axes': {'Description': axes}})


def _parser() -> Parser:
    known = [m for m in registry.modalities() if registry.pretraining(m).dataset is not None]
    parser = Parser(
        prog='transfermri-simulate',
        description=f'Write a synthetic BIDS dataset (T1w and {scans(known)} of simulated heads) '
        'with its truth under derivatives/truth.',
    )
    add = parser.add_argument
    add('out', type=Path, metavar='OUT', help='new or empty folder')
    usual = Design()
    add('--participants', type=above(0, int), default=usual.participants, metavar='N',
        help=f'how many heads ({usual.participants})')  # fmt: skip
    add('--seed', type=above(-1, int, 2**32), default=usual.seed, metavar='S',
        help=f'the same seed gives the same voxels ({usual.seed})')  # fmt: skip
    add('--modality', nargs='+', choices=known, default=list(MODALITIES),
        help=f'what is scanned beside T1w ({" ".join(MODALITIES)})')  # fmt: skip
    for modality in known:
        dataset = dataset_of(modality)
        own = dataset.design()
        group = parser.add_argument_group(registry.title(modality))
        for flag in dataset.flags:
            value = getattr(own, flag.name.replace('-', '_'))
            words = ' '.join(
                v if flag.choices else f'{v:g}' for v in (value if flag.several else (value,))
            )
            group.add_argument(
                f'--{flag.name}', type=flag.type, default=value, metavar=flag.metavar,
                help=f'{flag.help} ({words})', nargs='+' if flag.several else None,
                choices=flag.choices,
            )  # fmt: skip
    add('--version', action='version', version=__version__)
    return parser


def design_of(options: Any) -> Design:
    """The dataset that parsed options ask for."""
    scans = {}
    for modality in dict.fromkeys(options.modality):
        dataset = dataset_of(modality)
        names = [flag.name.replace('-', '_') for flag in dataset.flags]
        values = {name: getattr(options, name) for name in names}
        scans[modality] = dataset.design(
            **{n: tuple(v) if isinstance(v, list) else v for n, v in values.items()}
        )
    return Design(participants=options.participants, seed=options.seed, scans=scans)


def main(argv: Sequence[str] | None = None) -> int:
    """``transfermri-simulate``; returns the exit code."""
    try:
        design = design_of(options := _parser().parse_args(argv))
        write_dataset(options.out, design, say=lambda line: print(line, flush=True))
    except Problem as problem:
        print(f'transfermri-simulate: {problem}', file=sys.stderr)
        return problem.exit_code
    return 0


if __name__ == '__main__':
    sys.exit(main())
