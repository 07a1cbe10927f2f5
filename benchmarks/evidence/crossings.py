"""Claim (c): how many fibres, and where they cross, from 20 directions, on heads by another law.

    python benchmarks/evidence/crossings.py --model FOLDER [--heads 6] [--tuned 3] [--quick]
        [--tables]

20 directions at b = 1000 and at b = 2000, SNR 20; voxels of white matter in which fibres of
`foreign` heads count, which every method is told. Number: mean F1 over one, two and three fibres.
Crossing: F1 of two or more. At 60-90°, where two cross: share of voxels in which a direction lies
within 20° of each (recall); median angle of the nearest direction to the second fibre where one was
found besides that of the first.

The network: the number that it says; the number of directions that it names (`fibres_of`, as
`participant` writes them); and where it says a crossing, by its probabilities, above a threshold.
Deconvolution of orders 4 and 6, response from the scan's own single fibres, raw and after blurs.
The least height of a peak and the least angle between peaks, the blur, and that threshold, are
settings; for number and for crossing each the best on `--tuned` other heads of each anatomy (no
test) are taken. Recall and angle are read at the settings of crossing: a low gate finds all.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from applied import canonical
from comparators import blurred, tensor
from foreign import TUNED, Scheme, heads
from margins import (
    CLASSICAL,
    Claim,
    Figure,
    Margin,
    Scanned,
    Series,
    chosen,
    claim_of,
    claim_parser,
    print_margins,
    said,
    series,
)

from bidsapp.learn.metrics import confusion, f1_macro
from bidsapp.modalities.dwi.learn.losses import axis_and_spread
from bidsapp.modalities.dwi.physics.csd import (
    best_shell,
    constrained_deconvolution,
    relative_signal,
    single_fibre_response,
)
from bidsapp.modalities.dwi.physics.peaks import fibre_peaks
from bidsapp.modalities.dwi.physics.qspace import DENSITY_CHANNELS
from bidsapp.modalities.dwi.tasks.orientation import fibres_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from foreign import Known
    from realscans import Scan

SCHEMES = (Scheme(((1000.0, 20),), 20.0), Scheme(((2000.0, 20),), 20.0))
QUICK = Scheme(((1000.0, 20),), 20.0, 5.0)
ORDERS, BLURS = (4, 6), (0.0, 1.2, 1.7)  #: blurs in voxels
GATES, APART = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8), (25.0, 40.0)
LIKELY = (0.1, 0.2, 0.3, 0.4, 0.5)
WITHIN, WIDE = 20.0, (60.0, 90.0)
#: Voxels of a head that are looked at.
VOXELS = 8000
NUMBER, CROSSING, RECALL, SECOND = 'number_f1', 'crossing_f1', 'recall', 'second_angle'
NAMED, TOLD, ABOVE = 'network, directions named', 'network, number said', 'network, probability'
OURS = (TOLD, NAMED, ABOVE)
WANTED = 0.03


def places(known: Known) -> np.ndarray:
    """(X, Y, Z) voxels with fibres, not all where there are many."""
    found = known.scan.mask & (known.count > 0)
    voxels = np.random.default_rng(0).permutation(np.flatnonzero(found))[:VOXELS]
    kept = np.zeros(found.size, bool)
    kept[voxels] = True
    return kept.reshape(found.shape)


def of_numbers(method: str, setting: str, own: np.ndarray, true: np.ndarray) -> Iterator[Figure]:
    """Of (V,) numbers of fibres, all at least one since white matter is told."""
    said_, known = (torch.from_numpy(np.clip(n, 1, 3).astype(np.int64)) for n in (own, true))
    yield method, setting, NUMBER, f1_macro(confusion(said_, known, 3))
    both, either = (
        float(((own >= 2) & (true >= 2)).sum()), float((own >= 2).sum() + (true >= 2).sum()),
    )  # fmt: skip
    yield method, setting, CROSSING, 2 * both / max(either, 1.0)


def of_directions(method: str, setting: str, own: np.ndarray, true: np.ndarray) -> Iterator[Figure]:
    """Of (V, 3, 3) directions or zeros: numbers, and what is found where two cross widely."""
    there, known = (np.square(v).sum(-1) > 0.25 for v in (own, true))
    yield from of_numbers(method, setting, there.sum(1), known.sum(1))
    cosine = np.abs((true[:, 0] * true[:, 1]).sum(-1))
    angle = np.rad2deg(np.arccos(np.clip(cosine, 0, 1)))
    cross = (known.sum(1) == 2) & (angle >= WIDE[0]) & (angle <= WIDE[1])
    if not cross.any():
        return
    near = np.abs(np.einsum('vpj,vtj->vpt', own[cross], true[cross, :2])).clip(0, 1)
    off = np.where(there[cross][..., None], np.rad2deg(np.arccos(near)), 90.0)
    yield method, setting, RECALL, float((off.min(1) < WITHIN).all(1).mean())
    others = off[..., 1].copy()
    first = off[..., 0].argmin(1)
    others[np.arange(len(others)), first] = 90.0
    found = there[cross].sum(1) >= 2
    if found.any():
        yield method, setting, SECOND, float(np.median(others.min(1)[found]))


def deconvolved(scan: Scan, known: Known, where: np.ndarray, order: int) -> np.ndarray:
    """(K, V) densities in ``where``; the response is sought in white matter."""
    white = scan.mask & (known.tissue[1] > 0.8)
    response = single_fibre_response(scan.data, scan.gtab, white, tensor(scan, white))
    _, volumes = best_shell(scan.gtab)
    signal = relative_signal(scan.data[where], scan.gtab, volumes)
    return constrained_deconvolution(signal, scan.gtab[volumes], response, order)


def classical(known: Known) -> Iterator[Figure]:
    """Deconvolution by every setting."""
    where = places(known)
    true, edge = known.fibres[where], float(np.linalg.norm(known.scan.affine[:3, 0]))
    for blur in BLURS:
        scan = blurred(known.scan, blur * edge) if blur else known.scan
        for order in ORDERS:
            density = deconvolved(scan, known, where, order)
            for apart in APART:
                peaks, heights = fibre_peaks(density, order, GATES[0], apart)
                for gate in GATES:
                    good = (heights >= gate * heights[:, :1]) & (heights > 0)
                    own = np.where(good[..., None], peaks, 0)
                    setting = f'blur {blur:g}, {apart:g}°, height {gate:g}'
                    yield from of_directions(f'deconvolution, order {order}', setting, own, true)


def network(claim: Claim, known: Known) -> Iterator[Figure]:
    """The number said, the directions named, and where a crossing is likely."""
    where = places(known)
    inside, true = torch.from_numpy(where), known.fibres[where]
    count = known.count[where]
    sample = canonical(known.scan)
    outputs = claim.applied(sample)
    chance = outputs['crossings'].softmax(0)[1:, inside].numpy()
    yield from of_numbers(TOLD, '', chance.argmax(0) + 1, count)
    likely = chance[1:].sum(0) / np.maximum(chance.sum(0), 1e-9)
    for least in LIKELY:
        own = np.where(likely >= least, 2 + (chance[2] > chance[1]), 1)
        yield from of_numbers(ABOVE, f'at least {least:g}', own, count)
    values = outputs['orientation'][:, inside]
    axes = axis_and_spread(values[:6].T)[0].numpy()
    seen = sample.image[DENSITY_CHANNELS][:, inside].numpy()
    # Grids of these heads are upright: their axes are the world's.
    found = fibres_of(values[6:].numpy(), axes, seen)
    yield from of_directions(NAMED, '', found, true)


def tables(claim: Claim, schemes: tuple[Scheme, ...]) -> None:
    """Of all rows so far."""
    made_by = (CLASSICAL, claim.applied.label)

    def verdict(wanted: bool, theirs: Series, found: Margin) -> str:
        return said(found.value >= WANTED and found.low > 0) if wanted else ''

    for scheme in schemes:
        for metric in (NUMBER, CROSSING, RECALL, SECOND):
            every = series(claim.results, made_by, scheme.name, metric)
            by = metric if metric == NUMBER else CROSSING
            judged = series(claim.results, made_by, scheme.name, by, tuning=True)
            judged = judged or series(claim.results, made_by, scheme.name, by)
            kept = chosen(every, True, judged)
            theirs = [one for one in kept if one.method not in OURS]
            theirs.sort(key=lambda one: one.mean * (-1 if metric == SECOND else 1))
            for ours in (one for one in kept if one.method in OURS):
                title = f'{metric}, {scheme.name}'
                wanted = metric in (NUMBER, CROSSING)
                print_margins(title, ours, theirs, False, partial(verdict, wanted))


def main() -> None:
    """Rows that are missing, then the tables."""
    parser = claim_parser(__doc__)
    parser.add_argument('--tuned', type=int, default=3, help='heads of each anatomy for settings')
    claim = claim_of(parser, 'crossings')
    schemes = (QUICK,) if claim.quick else SCHEMES
    tuned = [] if claim.quick else heads(claim.given.tuned, TUNED)
    for head in [*tuned, *claim.heads] if not claim.only_tables else ():
        for scheme in schemes:
            scan = Scanned(head, scheme)
            scan.write(claim.results, CLASSICAL, classical)
            scan.write(claim.results, claim.applied.label, partial(network, claim))
    tables(claim, schemes)


if __name__ == '__main__':
    main()
