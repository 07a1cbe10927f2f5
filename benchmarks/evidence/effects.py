"""The tables of `pretraining.py`: what each arm gains over its scratch, with intervals.

    python benchmarks/evidence/effects.py RESULTS.tsv [--steps 120]

Differences of each test participant, arm less scratch at the same n and seed; seeds and test
participants (the same for all seeds) are both drawn again, 4000 times; Holm's correction over the
rows of a table. Beside it the gap from training to test participants and the spread between seeds,
which are half of the source paper's claim (its Figure 4).
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

COLUMNS = ('arm', 'n', 'seed', 'rate', 'steps', 'split', 'participant', 'task', 'metric', 'value')
SHOWN = (('tissue', 'f1_macro'), ('orientation', 'angular_error_median'),
         ('crossings', 'f1_macro'), ('crossings', 'accuracy'), ('all', 'loss'))  # fmt: skip
DRAWS = 4000


def read_results(path: Path) -> list[dict[str, str]]:
    """All lines so far."""
    if not path.is_file():
        return []
    with path.open(newline='') as stream:
        return list(csv.DictReader(stream, delimiter='\t'))


def is_done(path: Path, *key: str) -> bool:
    """Whether there is a line that begins with ``key``."""
    return any(tuple(row.values())[: len(key)] == key for row in read_results(path))


def append(path: Path, lines: Sequence[Sequence[str]], columns: Sequence[str] = COLUMNS) -> None:
    """Add lines at once, so that two processes may write to one file."""
    header = [] if path.is_file() else ['\t'.join(columns)]
    text = '\n'.join([*header, *('\t'.join(line) for line in lines)]) + '\n'
    with path.open('a', newline='') as stream:
        stream.write(text)


def best_rate(path: Path, arm: str, steps: int) -> float:
    """The only rate, or that of the least loss on validation where several were tried.

    (At one n, with the first seed.)
    """
    losses: dict[tuple[str, float], list[float]] = defaultdict(list)
    rows = read_results(path)
    rates = {row['rate'] for row in rows if (row['arm'], row['steps']) == (arm, str(steps))}
    if len(rates) == 1:
        return float(rates.pop())
    for row in rows:
        if (row['arm'], row['steps'], row['seed'], row['split'], row['metric']) == (
            arm, str(steps), '0', 'val', 'loss'):  # fmt: skip
            losses[row['n'], float(row['rate'])].append(float(row['value']))
    tried = {n: [rate for at, rate in losses if at == n] for n, _ in losses}
    n = max(tried, key=lambda n: len(tried[n]))
    return min(tried[n], key=lambda rate: float(np.mean(losses[n, rate])))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values."""
    order, adjusted, worst = np.argsort(p), np.empty(len(p)), 0.0
    for rank, index in enumerate(order):
        worst = max(worst, min(1.0, (len(p) - rank) * p[index]))
        adjusted[index] = worst
    return adjusted.tolist()


#: (arm, n, split) → (seeds, participants) of one metric.
Values = dict[tuple[str, int, str], np.ndarray]


def values_of(path: Path, task: str, metric: str, steps: int) -> Values:
    """One metric of every arm at its best rate, of seeds that are done with all participants."""
    rows = [row for row in read_results(path) if row['steps'] == str(steps)]
    rates = {arm: best_rate(path, arm, steps) for arm in {row['arm'] for row in rows}}
    found: dict[tuple[str, int, str], dict[int, dict[int, float]]] = {}
    for row in rows:
        if (row['task'], row['metric']) == (task, metric) and (
            float(row['rate']) == rates[row['arm']]
        ):
            at = found.setdefault((row['arm'], int(row['n']), row['split']), {})
            at.setdefault(int(row['seed']), {})[int(row['participant'])] = float(row['value'])
    result = {}
    for key, by in found.items():
        most = max(map(len, by.values()))
        whole = [by[seed] for seed in sorted(by) if len(by[seed]) == most]
        result[key] = np.array([[one[k] for k in sorted(one)] for one in whole])
    return result


def effect_of(own: np.ndarray, base: np.ndarray) -> tuple[float, float, float, float]:
    """(mean, 2.5 %, 97.5 %, p) of the differences (seeds, participants)."""
    seeds = min(len(own), len(base))
    difference = own[:seeds] - base[:seeds]
    rng = np.random.default_rng(0)
    draws = np.empty(DRAWS)
    for k in range(DRAWS):
        some = difference[rng.integers(seeds, size=seeds)]
        draws[k] = np.nanmean(some[:, rng.integers(some.shape[1], size=some.shape[1])])
    low, high = np.percentile(draws, [2.5, 97.5])
    p = 2 * min(np.mean(draws <= 0), np.mean(draws >= 0))
    return float(np.nanmean(difference)), float(low), float(high), max(float(p), 1 / DRAWS)


def table(values: Values, title: str) -> None:
    """Print one metric of every arm and n."""
    effects = {}
    for arm, n, split in values:
        base = values.get(('published-scratch' if arm == 'published' else 'scratch', n, 'test'))
        if split == 'test' and not arm.endswith('scratch') and base is not None:
            effects[arm, n] = effect_of(values[arm, n, 'test'], base)
    corrected = dict(zip(effects, holm([e[3] for e in effects.values()]), strict=True))
    print(f'\n{title}, on test participants\n')
    print('| n | arm | seeds | mean | s.d. of seeds | training less test | arm less scratch (95 %) '
          '| Holm p |')  # fmt: skip
    print('| --- ' * 8 + '|')
    for arm, n, split in sorted(values, key=lambda key: (key[1], key[0])):
        if split != 'test':
            continue
        own = values[arm, n, 'test']
        gap = np.nanmean(values[arm, n, 'train']) - np.nanmean(own)
        spread = np.nanmean(own, 1).std(ddof=1) if len(own) > 1 else float('nan')
        said = ' | '
        if (arm, n) in effects:
            mean, low, high, _ = effects[arm, n]
            said = f'{mean:+.3f} ({low:+.3f} to {high:+.3f}) | {corrected[arm, n]:.3f}'
        print(f'| {n} | {arm} | {len(own)} | {np.nanmean(own):.3f} | {spread:.3f} | {gap:+.3f} '
              f'| {said} |')  # fmt: skip


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('results', type=Path)
    parser.add_argument('--steps', type=int, default=120)
    given = parser.parse_args()
    for task, metric in SHOWN:
        table(values_of(given.results, task, metric, given.steps), f'{task}: {metric}')


if __name__ == '__main__':
    main()
