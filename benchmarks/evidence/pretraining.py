"""Does pretraining help? The source paper's experiment on a target that pretraining never saw.

    python benchmarks/evidence/pretraining.py RESULTS.tsv --models FOLDER [--task orientation …]
        [--n 1 2 4 8 15] [--seeds 4] [--steps 300] [--rates 1e-3 3e-3] [--report]

Target: people as they are (no strong deformation, anatomical bundles), upright, 2.4 mm, 32
directions at b = 1000: settings that the pretraining simulator never draws together. Arms:
`scratch`; `autoencoder`, `restore` (body only; FOLDER/<arm>), `supervised` (body and head); and
source paper 1 as published (`published.py`; FOLDER/published.safetensors), beside its own scratch.
Each is fitted to n participants in equal steps with the rate that did best on validation at the
middle n (published: 1e-3); 24 other participants are the test. Every finished fit is a few lines of
RESULTS.tsv, so the study may be stopped at any time and goes on from there; an arm whose model is
missing is said.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from published import RATE, Published, fitted, sample_of
from safetensors.torch import load_file

from bidsapp import material, tasks
from bidsapp.core import Checkpoint, Plan, Sample, Task
from bidsapp.learn import cards
from bidsapp.learn.checkpoint import load
from bidsapp.learn.evaluate import Rows, evaluate, score_of
from bidsapp.learn.fit import fit
from bidsapp.learn.patches import PatchSource, seeded
from bidsapp.physics.harmonics import fibonacci_hemisphere
from bidsapp.simulate.anatomy import draw_head
from bidsapp.simulate.blocks import Block, make_block
from bidsapp.simulate.corruption import Table
from bidsapp.simulate.fibres import draw_bundles
from bidsapp.simulate.grids import Grid
from bidsapp.simulate.stream import Simulator

if TYPE_CHECKING:
    from collections.abc import Sequence

ARMS = ('scratch', 'autoencoder', 'restore', 'supervised', 'published-scratch', 'published')
#: Participants that choose the step, and that test.
N_VALIDATION, N_TEST = 4, 24
VOXEL, SIDE = 2.4, 48
COLUMNS = ('task', 'arm', 'n', 'seed', 'rate', 'steps', 'split', 'participant', 'metric', 'value')


class Clinic(Simulator):
    """One participant a number: the middle of an ordinary head, scanned with one protocol."""

    def block(self, number: int) -> Block:
        """The block of participant ``number``."""
        generator = self._generator(7, number)
        head, bundles = (draw_head(self._template, generator),
                         draw_bundles(self._template, generator))  # fmt: skip
        affine = torch.diag(torch.tensor([VOXEL, VOXEL, VOXEL, 1.0]))
        affine[:3, 3] = torch.tensor([0.0, -18.0, 10.0]) - VOXEL * (SIDE - 1) / 2
        return make_block(head, bundles, Grid((SIDE,) * 3, affine))


def protocol(generator: torch.Generator) -> Table:
    """2 b=0 and 32 directions at b = 1000, the same in every scan."""
    directions = torch.from_numpy(fibonacci_hemisphere(32)).float()
    return Table(
        torch.cat([torch.zeros(2, 3), directions]), torch.tensor([0.0] * 2 + [1000.0] * 32)
    )


def participants(task: str, first: int, count: int, simulator: Simulator) -> list[Sample]:
    """Participants ``first`` … with their labels for ``task``."""
    samples = []
    for number in range(first, first + count):
        scan = simulator.scan(number)
        affine = np.diag([*scan.voxel_mm, 1.0])
        samples.append(Sample(scan.image, scan.mask, affine, scan.targets[task]))
    return samples


@dataclass(frozen=True)
class Study:
    """What is asked for on the command line."""

    results: Path
    models: Path
    steps: int
    rates: tuple[float, ...]
    sizes: tuple[int, ...]
    seeds: int


def start_of(arm: str, study: Study) -> Checkpoint | Path | None:
    """Where an arm starts. Raises FileNotFoundError where its model is not there."""
    if arm.endswith('scratch'):
        return None
    if arm == 'published':
        if not (path := study.models / 'published.safetensors').is_file():
            raise FileNotFoundError(f'{path} is missing; published.py makes it')
        return path
    if arm == 'supervised':
        return load(next(iter(cards.bundled_models().values())))
    found = cards.newest_model(study.models, arm)
    if found is None:
        raise FileNotFoundError(f'{study.models / arm} holds no model')
    return replace(load(found), heads={})


def rows_of(path: Path) -> list[dict[str, str]]:
    """All lines so far."""
    if not path.is_file():
        return []
    with path.open(newline='') as stream:
        return list(csv.DictReader(stream, delimiter='\t'))


def rate_of(arm: str, task: str, study: Study) -> float:
    """The rate that did best on validation at the middle n, first seed."""
    middle = study.sizes[len(study.sizes) // 2]
    sign = 1 if tasks.get(task).higher_is_better else -1
    scores = defaultdict(list)
    for row in rows_of(study.results):
        if (row['task'], row['arm'], int(row['n']), row['seed'], row['split']) == (
            task, arm, middle, '0', 'val'):  # fmt: skip
            scores[float(row['rate'])].append(sign * float(row['value']))
    return max(scores, key=lambda rate: float(np.mean(scores[rate])))


#: First participant of each split, and how many; those to learn from are others for each seed.
SPLITS = {'val': (500, N_VALIDATION), 'test': (0, N_TEST)}


def run_ours(
    what: Task, start: Checkpoint | None, n: int, seed: int, rate: float, steps: int,
    simulator: Simulator,
) -> dict[str, list[Rows]]:  # fmt: skip
    """One fit of our network; its figures by split and participant."""
    splits = {'train': (1000 + 100 * seed, n), **SPLITS}
    groups = {name: participants(what.name, *at, simulator) for name, at in splits.items()}
    plan = Plan(steps, 32, 2, rate, seed=seed, validate_every=max(1, steps // 6))
    with tempfile.TemporaryDirectory() as folder:
        network, _ = fit(
            what, PatchSource(groups['train'], 32), groups['val'], start, plan,
            Path(folder) / 'state',
        )  # fmt: skip
    return {name: evaluate(what, network, part, 'cpu') for name, part in groups.items()}


@torch.no_grad()
def figures_of(what: Task, network: Published, samples: Sequence[Sample]) -> list[Rows]:
    """What `evaluate` says, of the published network in one piece."""
    return [what.metrics(network(s.image[None])[0], s) for s in samples]


def run_published(
    what: Task, start: Path | None, n: int, seed: int, rate: float, steps: int,
    simulator: Simulator,
) -> dict[str, list[Rows]]:  # fmt: skip
    """One fit as published; its figures by split and participant."""
    splits = {'train': (1000 + 100 * seed, n), **SPLITS}
    groups = {
        name: [
            sample_of(simulator, k, lambda k: simulator.scan(k).targets[what.name])
            for k in range(first, first + count)
        ]
        for name, (first, count) in splits.items()
    }
    with seeded(seed):
        network = Published(what.channels)
    if start is not None:
        network.load_state_dict(load_file(start), strict=False)
    sign = -1 if what.higher_is_better else 1

    def look(now: Published) -> float:
        return sign * score_of(what, figures_of(what, now, groups['val']))

    fitted(network, PatchSource(groups['train'], 32), what.loss, steps, seed, look)
    return {name: figures_of(what, network, part) for name, part in groups.items()}


def run_one(
    task: str, arm: str, n: int, seed: int, rate: float, study: Study, simulator: Simulator
) -> None:
    """One fit and its scores, unless they are there."""
    key = (task, arm, str(n), str(seed), f'{rate:g}', str(study.steps))
    if any(tuple(row[c] for c in COLUMNS[:6]) == key for row in rows_of(study.results)):
        return
    what = tasks.get(task)
    scores = (run_published if arm.startswith('published') else run_ours)(
        what, start_of(arm, study), n, seed, rate, study.steps, simulator
    )  # type: ignore[operator]
    lines = [
        (*key, split, str(k), metric, f'{value:.6g}')
        for split, rows in scores.items()
        for k, figures in enumerate(rows)
        for metric, label, value in figures if metric == what.score
    ]  # fmt: skip
    fresh = not study.results.is_file()
    with study.results.open('a', newline='') as stream:
        writer = csv.writer(stream, delimiter='\t', lineterminator='\n')
        writer.writerows([COLUMNS] * fresh + lines)
    mean = np.mean([float(line[-1]) for line in lines if line[6] == 'test'])
    print(f'{task} {arm} n={n} seed={seed} rate={rate:g}: {what.score} {mean:.4g} on test')


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values."""
    order, adjusted, worst = np.argsort(p), np.empty(len(p)), 0.0
    for rank, index in enumerate(order):
        worst = max(worst, min(1.0, (len(p) - rank) * p[index]))
        adjusted[index] = worst
    return adjusted.tolist()


def report(task: str, study: Study) -> None:
    """Effect of each arm against scratch: seeds and, within them, participants are resampled."""
    values: dict[tuple[str, int], dict[tuple[int, int], float]] = defaultdict(dict)
    for row in rows_of(study.results):
        known = row['task'] == task and row['split'] == 'test'
        if known and float(row['rate']) == rate_of(row['arm'], task, study):
            at = (int(row['seed']), int(row['participant']))
            values[row['arm'], int(row['n'])][at] = float(row['value'])
    rng = np.random.default_rng(0)
    table = []
    for (arm, n), own in sorted(values.items(), key=lambda item: (item[0][1], item[0][0])):
        own_scratch = 'published-scratch' if arm == 'published' else 'scratch'
        base = values.get((own_scratch, n), {})
        shared = sorted(own.keys() & base.keys())
        seeds = sorted({seed for seed, _ in shared})
        if arm.endswith('scratch') or not shared:
            continue
        difference = np.array([
            [own[s, k] - base[s, k] for k in range(N_TEST)] for s in seeds
        ])  # fmt: skip
        draws = [
            difference[rng.integers(len(seeds), size=len(seeds))][
                :, rng.integers(N_TEST, size=N_TEST)].mean()
            for _ in range(4000)
        ]  # fmt: skip
        low, high = np.percentile(draws, [2.5, 97.5])
        p = 2 * min(np.mean(np.array(draws) <= 0), np.mean(np.array(draws) >= 0))
        spread = difference.mean(1).std(ddof=1) if len(seeds) > 1 else float('nan')
        table.append((arm, n, len(seeds), np.mean(list(base.values())), difference.mean(),
                      low, high, max(p, 1 / 4000), spread))  # fmt: skip
    print(f'\n{task}: {tasks.get(task).score} on {N_TEST} test participants, arm less scratch')
    print(f'{"arm":12} {"n":>3} {"seeds":>5} {"scratch":>8} {"effect":>8} '
          f'{"95 % interval":>18} {"Holm p":>7} {"s.d. of seeds":>13}')  # fmt: skip
    for row, p in zip(table, holm([row[7] for row in table]), strict=True):
        arm, n, seeds, base, effect, low, high, _, spread = row
        print(f'{arm:12} {n:3} {seeds:5} {base:8.3f} {effect:8.3f} '
              f'{low:8.3f} … {high:7.3f} {p:7.3f} {spread:13.3f}')  # fmt: skip


def main() -> int:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('results', type=Path)
    parser.add_argument('--models', type=Path, default=Path('models'))
    parser.add_argument('--task', nargs='+', default=['orientation'])
    parser.add_argument('--n', nargs='+', type=int, default=[1, 2, 4, 8, 15])
    parser.add_argument('--seeds', type=int, default=4)
    parser.add_argument('--steps', type=int, default=300)
    parser.add_argument('--rates', nargs='+', type=float, default=[1e-3, 3e-3])
    parser.add_argument('--report', action='store_true', help='print the table only')
    given = parser.parse_args()
    study = Study(given.results, given.models, given.steps, tuple(given.rates), tuple(given.n),
                  given.seeds)  # fmt: skip
    simulator = Clinic(
        material.kept_template(Path(tempfile.gettempdir()) / 'transfermri-evidence'), 77, SIDE,
        draw=protocol,
    )  # fmt: skip
    for task in given.task:
        for arm in [] if given.report else ARMS:
            try:
                start_of(arm, study)
            except (FileNotFoundError, StopIteration) as missing:
                print(f'{arm}: left out, {missing or "no bundled model"}', file=sys.stderr)
                continue
            middle = study.sizes[len(study.sizes) // 2]
            published = arm.startswith('published')
            for rate in (RATE,) if published else study.rates:
                run_one(task, arm, middle, 0, rate, study, simulator)
            best = rate_of(arm, task, study)
            for seed in range(study.seeds):
                for n in study.sizes:
                    run_one(task, arm, n, seed, best, study, simulator)
        report(task, study)
    return 0


if __name__ == '__main__':
    sys.exit(main())
