"""The real arm of `pretraining.py`: fibre directions of five people on scanners of five kinds.

    python benchmarks/evidence/pretraining_real.py RESULTS.tsv --models MODELS [--arms …]
        [--n 3 1] [--seeds 1] [--steps 80] [--rate 1e-3]
    python benchmarks/evidence/effects.py RESULTS.tsv --steps 80

Target: raw volumes divided before anything mixes them (`realscans`), six directions in and the
tensor of all others the label, in white matter. Each person in turn is the test, the next chooses
the step, and n of the others are learnt from, in four choices of directions. There are five people
to test on, not the 24 that a firm answer wants, and one rate for all arms.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from applied import canonical
from effects import append, is_done
from people import person_of, refuse_seen
from pretraining import start_of
from real_directions import white_matter
from realscans import CHOICES, RAW, divided

from bidsapp import registry
from bidsapp.core import Plan
from bidsapp.learn.evaluate import evaluate
from bidsapp.learn.fit import fit
from bidsapp.learn.patches import PatchSource
from bidsapp.physics.geometry import grid_axes

if TYPE_CHECKING:
    from bidsapp.core import Sample

ARMS = ('scratch', 'autoencoder', 'restore', 'supervised', 'bundled')
TASK = registry.task('orientation')
DIRECTIONS, PATCH = 6, (24, 24, 24)
#: Runs that can be divided, and their people.
RUNS = (
    'sub-achieva/dwi/sub-achieva_dwi', 'sub-prisma/dwi/sub-prisma_dir-AP_dwi',
    'sub-uih/dwi/sub-uih_dir-AP_dwi', 'sub-galan/dwi/sub-galan_acq-all20d_dwi',
    'sub-galan/dwi/sub-galan_acq-ortho_dwi', 'sub-ds114/dwi/sub-ds114_dwi',
)  # fmt: skip
PEOPLE = sorted({run.split('/')[0].removeprefix('sub-') for run in RUNS})


@cache
def samples_of(person: str, choices: int) -> list[Sample]:
    """Every run of a person in ``choices`` choices of directions."""
    found = []
    for run in (run for run in RUNS if run.startswith(f'sub-{person}/')):
        for choice in range(choices):
            parts = divided(RAW / f'{run}.nii.gz', DIRECTIONS, choice)
            if parts is None:
                continue
            sample = canonical(parts.scan)
            white = white_matter(parts)
            target = np.zeros((9, *white.where.shape), np.float32)
            target[:3, white.where] = (white.axes @ grid_axes(parts.scan.affine)).T
            found.append(replace(sample, target=torch.from_numpy(target)))
    return found


def run_one(
    arm: str, n: int, fold: int, seed: int, rate: float, steps: int, results: Path, models: Path
) -> None:
    """One fit and its figures, unless they are there."""
    key = (arm, str(n), str(seed), f'{rate:g}', str(steps))
    if is_done(results, *key, 'test', str(fold)):
        return
    test, chooser, *others = (PEOPLE[(fold + k) % len(PEOPLE)] for k in range(len(PEOPLE)))
    train = [sample for person in others[:n] for sample in samples_of(person, CHOICES)]
    groups = {'train': train, 'val': samples_of(chooser, 1), 'test': samples_of(test, 1)}
    start = start_of(arm, models)
    assert not isinstance(start, Path)
    if start is not None:
        own = [RAW / f'{run}.nii.gz' for run in RUNS]
        refuse_seen(start.card, next(path for path in own if person_of(path) == test), own)
    plan = Plan(steps, PATCH, 2, rate, seed=seed, validate_every=max(1, steps // 4))
    with tempfile.TemporaryDirectory() as folder:
        network, _ = fit(registry.input('dwi'), TASK.head, PatchSource(train, PATCH), groups['val'],
                         start, plan, Path(folder) / 'state')  # fmt: skip
    lines = []
    for split, samples in groups.items():
        rows, score = evaluate(TASK.head, network, samples, 'cpu', None), TASK.head.score
        angles = [v for r in rows for metric, _, v in r if metric == score]
        lines.append((*key, split, str(fold), TASK.name, score, f'{np.mean(angles):.6g}'))
    append(results, lines)
    print(f'{arm} n={n} without {test}, seed {seed}: {lines[-1][-1]} degrees', flush=True)


def main() -> None:
    """Run what is missing, every arm of a person before the next person."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('results', type=Path)
    parser.add_argument('--models', type=Path, default=Path('models'))
    parser.add_argument('--arms', nargs='+', choices=ARMS, default=ARMS)
    parser.add_argument('--n', nargs='+', type=int, default=[3, 1])
    parser.add_argument('--seeds', type=int, default=1)
    parser.add_argument('--steps', type=int, default=80)
    parser.add_argument('--rate', type=float, default=1e-3)
    given = parser.parse_args()
    torch.set_num_threads(int(os.environ.get('OMP_NUM_THREADS', '1')))
    one = partial(run_one, rate=given.rate, steps=given.steps, results=given.results,
                  models=given.models)  # fmt: skip
    for seed in range(given.seeds):
        for n in given.n:
            for fold in range(len(PEOPLE)):
                for arm in given.arms:
                    one(arm, n, fold, seed)


if __name__ == '__main__':
    main()
