"""The tables of `real_directions.py`, from its rows: means over choices, and intervals over them.

A mean of ratios over choices of directions in a scan; over rows, of those. The interval of a
difference between two methods draws scans and, within them, choices again, 4000 times.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np
from effects import read_results
from scores import table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

DRAWS = 4000
NETWORK, ALONE = 'network in the estimator', 'network alone'
#: Columns of the table of angles: title → whether a method's row is meant.
ANGLES = {
    'tensor': 'tensor', 'isotropic': 'isotropic in the estimator',
    'blur': 'blur in the estimator', 'network': NETWORK, 'alone': ALONE,
}  # fmt: skip
#: The same of volumes left out; of several methods the best, chosen afterwards.
LEFT: dict[str, Callable[[str], bool]] = {
    'input': lambda m: m == 'input',
    'blur': lambda m: m == 'input' or (m.startswith('blur') and not m.endswith('tensor')),
    'tensor': lambda m: m == 'tensor',
    'blur, tensor': lambda m: m.endswith('tensor'),
    'isotropic': lambda m: m == 'isotropic',
    'network': lambda m: m == NETWORK,
    'alone': lambda m: m == ALONE,
}

Rows = list[dict[str, str]]


def print_tables(path: Path) -> None:
    """Every model in turn."""
    rows = read_results(path)
    for model in dict.fromkeys(row['model'] for row in rows):
        own = [row for row in rows if row['model'] == model]
        print(f'\nNetwork: {model}\n')
        refused = sum(row['endpoint'] == 'refused' for row in own)
        angles([row for row in own if row['endpoint'] == 'angle'])
        left_out([row for row in own if row['endpoint'] == 'left out'])
        print(f'{refused} divisions refused: their parts lie more than 0.2 mm apart')


def grouped(rows: Iterable[Mapping[str, str]], *columns: str) -> dict[tuple[str, ...], Rows]:
    """Rows by the values of ``columns``, in their order."""
    found: dict[tuple[str, ...], Rows] = defaultdict(list)
    for row in rows:
        found[tuple(row[c] for c in columns)].append(dict(row))
    return found


def plain(method: str) -> str:
    """The method without the width of its blur, and without how it was scored."""
    method = method.removesuffix(', as magnitude')
    ends = method.endswith('in the estimator')
    return 'blur in the estimator' if ends and method.startswith('blur') else method


def mean(rows: Rows, column: str) -> float:
    """Over choices."""
    return float(np.mean([float(row[column]) for row in rows])) if rows else float('nan')


def about(rows: Rows) -> str:
    """Choices, and how far their parts lie apart at most."""
    furthest = max(float(row['offset_mm']) for row in rows)
    return f'{len({row["choice"] for row in rows})}, {furthest:.2f} mm'


def angles(rows: Rows) -> None:
    """Angles over the best blur's."""
    lines: list[list[object]] = []
    scored: list[tuple[str, str, float]] = []
    for key, group in grouped(rows, 'role', 'scan', 'directions', 'region').items():
        by = grouped(group, 'method')
        best = by['best blur',]
        names = ' / '.join(dict.fromkeys(r['value'].removesuffix(' + tensor') for r in best))
        own = [r for b in best for r in by[b['value'],] if r['choice'] == b['choice']]
        ratios = {
            title: mean([r for r in group if plain(r['method']) == m], 'ratio')
            for title, m in ANGLES.items()
        }
        lines.append([*key, about(group), names, mean(own, 'value'), *ratios.values(),
                      mean(best, 'floor')])  # fmt: skip
        scored.append((key[0], key[2], ratios['network']))
    print('Angle to the tensor of the volumes left out, over the best blur')
    table(['role', 'scan', 'in', 'region', 'choices, apart', 'best blur', 'its median', *ANGLES,
           'floor'], lines)  # fmt: skip
    for role, n in dict.fromkeys(pair for r, m, _ in scored for pair in ((r, 'any'), (r, m))):
        here = [value for r, m, value in scored if r == role and n in ('any', m)]
        part = [r for r in rows if r['role'] == role and n in ('any', r['directions'])]
        gaps = [
            'less {} {:+.3f} ({:+.3f} to {:+.3f})'.format(name, *difference(part, NETWORK, other))
            for name, other in (('blur', ANGLES['blur']), ('isotropic', ANGLES['isotropic']))
        ]
        print(f'  who {role}, {n} in: network {np.mean(here):.3f}, worst {max(here):.3f}; '
              f'{", ".join(gaps)}')  # fmt: skip
    print()


def left_out(rows: Rows) -> None:
    """Squared errors over the input's."""
    lines: list[list[object]] = []
    scored: dict[tuple[str, str], list[dict[str, float]]] = defaultdict(list)
    for key, group in grouped(rows, 'role', 'scan', 'directions', 'region').items():
        chosen: dict[str, Rows] = {title: [] for title in LEFT}
        for choice in grouped(group, 'choice').values():
            for title, meant in LEFT.items():
                own = [row for row in choice if meant(plain(row['method']))]
                chosen[title].append(min(own, key=lambda row: float(row['ratio'])))
        above = [mean(chosen[title], 'upper') for title in LEFT]
        ratios = {title: mean(chosen[title], 'ratio') for title in LEFT if title != 'input'}
        worst = max(float(row['high']) for row in chosen['alone'])
        lines.append([*key, *above, '|', *ratios.values(), worst, '|',
                      mean(chosen['input'], 'floor')])  # fmt: skip
        scored[key[0], key[3]].append(ratios)
    print('Volumes left out: error above the noise, share of S0 | squared error over the input\'s, '
          'upper end of alone\'s intervals | floor')  # fmt: skip
    titles = [*LEFT, '|', *(title for title in LEFT if title != 'input')]
    table(['role', 'scan', 'in', 'region', *titles, 'upper end', '|', 'floor'], lines)
    for (role, region), each in scored.items():
        means = {title: np.mean([ratios[title] for ratios in each]) for title in each[0]}
        print(f'  who {role}, {region}: mean of '
              f'{", ".join(f"{title} {value:.3f}" for title, value in means.items())}')  # fmt: skip


def difference(rows: Rows, ours: str, theirs: str) -> tuple[float, float, float]:
    """Mean difference of ratios, and its 95 % interval over scans and choices."""
    scans = []
    for group in grouped(rows, 'scan').values():
        choices = []
        for one in grouped(group, 'directions', 'choice').values():
            each = [np.mean([float(r['ratio']) for r in one if plain(r['method']) == m])
                    for m in (ours, theirs)]  # fmt: skip
            choices.append(each[0] - each[1])
        scans.append(np.array(choices))
    rng = np.random.default_rng(0)
    drawn = [
        np.mean([rng.choice(scans[k], len(scans[k])).mean()
                 for k in rng.integers(len(scans), size=len(scans))])
        for _ in range(DRAWS)
    ]  # fmt: skip
    low, high = np.quantile(drawn, (0.025, 0.975))
    return float(np.mean([s.mean() for s in scans])), float(low), float(high)
