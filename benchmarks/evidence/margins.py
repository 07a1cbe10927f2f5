"""Rows of a claim, written one by one, and what follows from them: margins with intervals.

A row is one figure of one method on one head. Methods that hold no network are `classical` in the
first column: they are worked out once, whatever is compared with them. Of several settings of a
method (the width of a blur, the height of a peak) either the one that is best on average over the
heads counts, which no user can choose so well, or the one that is best on heads for tuning.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from applied import Applied, parser_of
from effects import append, is_done, read_results
from foreign import TUNED, heads, scanned
from scores import table

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Sequence

    from foreign import Known, Scheme

COLUMNS = ('made_by', 'scheme', 'head', 'method', 'setting', 'metric', 'value')
CLASSICAL = 'classical'
#: One figure: (method, setting, metric, value).
Figure = tuple[str, str, str, float]
DRAWS = 4000
RESULTS = Path(__file__).with_name('results')


@dataclass(frozen=True)
class Claim:
    """What is asked for on the command line."""

    applied: Applied
    results: Path
    quick: bool
    heads: list[str]
    only_tables: bool
    given: argparse.Namespace


def claim_parser(description: str | None) -> argparse.ArgumentParser:
    """Options that the claims share."""
    parser = parser_of(description)
    parser.add_argument('--heads', type=int, default=6, help='of each anatomy')
    parser.add_argument('--results', type=Path, help='rows; default: results/<this script>.tsv')
    parser.add_argument('--quick', action='store_true', help='one coarse head, to try it all out')
    parser.add_argument('--tables', action='store_true', help='only print the rows so far')
    return parser


def claim_of(parser: argparse.ArgumentParser, name: str) -> Claim:
    """The command line, read. Rows of ``--quick`` never come among the others."""
    given = parser.parse_args()
    usual = RESULTS / f'{name}.tsv'
    if given.quick:
        usual = Path(tempfile.mkdtemp(prefix='transfermri-quick-')) / usual.name
    people = ['mni-1'] if given.quick else heads(given.heads)
    applied = Applied(given.model)
    print(f'Network: {applied.name}\nRows: {given.results or usual}\n')
    return Claim(applied, given.results or usual, given.quick, people, given.tables, given)


class Scanned:
    """A head by a scheme, scanned when it is asked for."""

    def __init__(self, head: str, scheme: Scheme) -> None:
        self.head, self.scheme = head, scheme

    @cached_property
    def known(self) -> Known:
        """The scan and its truth."""
        return scanned(self.head, self.scheme)

    def write(
        self,
        path: Path,
        made_by: str,
        figures: Callable[[Known], Iterable[Figure]],
        ending: str = '',
    ) -> None:
        """Figures of this scan, all at once, unless they are there."""
        name = self.scheme.name + ending
        if is_done(path, made_by, name, self.head):
            return
        lines = [
            (made_by, name, self.head, method, setting, metric, f'{value:.6g}')
            for method, setting, metric, value in figures(self.known)
        ]
        append(path, lines, COLUMNS)
        print(f'{made_by}, {name}, {self.head}: {len(lines)} rows', flush=True)


@dataclass(frozen=True)
class Series:
    """One metric of one method over heads."""

    method: str
    setting: str
    values: dict[str, float]  #: head → value

    @property
    def mean(self) -> float:
        """Over heads."""
        return float(np.mean(list(self.values.values())))

    @property
    def name(self) -> str:
        """Method and setting."""
        return f'{self.method}, {self.setting}' if self.setting else self.method


def for_tuning(head: str) -> bool:
    """Whether settings are tuned on this head, which is no test then."""
    return int(head.rpartition('-')[2]) >= TUNED


def series(
    path: Path, made_by: Sequence[str], scheme: str, metric: str, tuning: bool = False
) -> list[Series]:
    """Every method and setting of one metric."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for row in read_results(path):
        if (row['scheme'], row['metric']) != (scheme, metric) or row['made_by'] not in made_by:
            continue
        if for_tuning(row['head']) == tuning:
            at = found.setdefault((row['method'], row['setting']), {})
            at[row['head']] = float(row['value'])
    return [Series(method, setting, values) for (method, setting), values in found.items()]


def chosen(
    all_settings: Sequence[Series], higher: bool, tuning: Sequence[Series] = ()
) -> list[Series]:
    """A setting a method: best on heads for tuning where there are any, else best afterwards."""
    sign = 1 if higher else -1
    judged = {(s.method, s.setting): s.mean for s in tuning}
    result = {}
    for one in all_settings:
        score = sign * judged.get((one.method, one.setting), one.mean)
        if one.method not in result or score > result[one.method][0]:
            result[one.method] = (score, one)
    return [one for _, one in result.values()]


@dataclass(frozen=True)
class Margin:
    """Ours against theirs over the heads that both have; 95 % interval over heads."""

    value: float
    low: float
    high: float
    heads: int
    ratio: bool = False

    @property
    def words(self) -> str:
        """For tables."""
        sign = '' if self.ratio else '+'
        value, low, high = (f'{x:{sign}.3f}' for x in (self.value, self.low, self.high))
        return f'{value} ({low} to {high})'


def margin(ours: Series, theirs: Series, ratio: bool = False) -> Margin:
    """Mean difference, or ratio of means, with a bootstrap over heads."""
    both = sorted(ours.values.keys() & theirs.values.keys())
    a, b = (np.array([one.values[head] for head in both]) for one in (ours, theirs))
    draws = np.random.default_rng(0).integers(len(both), size=(DRAWS, len(both)))

    def of(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return x.mean(-1) / y.mean(-1) if ratio else x.mean(-1) - y.mean(-1)

    low, high = np.percentile(of(a[draws], b[draws]), [2.5, 97.5])
    return Margin(float(of(a, b)), float(low), float(high), len(both), ratio)


def said(fine: bool) -> str:
    """In words."""
    return 'reached' if fine else 'NOT reached'


def print_margins(
    title: str,
    ours: Series,
    theirs: Sequence[Series],
    ratio: bool,
    verdict: Callable[[Series, Margin], str],
) -> None:
    """Each comparator beside ours, best last."""
    print(title)
    rows: list[list[object]] = [[ours.name, ours.mean, '', '', len(ours.values)]]
    for one in theirs:
        found = margin(ours, one, ratio)
        rows.append([one.name, one.mean, found.words, verdict(one, found), found.heads])
    what = 'network over it' if ratio else 'network less it'
    table(['method', 'mean over heads', f'{what} (95 % over heads)', 'verdict', 'heads'], rows)
