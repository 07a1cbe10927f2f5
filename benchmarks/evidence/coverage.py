"""Is what is stated of the error true? Coverage on simulated heads that no network has learnt from.

    python benchmarks/evidence/coverage.py [--model FOLDER] [--rows FILE] [--quick]

Heads and scans are those of `simheads`; what is judged is what `participant` writes. By thirds of
what is stated, least first, and of all: the share of voxels whose error is within the 68 % and the
95 % interval. Of icvf, od, isovf that is 1 and 1.96 stated deviations; of a direction, whose root
mean square angle is stated, 1.07 and 1.73 times that, which hold 68 and 95 % of two equal normal
tilts. Voxels: of directions those with one true fibre, and apart those with several; of icvf and od
those at least half white matter (these heads have neither in grey matter), and apart white matter
of one fibre; of isovf all. Wanted: 0.63 to 0.73 and 0.92 to 0.97 in each third.

A row is written as soon as its scan is done, and what has been done is not done again. ``--quick``:
one small scan, to see that all works; random weights unless a model is given.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from unittest import mock

import numpy as np
import simheads
import torch
from applied import Applied, canonical, parser_of, written
from microstructure import PARAMETERS
from scores import degrees, table
from simheads import simulated
from simulated import LEFT, case_of, one_shell

from bidsapp.modalities.dwi.learn.scalars import INTERVALS, deviations
from bidsapp.modalities.dwi.physics.axis_error import WITHIN_68, WITHIN_95
from bidsapp.modalities.dwi.simulate.protocol import Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

    from simheads import Case

SHELLS = Protocol(shells=((1000.0, 30), (2000.0, 45)), n_b0=6, snr=25.0, **LEFT)
#: Scan → protocol; seeds of heads.
SCANS = {
    '30 at b 1000, SNR 20': one_shell(30),
    '12 at b 1000, SNR 12': one_shell(12, snr=12.0),
    '30 + 45 at b 1000, 2000, SNR 25': SHELLS,
}
SEEDS = (11, 12, 13)
#: Of whose scans icvf, od and isovf are judged.
TWO_SHELLS = frozenset({'30 + 45 at b 1000, 2000, SNR 25', 'quick'})
QUICK = {'quick': Protocol(shells=((1000.0, 8), (2000.0, 8)), n_b0=1, snr=20.0)}
QUICK_SLICES = 5
ROWS = Path(__file__).parent / 'results' / 'coverage.tsv'
COLUMNS = ('model', 'scan', 'seed', 'what', 'third', 'voxels', 'stated', 'rms_error', 'in_68',
           'in_95')  # fmt: skip
#: Lowest and highest share wanted.
WANTED = {'in_68': (0.63, 0.73), 'in_95': (0.92, 0.97)}
#: Fewer voxels tell nothing of a third.
FEWEST = 300


class Judged(NamedTuple):
    """Voxels of one kind: what was stated, what was wrong, and how many stated ones are allowed."""

    what: str
    stated: np.ndarray
    error: np.ndarray
    within: tuple[float, float]


def few_slices(protocol: Protocol, seed: int) -> Case:
    """A small scan."""
    with mock.patch.object(simheads, 'SLICES', QUICK_SLICES):
        return simulated('quick', protocol, seed)


def judged(applied: Applied, case: Case, shells: bool) -> Iterator[Judged]:
    """What is judged of one scan."""
    scan = case.scan
    sample = canonical(scan)
    outputs = applied(sample)
    number = case.truth.n_fibres.numpy()
    for what, where in {
        'direction, one fibre': number == 1,
        'direction, several': number > 1,
    }.items():
        inside = scan.mask & where
        found, stated = written(scan, sample, outputs, inside)
        error = degrees(found, case.vectors[inside][:, 0])
        yield Judged(what, stated, error, (WITHIN_68, WITHIN_95))
    if not shells:
        return
    truth = np.stack([getattr(case.truth, name).numpy() for name in PARAMETERS])
    output = outputs['microstructure']
    error = np.abs(output[:3].sigmoid().numpy() - truth)
    stated = deviations(output[3:]).numpy()
    mostly = scan.mask & (case.tissue[1] >= 0.5)
    white = scan.mask & (case.tissue[1] >= 0.9) & (number == 1)
    for k, name in enumerate(PARAMETERS):
        regions = {'': scan.mask if name == 'isovf' else mostly, ', one fibre': white}
        for region, where in regions.items():
            at = where & (truth[k] >= 0)
            within = tuple(one for _, one in INTERVALS)
            yield Judged(name + region, stated[k][at], error[k][at], within)


def shares(one: Judged) -> Iterator[dict[str, object]]:
    """A row for all voxels, and for each third of what is stated."""
    order = np.argsort(one.stated, kind='stable')
    parts = {'all': order} | {str(k): p for k, p in enumerate(np.array_split(order, 3), 1)}
    for third, at in parts.items():
        if len(at) < FEWEST:
            continue
        stated, error = one.stated[at], one.error[at]
        low, high = (float((error <= z * stated).mean()) for z in one.within)
        yield {'what': one.what, 'third': third, 'voxels': len(at),
               'stated': float(np.sqrt(np.square(stated).mean())),
               'rms_error': float(np.sqrt(np.square(error).mean())),
               'in_68': low, 'in_95': high}  # fmt: skip


def read(path: Path) -> list[dict[str, str]]:
    """Rows that are there."""
    if not path.is_file():
        return []
    with path.open(newline='') as file:
        return list(csv.DictReader(file, delimiter='\t'))


def append(path: Path, rows: list[dict[str, object]]) -> None:
    """All rows of one scan at once, so that a scan is done or not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.is_file()
    with path.open('a', newline='') as file:
        writer = csv.DictWriter(file, COLUMNS, delimiter='\t', lineterminator='\n')
        if new:
            writer.writeheader()
        for row in rows:
            writer.writerow({k: f'{v:.4g}' if isinstance(v, float) else v for k, v in row.items()})


def print_tables(rows: list[dict[str, str]], label: str) -> None:
    """Means over heads, and whether they are what is wanted."""
    groups: dict[tuple[str, str, str], list[dict[str, str]]] = {}
    for row in rows:
        if row['model'] == label:
            groups.setdefault((row['scan'], row['what'], row['third']), []).append(row)
    lines = []
    for key, group in groups.items():
        means = {c: np.mean([float(row[c]) for row in group]) for c in COLUMNS[6:]}
        fine = all(low <= means[c] <= high for c, (low, high) in WANTED.items())
        lines.append([*key, len(group), *means.values(), 'reached' if fine else 'NOT reached'])
    header = ['scan', 'what', 'third', 'heads', 'stated (rms)', 'error (rms)', '68 %', '95 %', '']
    table(header, lines)


def main() -> None:
    """Rows that are missing, then the table."""
    parser = parser_of(__doc__)
    parser.add_argument('--rows', type=Path, default=ROWS)
    parser.add_argument('--quick', action='store_true', help='one scan; figures mean nothing')
    given = parser.parse_args()
    applied = Applied(given.model)
    print(f'Network: {applied.name}\n')
    done = {(row['model'], row['scan'], row['seed']) for row in read(given.rows)}
    for name, protocol in (QUICK if given.quick else SCANS).items():
        for seed in SEEDS[:1] if given.quick else SEEDS:
            if (applied.label, name, str(seed)) in done:
                continue
            case = few_slices(protocol, seed) if given.quick else case_of(protocol, seed)
            first = {'model': applied.label, 'scan': name, 'seed': seed}
            with torch.inference_mode():
                found = list(judged(applied, case, name in TWO_SHELLS))
            append(given.rows, [{**first, **row} for one in found for row in shares(one)])
    print_tables(read(given.rows), applied.label)


if __name__ == '__main__':
    main()
