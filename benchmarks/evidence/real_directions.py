"""What few volumes of a real scan say of its other volumes: directions, and the volumes themselves.

    python benchmarks/evidence/real_directions.py [--model FOLDER] [--data BIDS_FOLDER …]
        [--scans sub-achieva …] [--directions 12 6] [--results FILE.tsv] [--table]

A run is corrected as a whole and then divided (`realscans`): well-conditioned directions in, all
others left out, b = 0 shared; parts more than 0.2 mm apart are refused, and so is a scan that the
model's card names (`people`). What is done goes on from FILE.tsv; --table prints its tables only.

*angle*: median and 90th percentile of the angle in degrees to the tensor of the volumes left out.
White matter: where both parts see brain and the latter, smoothed by 1.5 voxels so that noise is no
anisotropy, have FA > 0.25 and MD < 1.5e-3 mm²/s; core: one voxel (6 neighbours) inside; edge: the
rest. Ratio: over the best blur, chosen afterwards in that region (tensor: a blur of 0), interval by
blocks of 15 mm. Floor: what a perfect answer would score (`reference`). 'in the estimator': a
prediction in the place of the network's in `physics.restored`, tensor of what comes back; the blur
there is the one with the lowest median in white matter. 'network alone': tensor of what its
harmonics say in 60 directions.

*left out*: the volumes left out, in the unit of the signal (`left_out`): root mean square error,
and what of it exceeds the noise, both as shares of S0. Ratio of squared errors over the input's own
harmonics (what a head that changes nothing says), noise included, interval by volumes in pairs.
Floor: the noise's share, by what the tensor of the left-out volumes leaves of them, which is noise
and what is no tensor. Every prediction is of the scan's own S0. Volumes with a predicted slice do
not count.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from applied import (
    Applied,
    canonical,
    corrected_harmonics,
    harmonics_of,
    in_estimator,
    named,
    parser_of,
    said_signal,
)
from comparators import BLURS, blurred, directions, isotropic, of_tensor, tensor, used
from effects import append, is_done
from left_out import left, ratio
from people import Seen, add_choice, announced, chosen, refuse_seen, role_of
from real_tables import print_tables
from realscans import APART, CHOICES, MADE_BY, Divided, divided, kept, key_of, version
from reference import noise, own_error
from scipy.ndimage import binary_erosion
from scores import blocks, degrees, histogram, quantile, ratio_interval

from bidsapp.learn.seen import identity, seen_scans
from bidsapp.modalities.dwi.physics.diffusion import fit_tensor
from bidsapp.modalities.dwi.physics.gradients import GradientTable
from bidsapp.modalities.dwi.physics.harmonics import fibonacci_hemisphere
from bidsapp.modalities.dwi.physics.qspace import filled_slots
from bidsapp.modalities.dwi.physics.restored import slots_of_volumes
from bidsapp.modalities.dwi.physics.unweighted import signal_at_zero
from bidsapp.physics.geometry import voxel_sizes
from bidsapp.problems import Problem

if TYPE_CHECKING:
    from realscans import Scan

COLUMNS = ('model', 'scan', 'content', 'directions', 'choice', 'role', 'code', 'offset_mm',
           'endpoint', 'region', 'method', 'value', 'upper', 'ratio', 'low', 'high',
           'floor')  # fmt: skip
RESULTS = Path(__file__).parent / 'results' / 'real_directions.tsv'
#: The modules of this folder whose version stands in a row.
CODE = (*MADE_BY, 'applied', 'comparators', 'left_out', 'reference', 'scores', 'real_directions')
#: What stands in a row after 'offset_mm'.
Row = tuple[str | float, ...]
BLUR, BEST, INPUT = 'blur {:g} mm', 'best blur', 'input'
IN_ESTIMATOR, ALONE, FIRST = 'network in the estimator', 'network alone', 'network: first fibre'


@dataclass(frozen=True, slots=True, eq=False)
class White:
    """White matter (X, Y, Z) bool; of its voxels (V,) which are core, (V, 3) reference axes."""

    where: np.ndarray
    core: np.ndarray
    axes: np.ndarray


def white_matter(parts: Divided) -> White:
    """By the reference alone."""
    both = parts.scan.mask & parts.reference.mask
    width = 1.5 * float(np.mean(voxel_sizes(parts.scan.affine)))
    maps = tensor(blurred(replace(parts.reference, mask=both), width), both)
    white = both & (maps.fa > 0.25) & (maps.md < 1.5e-3)
    axes = tensor(parts.reference, white).direction[white]
    return White(white, binary_erosion(white)[white], axes)


def comparators_of(parts: Divided, name: str, white: np.ndarray) -> dict[str, np.ndarray]:
    """`comparators.directions`, kept from run to run."""

    def write(to: Path) -> None:
        found = directions(parts.scan, parts.denoised, white)
        np.savez(to, **{key: a.astype(np.float32) for key, a in found.items()})

    with np.load(kept(f'{name}-comparators', write, *MADE_BY, 'comparators')) as arrays:
        return dict(arrays)


class Asked:
    """The network's answer to one input, asked once."""

    def __init__(self, applied: Applied, scan: Scan) -> None:
        self.scan, sample = scan, canonical(scan)
        self.image, self.outputs = sample.image, applied(sample)
        self.harmonics = corrected_harmonics(self.image, self.outputs, scan.mask)

    def restored(self) -> Scan:
        """The scan as `participant` restores it."""
        said = said_signal(self.scan, self.harmonics, self.scan.gtab)
        return with_volumes(self.scan, in_estimator(self.scan, said))

    def axes(self, white: np.ndarray) -> dict[str, np.ndarray]:
        """(V, 3) world axes by every way to ask it."""
        first, restored = named(self.scan, self.image, self.outputs, white)
        table = dense(self.scan.gtab)
        said = np.ones((len(table), int(self.scan.mask.sum())), np.float32)
        said[:1] = signal_at_zero(self.scan.data[self.scan.mask], self.scan.gtab)
        said[1:] = said_signal(self.scan, self.harmonics, table)
        alone = fit_tensor(said[:, white[self.scan.mask]], table).direction
        return {IN_ESTIMATOR: restored, ALONE: alone, FIRST: first}


def dense(gtab: GradientTable) -> GradientTable:
    """One b = 0 and 60 directions in each shell that harmonics describe."""
    shells = list(filled_slots(gtab).values())
    bvecs = [np.zeros((1, 3)), *[fibonacci_hemisphere(60)] * len(shells)]
    return GradientTable(np.concatenate(bvecs), np.r_[0.0, np.repeat(shells, 60)])


def with_volumes(scan: Scan, volumes: np.ndarray) -> Scan:
    """``scan`` with other volumes (N, V) in the mask."""
    data = np.zeros_like(scan.data)
    data[scan.mask] = volumes.T
    return replace(scan, data=data)


def axes_of(scan: Scan, volumes: np.ndarray, white: np.ndarray) -> np.ndarray:
    """(V, 3) world axes in ``white`` of the tensor of volumes (N, V') in the mask."""
    return fit_tensor(volumes[:, white[scan.mask]], scan.gtab).direction


def angle_rows(asked: Asked, parts: Divided, white: White, name: str) -> list[Row]:
    """Every method in core and edge."""
    scan = parts.scan
    found = comparators_of(parts, name, white.where)
    errors = {m: degrees(axes, white.axes) for m, axes in found.items()}
    blurs = {f'{BLUR.format(width)} + tensor': width for width in BLURS}
    width = blurs[min(blurs, key=lambda m: np.nanmedian(errors[m]))]
    for label, said in (
        ('isotropic in the estimator', isotropic(scan)),
        (f'{BLUR.format(width)} in the estimator', used(blurred(scan, width))),
    ):
        axes = axes_of(scan, in_estimator(scan, said), white.where)
        errors[label] = degrees(axes, white.axes)
    errors |= {m: degrees(a, white.axes) for m, a in asked.axes(white.where).items()}
    own, block = own_error(parts.reference, white.where), blocks(white.where, scan.affine)
    rows: list[Row] = []
    for region, here in (('core', white.core), ('edge', ~white.core)):
        counts = {m: histogram(e[here], block[here]) for m, e in errors.items()}
        median = {m: float(quantile(c.sum(0), 0.5)) for m, c in counts.items()}
        best = min(['tensor', *blurs], key=median.__getitem__)
        floor = float(np.median(own[here])) / median[best]
        rows.append(('angle', region, BEST, best, '', '', '', '', floor))
        rows += [
            ('angle', region, m, median[m], float(quantile(c.sum(0), 0.9)),
             *ratio_interval(c, counts[best]), floor)
            for m, c in counts.items()
        ]  # fmt: skip
    return rows


def predictions(asked: Asked, table: GradientTable) -> dict[str, np.ndarray]:
    """Method → (L, V) the volumes of ``table`` (world axes) that it predicts, in the mask."""
    scan = asked.scan
    found = {
        INPUT: said_signal(scan, harmonics_of(scan), table),
        'tensor': of_tensor(scan, table),
        'isotropic': isotropic(scan, table),
    }
    for width in BLURS:
        soft = blurred(scan, width)
        found[BLUR.format(width)] = said_signal(scan, harmonics_of(soft), table)
        found[f'{BLUR.format(width)} + tensor'] = of_tensor(soft, table, scan)
    found[IN_ESTIMATOR] = said_signal(scan, harmonics_of(asked.restored()), table)
    return found | {ALONE: said_signal(scan, asked.harmonics, table)}


def left_out_rows(asked: Asked, parts: Divided, white: White) -> list[Row]:
    """Every method in the brain and in white matter."""
    scan, reference = parts.scan, parts.reference
    table = reference.gtab[parts.measured]
    use = slots_of_volumes(table) >= 0
    table, volumes = table[use], np.flatnonzero(parts.measured)[use]
    seen = reference.data[scan.mask][:, volumes].T
    s0 = reference.data[..., reference.gtab.b0].mean(-1)
    said = predictions(asked, table)
    rows: list[Row] = []
    regions = {'brain': reference.mask & scan.mask, 'white matter': white.where}
    for region, where in regions.items():
        level, sigma = float(np.median(s0[where])), noise(reference, where)
        scored = {m: left(seen, p, sigma, where[scan.mask]) for m, p in said.items()}
        floor = sigma**2 / float(scored[INPUT].errors.mean())
        for method, one in scored.items():
            error = float(one.errors.mean())
            above = np.sqrt(np.maximum(error - sigma**2, 0)) / level
            label = f'{method}, as magnitude' if one.as_rician else method
            rows.append(('left out', region, label, np.sqrt(error) / level, above,
                         *ratio(one, scored[INPUT]), floor))  # fmt: skip
    return rows


def one_division(applied: Applied, path: Path, n: int, choice: int, results: Path) -> bool:
    """Write the rows of one division, unless they are there; whether there is such a division."""
    key = (applied.label, path.name.split('.')[0], (identity(path) or '')[:8], str(n), str(choice))
    if is_done(results, *key):
        return True
    if (parts := divided(path, n, choice)) is None:
        return False
    rows: list[Row] = [('refused', '', '', '', '', '', '', '', '')]
    if parts.offset <= APART:
        asked, white = Asked(applied, parts.scan), white_matter(parts)
        rows = angle_rows(asked, parts, white, f'{key_of(path)}-{n}-{choice}')
        rows += left_out_rows(asked, parts, white)
    role = role_of(path)
    before = (*key, role, version(*CODE), f'{parts.offset:.3f}')
    lines = [(*before, *(x if isinstance(x, str) else f'{x:.5g}' for x in row)) for row in rows]
    append(results, lines, COLUMNS)
    print(f'{path.name}: {n} in, choice {choice}, {parts.offset:.3f} mm, {len(rows)} rows',
          flush=True)  # fmt: skip
    return True


def measure(applied: Applied, paths: list[Path], others: list[Path], numbers: list[int],
            results: Path) -> None:  # fmt: skip
    """All divisions of all scans; what cannot be scored is said."""
    if not seen_scans(applied.card)[1]:
        print('This model does not say of everybody whether it has seen them.')
    for path in paths:
        print(announced(path), flush=True)
        try:
            refuse_seen(applied.card, path, others)
            for choice, n in product(range(CHOICES), numbers):
                if not one_division(applied, path, n, choice, results):
                    print(f'{path.name}: {n} in, no choice {choice} whose two parts tell a tensor')
        except (Problem, Seen) as problem:
            print(f'{path.name}: NOT scored: {problem}', flush=True)


def main() -> None:
    """Measure what is missing, then print the tables."""
    parser = parser_of(__doc__)
    add_choice(parser)
    parser.add_argument('--directions', type=int, nargs='+', default=[12, 6])
    parser.add_argument('--results', type=Path, default=RESULTS)
    parser.add_argument('--table', action='store_true', help='print what is there, only')
    given = parser.parse_args()
    if not given.table:
        measure(Applied(given.model), *chosen(given), given.directions, given.results)
    print_tables(given.results)


if __name__ == '__main__':
    main()
