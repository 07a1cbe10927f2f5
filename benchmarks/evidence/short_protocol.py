"""The lab's case, simulated: a model for a short protocol, made from ten scans of a long one.

    python benchmarks/evidence/short_protocol.py WORK [--labelled 10] [--new 10] [--steps 600]

People whose long scans are labelled (NODDI) are what `group --input-like` learns from; it sees one
short scan of somebody else. New people are scanned by both protocols, as the same head with the
same microstructure at rest: what their short scans give is compared with the NODDI of their long
ones, averaged over the short scan's longer voxels. Arms: `classical` (NODDI of the short scan),
`bundled`, `finetuned`. The simulator is that of `transfermri-simulate`, not the one that networks
are pretrained on. Every call is the app's own, in a process of its own.

WORK keeps all: what is there is not made again, and rows of WORK/rows.tsv are written one by one.
At the end: mean errors, and finetuned less each other arm with its 95 % interval over participants.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import nibabel as nib
import numpy as np
import torch

from bidsapp.bids.write import BIDS_VERSION, write_json
from bidsapp.modalities.dwi.physics.likeness import coarse_grid
from bidsapp.modalities.dwi.simulate import files, scan
from bidsapp.modalities.dwi.simulate.fibres import draw_bundles
from bidsapp.modalities.dwi.simulate.protocol import Protocol
from bidsapp.physics.template import template_maps
from bidsapp.simulate.acquisition import oblique
from bidsapp.simulate.anatomy import draw_head, head_template
from bidsapp.simulate.grids import Grid, normal
from bidsapp.simulate.t1w import field_of_view

if TYPE_CHECKING:
    from collections.abc import Sequence

#: mm, voxels of the long protocol; those of the short one are half as long again.
VOXEL, LONGER = 3.0, 1.5
B = (1000.0, 2000.0)
#: Directions of each shell, and signal over noise of white matter at b=0.
LONG, SHORT = (45, 25.0), (12, 15.0)
ARMS = ('classical', 'bundled', 'finetuned')
PARAMETERS = ('icvf', 'od', 'isovf')
COLUMNS = ('participant', 'arm', 'parameter', 'mae', 'slope', 'voxels')
#: Of free water, beyond which density and dispersion mean little.
WATER = 0.5
DRAWS = 4000


def grids(head: object, axes: torch.Tensor, voxel: float) -> tuple[Grid, Grid]:
    """Of the long and of the short scan; three fine voxels of both are two of one of them."""
    short = field_of_view(head, axes, voxel * LONGER)  # type: ignore[arg-type]
    fine = short.refined(3)
    affine = fine.affine.clone()
    affine[:3, 3] += affine[:3, :3].sum(1) / 2
    affine[:3, :3] *= 2
    x, y, z = (n // 2 for n in fine.shape)
    return Grid((x, y, z), affine), short


def simulate(root: Path, name: str, number: int, long: bool, short: bool, given: Given) -> None:
    """One person by one or both protocols: the same head, fibres and microstructure."""
    folders = {'long': root / 'long', 'short': root / 'short'}
    wanted = [kind for kind, use in (('long', long), ('short', short)) if use]
    if all((folders[k] / name / 'dwi' / f'{name}_dwi.bvec').is_file() for k in wanted):
        return
    _, gm, wm, csf, affine = template_maps(given.template)
    template = head_template(*(torch.from_numpy(a) for a in (gm, wm, csf, affine)))
    for kind in wanted:
        # From the same seed: what decides the signal is drawn before the schemes differ.
        generator = torch.Generator().manual_seed(7_000_003 + number)
        head = draw_head(template, generator)
        bundles = draw_bundles(head.template, generator)
        tilt = torch.tensor([6.0, 3.0, 3.0]) * normal((3,), generator)
        both = grids(head, oblique(tilt, ('RAS', 'LAS')[number % 2]), given.voxel)
        directions, snr = LONG if kind == 'long' else SHORT
        protocol = Protocol(
            shells=tuple((b, directions) for b in B), snr=snr, fine=2 if kind == 'long' else 3,
        )  # fmt: skip
        run = scan.simulate_dwi(head, bundles, both[kind == 'short'], protocol, generator)
        files.write_truth(folders[kind] / 'derivatives' / 'truth' / name, name, run)
        files.write_dwi(folders[kind] / name, name, run)
    for folder in folders.values():
        said = {'Name': 'Simulated heads', 'BIDSVersion': BIDS_VERSION, 'DatasetType': 'raw'}
        write_json(folder / 'dataset_description.json', said)


def app(*argv: object) -> None:
    """Call the app; what it says goes to the screen. Raises CalledProcessError."""
    command = [sys.executable, '-m', 'bidsapp', *map(str, argv), '--device', 'cpu']
    print('$', *command[2:], flush=True)
    subprocess.run(command, check=True)


def map_of(root: Path, name: str, source: str, parameter: str) -> nib.Nifti1Image:
    """One parameter of one run."""
    return nib.load(root / name / 'dwi' / f'{name}_model-{source}_param-{parameter}_dwimap.nii.gz')


def boxes(n: int, count: int) -> torch.Tensor:
    """(count, n) shares of short voxels in long ones: the simulated scanner's are boxes.

    What `group` makes of a research scan has a Gaussian profile of that width, which blurs more.
    """
    edges = torch.linspace(0, n, count + 1)
    low, high = torch.arange(n), torch.arange(1, n + 1)
    overlap = torch.minimum(edges[1:, None], high) - torch.maximum(edges[:-1, None], low)
    return overlap.clamp_min(0) * count / n


def reference(out: Path, name: str, shape: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """(X, Y, Z, 3) NODDI of the long scan on the short one's voxels, and where it is known."""
    from bidsapp.bids.prepared import find_prepared
    from bidsapp.modalities.dwi.tasks.microstructure import averaged

    (case,) = find_prepared(out, 'dwi', [name.removeprefix('sub-')])
    labels = {p: map_of(out, name, 'noddi', p) for p in PARAMETERS}
    image = labels['icvf']
    edge = LONGER * float(np.linalg.norm(image.affine[:3, 0]))
    grid = coarse_grid(image.shape, image.affine, (edge,) * 3)
    grid = replace(grid, kernels=tuple(boxes(*kernel.shape[::-1]) for kernel in grid.kernels))
    own = case.with_files(**{p: Path(i.get_filename()) for p, i in labels.items()})
    found = averaged(own, grid)
    maps = np.stack([found[p] for p in PARAMETERS], -1)
    if maps.shape[:3] != tuple(shape):
        raise SystemExit(f'{name}: the label has shape {maps.shape[:3]}, the short scan {shape}')
    return maps, maps[..., 2] >= 0


def rows_of(given: Given, name: str, arm: str) -> list[dict[str, str]]:
    """What one arm gives for one new person, against the label of the long scan."""
    root = given.work / ('out_finetuned' if arm == 'finetuned' else 'out_bundled')
    source = 'noddi' if arm == 'classical' else 'unet'
    images = [map_of(root, name, source, p) for p in PARAMETERS]
    said = np.stack([np.asarray(i.dataobj, np.float32) for i in images], -1)
    truth, known = reference(given.work / 'out_long', name, said.shape[:3])
    mask = nib.load(root / name / 'dwi' / f'{name}_desc-brain_mask.nii.gz')
    inside = known & (np.asarray(mask.dataobj) > 0)
    tissue = inside & (truth[..., 0] >= 0) & (truth[..., 2] < WATER)
    found = []
    for k, parameter in enumerate(PARAMETERS):
        where = inside if parameter == 'isovf' else tissue
        own, label = said[where][:, k], truth[where][:, k]
        slope = float(np.cov(own, label)[0, 1] / max(float(label.var()), 1e-9))
        error = float(np.abs(own - label).mean())
        values = (name, arm, parameter, f'{error:.5f}', f'{slope:.3f}', str(int(where.sum())))
        found.append(dict(zip(COLUMNS, values, strict=True)))
    return found


def read(path: Path) -> list[dict[str, str]]:
    """Rows so far."""
    if not path.is_file():
        return []
    with path.open(newline='') as stream:
        return list(csv.DictReader(stream, delimiter='\t'))


def append(path: Path, rows: Sequence[dict[str, str]]) -> None:
    """Rows at the end, after the header of a new file."""
    lines = [] if path.is_file() else ['\t'.join(COLUMNS)]
    lines += ['\t'.join(row[c] for c in COLUMNS) for row in rows]
    with path.open('a') as stream:
        stream.write('\n'.join(lines) + '\n')


def conclude(path: Path) -> None:
    """Mean errors, and finetuned less the others with 95 % intervals over participants."""
    rows = read(path)
    print('\n| parameter | arm | mean error | slope | finetuned less it (95 %) | people |')
    print('| --- ' * 6 + '|')
    rng = np.random.default_rng(0)
    for parameter in PARAMETERS:
        by = {a: {r['participant']: r for r in rows if (r['arm'], r['parameter']) == (a, parameter)}
              for a in ARMS}  # fmt: skip
        for arm in ARMS:
            people = sorted(by[arm].keys() & by['finetuned'].keys())
            if not people:
                continue
            own = np.array([float(by[arm][p]['mae']) for p in people])
            slope = np.mean([float(by[arm][p]['slope']) for p in people])
            best = np.array([float(by['finetuned'][p]['mae']) for p in people])
            said = ''
            if arm != 'finetuned':
                drawn = (best - own)[rng.integers(len(own), size=(DRAWS, len(own)))].mean(1)
                low, high = np.percentile(drawn, [2.5, 97.5])
                said = f'{(best - own).mean():+.4f} ({low:+.4f} to {high:+.4f})'
            print(f'| {parameter} | {arm} | {own.mean():.4f} | {slope:.2f} | {said} | {len(own)} |')


class Given(argparse.Namespace):
    """The command line."""

    work: Path
    labelled: int
    new: int
    steps: int
    voxel: float
    template: float
    nprocs: int


def main() -> None:
    """Simulate → label → fine-tune → apply → score, each unless it is there."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('work', type=Path)
    parser.add_argument('--labelled', type=int, default=10)
    parser.add_argument('--new', type=int, default=10)
    parser.add_argument('--steps', type=int, default=600)
    parser.add_argument('--voxel', type=float, default=VOXEL)
    parser.add_argument('--template', type=float, default=1.5)
    parser.add_argument('--nprocs', type=int, default=2)
    given = parser.parse_args(namespace=Given())
    work = given.work = given.work.absolute()
    labelled = [f'sub-{n + 1:02d}' for n in range(given.labelled)]
    new = [f'sub-{given.labelled + n + 1:02d}' for n in range(given.new)]
    routine = 'sub-00'
    for number, name in enumerate([routine, *labelled, *new]):
        simulate(work, name, number, name != routine, name not in labelled, given)
        print(f'{name} is scanned', flush=True)
    more = ('--nprocs', given.nprocs)
    task = ('--tasks', 'microstructure')
    people = [name.removeprefix('sub-') for name in labelled]
    fresh = [name.removeprefix('sub-') for name in new]
    app(work / 'long', work / 'out_long', 'participant', *task, '--model', 'bundled', *more)
    like = work / 'short' / routine / 'dwi' / f'{routine}_dwi.nii.gz'
    app(work / 'long', work / 'out_long', 'group', *task, '--participant-label', *people,
        '--input-like', like, '--steps', given.steps, *more)  # fmt: skip
    model = work / 'out_long' / 'models' / 'microstructure' / 'v1'
    short = (work / 'short', work / 'out_bundled', 'participant', *task)
    who = ('--participant-label', *fresh, *more)
    app(*short, '--model', 'bundled', *who)
    app(short[0], work / 'out_finetuned', *short[2:], '--model', model, *who)
    card = json.loads((model / 'card.json').read_text())
    print(
        f'fine-tuned: best step {card["best_step"]} of {given.steps}; {card["input_like"]["words"]}'
    )
    table = work / 'rows.tsv'
    done = {(row['participant'], row['arm']) for row in read(table)}
    for name in new:
        for arm in ARMS:
            if (name, arm) not in done:
                append(table, rows_of(given, name, arm))
    conclude(table)


if __name__ == '__main__':
    main()
