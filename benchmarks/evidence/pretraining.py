"""Does pretraining help? The source paper's experiment on a target that pretraining never saw.

    python benchmarks/evidence/arms.py MODELS; python benchmarks/evidence/published.py MODELS
    python benchmarks/evidence/pretraining.py RESULTS.tsv --models MODELS [--arms …]
        [--n 1 4 15] [--seeds 4] [--steps 120] [--rates 1e-3 3e-3]
    python benchmarks/evidence/effects.py RESULTS.tsv     # the tables

Target: people as they are (no strong deformation, anatomical bundles), upright, 2.4 mm, 32
directions at b = 1000: settings that the pretraining simulator never draws together. Tissue,
direction and number of fibres are learnt together on one body, by the sum of their losses. Arms:
`scratch`; `autoencoder`, `restore` (body only) and `supervised` (body and heads), made in equal
steps (`arms.py`); `bundled`, the weights in the package; and source paper 1 as published
(`published.py`), beside its own scratch.

Each is fitted to n participants in equal steps, of which the best on 4 validation participants is
kept, with the rate that did best there at the middle n (published: 1e-3); 24 other participants are
the test. Every finished fit is some lines of RESULTS.tsv: the study may be stopped at any time and
goes on from there, and several processes may each do other arms. A missing model is said.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from dataclasses import dataclass, replace
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from effects import SHOWN, append, best_rate, is_done
from published import RATE, Published, fitted, sample_of
from realscans import KEPT
from safetensors.torch import load_file, save_file

from bidsapp import registry
from bidsapp.core import Checkpoint, Plan, Sample
from bidsapp.learn.cards import bundled_models
from bidsapp.learn.checkpoint import load
from bidsapp.learn.fit import fit
from bidsapp.learn.joint import joint
from bidsapp.learn.patches import PatchSource, seeded
from bidsapp.learn.predict import predict
from bidsapp.modalities.dwi.physics.harmonics import fibonacci_hemisphere
from bidsapp.modalities.dwi.simulate.blocks import Block, make_block
from bidsapp.modalities.dwi.simulate.corruption import Table
from bidsapp.modalities.dwi.simulate.fibres import draw_bundles
from bidsapp.modalities.dwi.simulate.simulator import Simulator
from bidsapp.simulate import template_head
from bidsapp.simulate.anatomy import draw_head
from bidsapp.simulate.grids import Grid
from bidsapp.simulate.material import target_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

ARMS = ('scratch', 'autoencoder', 'restore', 'supervised', 'bundled', 'published-scratch',
        'published')  # fmt: skip
TASKS = tuple(registry.task(name) for name in ('tissue', 'orientation', 'crossings'))
WHAT = joint([task.head for task in TASKS])
VOXEL, SIDE, PATCH = 2.4, 32, (24, 24, 24)
#: Steps that may be kept are a fit's over this apart; participants learnt from that are scored.
LOOKS, FROM_TRAINING = 4, 4
#: First participant of each split, and how many; those to learn from are others for each seed, and
#: (`Simulator.block`: numbers 192 apart are other people) share nobody.
SPLITS = {'val': (500, 4), 'test': (0, 24)}
FIRST_TRAINED, BETWEEN_SEEDS = 1000, 200


class Clinic(Simulator):
    """One participant a number: the middle of an ordinary head, scanned with one protocol."""

    @lru_cache(maxsize=1)  # noqa: B019  # the last one is asked for again, by another input
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


@cache
def participant(simulator: Clinic, number: int, published: bool) -> Sample:
    """A participant with the labels of all tasks, entered as we do or as was published; kept."""
    kept = KEPT / f'clinic-{SIDE}-{number}{"-published" * published}.safetensors'
    if not kept.is_file():
        if published:
            ours = participant(simulator, number, published=False)
            assert ours.target is not None
            mask, labels = ours.mask, ours.target
            image = sample_of(simulator, number, lambda _: labels).image
        else:
            scan = simulator.scan(number)
            image, mask, labels = scan.image, scan.mask, target_of(scan, TASKS)
        hidden = kept.with_suffix(f'.{os.getpid()}')
        save_file({'image': image, 'mask': mask, 'target': labels}, hidden)
        hidden.rename(kept)
    tensors = load_file(kept)
    affine = np.diag([VOXEL, VOXEL, VOXEL, 1.0])
    return Sample(tensors['image'], tensors['mask'], affine, tensors['target'])


@dataclass(frozen=True)
class Study:
    """What is asked for on the command line."""

    results: Path
    models: Path
    arms: tuple[str, ...]
    steps: int
    rates: tuple[float, ...]
    sizes: tuple[int, ...]
    seeds: int


def start_of(arm: str, models: Path) -> Checkpoint | Path | None:
    """Where an arm starts. Raises FileNotFoundError where its model is not there."""
    if arm.endswith('scratch'):
        return None
    if arm == 'bundled':
        return load(bundled_models()['tissue'])
    path = models / ('published.safetensors' if arm == 'published' else f'{arm}/v1')
    if not path.exists():
        maker = 'published.py' if arm == 'published' else 'arms.py'
        raise FileNotFoundError(f'{path} is missing; {maker} makes it')
    if arm == 'published':
        return path
    return load(path) if arm == 'supervised' else replace(load(path), heads={})


@torch.no_grad()
def figures_of(say: Callable[[Sample], Tensor], sample: Sample) -> Iterator[tuple[str, str, float]]:
    """(task, metric, value) of what ``say`` makes of a sample, and the sum of losses."""
    assert sample.target is not None
    output = say(sample)
    yield 'all', 'loss', float(WHAT.loss(output[None], sample.target[None], sample.mask[None]))
    outputs = output.split([task.head.channels for task in TASKS])
    targets = sample.target.split([task.head.targets for task in TASKS])
    for task, own, target in zip(TASKS, outputs, targets, strict=True):
        for metric, label, value in task.head.metrics(own, replace(sample, target=target)):
            if label in ('all', 'WM') and (task.name, metric) in SHOWN:
                yield task.name, metric, value


Groups = dict[str, list[Sample]]


def fit_ours(
    arm: str, groups: Groups, study: Study, seed: int, rate: float
) -> Callable[[Sample], Tensor]:
    """One fit of our network."""
    start = start_of(arm, study.models)
    assert not isinstance(start, Path)
    plan = Plan(study.steps, PATCH, 2, rate, seed=seed, validate_every=max(1, study.steps // LOOKS))
    with tempfile.TemporaryDirectory() as folder:
        network, _ = fit(
            registry.input('dwi'), WHAT, PatchSource(groups['train'], PATCH), groups['val'], start,
            plan, Path(folder) / 'state',
        )  # fmt: skip
    return partial(predict, network, device='cpu')


def fit_published(
    arm: str, groups: Groups, study: Study, seed: int, rate: float
) -> Callable[[Sample], Tensor]:
    """One fit as published, with the labels and losses of ours."""
    start = start_of(arm, study.models)
    with seeded(seed):
        network = Published(WHAT.channels)
    if isinstance(start, Path):
        network.load_state_dict(load_file(start), strict=False)

    def say(sample: Sample) -> Tensor:
        return network(sample.image[None])[0]

    def look(_: Published) -> float:
        return float(np.mean([next(figures_of(say, sample))[2] for sample in groups['val']]))

    fitted(network, PatchSource(groups['train'], PATCH), WHAT.loss, study.steps, seed, look, LOOKS)
    return say


def run_one(arm: str, n: int, seed: int, rate: float, study: Study, simulator: Clinic) -> None:
    """One fit and its figures, unless they are there."""
    key = (arm, str(n), str(seed), f'{rate:g}', str(study.steps))
    if is_done(study.results, *key):
        return
    published = arm.startswith('published')
    splits = {'train': (FIRST_TRAINED + BETWEEN_SEEDS * seed, n), **SPLITS}
    groups = {
        name: [participant(simulator, k, published) for k in range(first, first + count)]
        for name, (first, count) in splits.items()
    }
    say = (fit_published if published else fit_ours)(arm, groups, study, seed, rate)
    lines = [
        (*key, split, str(k), task, metric, f'{value:.6g}')
        for split, samples in groups.items()
        for k, sample in enumerate(samples if split != 'train' else samples[:FROM_TRAINING])
        for task, metric, value in figures_of(say, sample)
    ]
    append(study.results, lines)
    loss = np.mean([float(x[-1]) for x in lines if (x[5], x[8]) == ('test', 'loss')])
    print(f'{arm} n={n} seed={seed} rate={rate:g}: loss {loss:.4g} on test', flush=True)


def chosen_rate(arm: str, study: Study, simulator: Clinic) -> float:
    """The rate that does best on validation at the middle n, first seed."""
    middle = study.sizes[len(study.sizes) // 2]
    rates = (RATE,) if arm.startswith('published') else study.rates
    for rate in rates if len(rates) > 1 else ():
        run_one(arm, middle, 0, rate, study, simulator)
    return best_rate(study.results, arm, study.steps) if len(rates) > 1 else rates[0]


def main() -> int:
    """Run what is missing, all arms of a seed before the next seed."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('results', type=Path)
    parser.add_argument('--models', type=Path, default=Path('models'))
    parser.add_argument('--arms', nargs='+', choices=ARMS, default=ARMS)
    parser.add_argument('--n', nargs='+', type=int, default=[1, 2, 4, 8, 15])
    parser.add_argument('--seeds', type=int, default=4)
    parser.add_argument('--steps', type=int, default=120)
    parser.add_argument('--rates', nargs='+', type=float, default=[1e-3, 3e-3])
    given = parser.parse_args()
    torch.set_num_threads(int(os.environ.get('OMP_NUM_THREADS', '1')))
    study = Study(given.results, given.models, tuple(given.arms), given.steps, tuple(given.rates),
                  tuple(given.n), given.seeds)  # fmt: skip
    simulator = Clinic(template_head.kept_template(KEPT), 77, SIDE, draw=protocol)
    for seed in range(study.seeds):
        for arm in study.arms:
            try:
                start_of(arm, study.models)
            except FileNotFoundError as missing:
                print(f'{arm}: left out, {missing}', file=sys.stderr)
                continue
            rate = chosen_rate(arm, study, simulator)
            for n in study.sizes:
                run_one(arm, n, seed, rate, study, simulator)
    return 0


if __name__ == '__main__':
    sys.exit(main())
