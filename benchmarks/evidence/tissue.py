"""Claim (a): tissue without a T1w, on heads by another law (`foreign`).

    python benchmarks/evidence/tissue.py --model FOLDER [--heads 6] [--quick] [--tables]
        [--plain-unet STEPS] [--real OUT [--labels OUT]]

Macro Dice of labels on labels (largest true fraction); soft Dice of shares on fractions,
2 Σ min(share, fraction) / Σ (share + fraction), and the same of labels on fractions, beside which
an oracle stands that labels each voxel by its largest fraction. In the mask.

Comparators see the same volumes: two thresholds on FA and MD fitted to the network's own training
draws (`draws`), and the pair that is best afterwards on that very head; Atropos on b = 0, FA and
MD, begun from K-means; a template prior, registered by SyN from the dMRI alone (FA on the
map of white matter); regressions on FA, MD and S0, all blurred too, fitted to those draws: logistic
with squares and products, and boosted trees; with ``--plain-unet`` a plain 3D U-Net on FA, MD and
b = 0, fitted to the same draws for STEPS steps (a run that was stopped goes on).

``--real OUT``: scans of prisma and uih as `participant --anat none` wrote them, against the tissue
that `participant` labelled by their T1w in ``--labels OUT`` (same grid; default: the same folder).
Illustrations: the labels are no truth, and uih has gated.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import people
import torch
from draws import PEOPLE, features
from effects import read_results
from foreign import Scheme
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
from realscans import load_done
from scores import table
from tissue_comparators import (
    atropos,
    by_thresholds,
    plain_unet,
    regressions,
    template_prior,
    thresholds,
)

from bidsapp.bids.images import open_image, to_ras
from bidsapp.learn.metrics import confusion, f1_macro
from bidsapp.modalities.dwi.learn.classical import best_thresholds

if TYPE_CHECKING:
    from collections.abc import Iterator

    from foreign import Known

SCHEMES = (Scheme(((1000.0, 30),), 20.0), Scheme(((1000.0, 12),), 15.0))
QUICK = Scheme(((1000.0, 12),), 15.0, 5.0)
LABELS, SOFT, CEILING = 'labels_on_labels', 'shares_on_fractions', 'labels_on_fractions'
NETWORK, ORACLE, AFTERWARDS = 'network', 'oracle', 'thresholds, best afterwards'
PLAIN = 'plain U-Net'
#: Macro Dice that is wanted above the best of the others, and above these two.
WANTED, LEVEL = 0.03, (AFTERWARDS, PLAIN)


def soft_dice(shares: np.ndarray, truth: np.ndarray) -> float:
    """Mean over tissues, of (3, V) each."""
    both = 2 * np.minimum(shares, truth).sum(1) / np.maximum((shares + truth).sum(1), 1e-9)
    return float(both.mean())


def hard(shares: np.ndarray) -> np.ndarray:
    """(3, V) one where largest."""
    return np.asarray(np.eye(len(shares))[shares.argmax(0)].T)


def figures_of(method: str, shares: np.ndarray, truth: np.ndarray) -> Iterator[Figure]:
    """All scores of (3, V) shares."""
    shares = shares / np.maximum(shares.sum(0), 1e-6)
    own, true = (torch.from_numpy(one.argmax(0) + 1) for one in (shares, truth))
    yield method, '', LABELS, f1_macro(confusion(own, true, 3))
    yield method, '', SOFT, soft_dice(shares, truth)
    yield method, '', CEILING, soft_dice(hard(shares), truth)


def classical(scheme: Scheme, people_: int, known: Known) -> Iterator[Figure]:
    """All comparators but the plain network."""
    scan = known.scan
    truth = known.tissue[:, scan.mask]
    seen = features(scan)
    fa, md, labels = seen[:, 0], seen[:, 1], truth.argmax(0).astype(np.int64) + 1
    methods = {
        'thresholds': by_thresholds(fa, md, thresholds(scheme, people_)),
        AFTERWARDS: by_thresholds(fa, md, best_thresholds(md, fa, labels)),
        'Atropos': atropos(scan),
        'template prior by dMRI': template_prior(scan),
        **{name: apply(seen) for name, apply in regressions(scheme, people_).items()},
        ORACLE: truth,
    }
    for method, shares in methods.items():
        yield from figures_of(method, shares, truth)


def network(claim: Claim, known: Known) -> Iterator[Figure]:
    """What the network says."""
    shares = claim.applied.of(known.scan)['tissue'].softmax(0).numpy()
    inside = known.scan.mask
    yield from figures_of(NETWORK, shares[:, inside], known.tissue[:, inside])


def plain(scheme: Scheme, steps: int, people_: int, known: Known) -> Iterator[Figure]:
    """What the plain network says."""
    inside = known.scan.mask
    shares = plain_unet(scheme, steps, people_)(known.scan)
    for method, _, metric, value in figures_of(PLAIN, shares, known.tissue[:, inside]):
        yield method, f'{steps} steps', metric, value


def verdict(theirs: Series, found: Margin) -> str:
    """By labels on labels."""
    if theirs.method == ORACLE:
        return 'ceiling'
    return said(found.value >= (0 if theirs.method in LEVEL else WANTED))


def tables(claim: Claim, schemes: tuple[Scheme, ...]) -> None:
    """Of all rows so far."""
    fitted = {row['made_by'] for row in read_results(claim.results)}
    fitted = {name for name in fitted if name.startswith(PLAIN)}
    made_by = (CLASSICAL, claim.applied.label, *fitted)
    for scheme in schemes:
        for metric in (LABELS, SOFT, CEILING):
            found = series(claim.results, made_by, scheme.name, metric)
            ours = [one for one in found if one.method == NETWORK]
            theirs = chosen([one for one in found if one.method != NETWORK], higher=True)
            if not ours:
                continue
            theirs.sort(key=lambda one: one.mean)
            no_verdict = (lambda *_: '') if metric != LABELS else verdict
            title = f'Tissue, {scheme.name}: {metric.replace("_", " ")}'
            print_margins(title, ours[0], theirs, False, no_verdict)


def illustrations(claim: Claim, out: Path, labels: Path) -> None:
    """Real scans against what their T1w says; printed, never rows."""
    rows: list[list[object]] = []
    for path in sorted(out.rglob('*_desc-preproc_dwi.nii.gz')):
        if people.person_of(path) not in ('prisma', 'uih'):
            continue
        name = path.name.removesuffix('_desc-preproc_dwi.nii.gz')
        label = next(labels.rglob(f'{name}_seg-tissue_desc-reference_dseg.nii.gz'), None)
        if label is None:
            print(f'{name}: {labels} holds no tissue labelled by a T1w')
            continue
        scan = load_done(name, out)
        image = open_image(label)
        values, affine = to_ras(np.asarray(image.dataobj, np.float32), image.affine)
        places = np.linalg.inv(affine) @ scan.affine @ _homogeneous(np.argwhere(scan.mask))
        index = np.rint(places[:3]).astype(int)
        inside = ((index >= 0) & (index < np.array(values.shape)[:, None])).all(0)
        true = np.zeros(inside.shape, int)
        true[inside] = np.rint(values[tuple(index[:, inside])]).astype(int)
        seen, known = features(scan), true > 0
        b = scan.gtab.shells()[0]
        scheme = Scheme(((float(b[0]), len(b[1])),))
        pair = best_thresholds(seen[known, 1], seen[known, 0], true[known].astype(np.int64))
        methods = {
            AFTERWARDS: by_thresholds(seen[:, 0], seen[:, 1], pair),
            'thresholds': by_thresholds(seen[:, 0], seen[:, 1], thresholds(scheme, PEOPLE)),
            'Atropos': atropos(scan),
            'template prior by dMRI': template_prior(scan),
            NETWORK: claim.applied.of(scan)['tissue'].numpy()[:, scan.mask],
        }
        for method, shares in methods.items():
            own = torch.from_numpy(shares.argmax(0)[known] + 1)
            score = f1_macro(confusion(own, torch.from_numpy(true[known]), 3))
            rows.append([name, people.role_of(path), method, score])
    if rows:
        print('Real scans, labels by their T1w (no truth): macro Dice')
        table(['scan', 'role', 'method', 'macro Dice'], rows)


def _homogeneous(points: np.ndarray) -> np.ndarray:
    """(V, 3) → (4, V)."""
    return np.vstack([points.T, np.ones(len(points))])


def main() -> None:
    """Rows that are missing, then the tables."""
    parser = claim_parser(__doc__)
    parser.add_argument('--plain-unet', type=int, default=0, metavar='STEPS')
    parser.add_argument('--real', type=Path, help='an OUT of participant --anat none')
    parser.add_argument('--labels', type=Path, help='an OUT with tissue labelled by the T1w')
    claim = claim_of(parser, 'tissue')
    given, people_ = claim.given, 6 if claim.quick else PEOPLE
    schemes = (QUICK,) if claim.quick else SCHEMES
    for scheme in schemes if not claim.only_tables else ():
        for head in claim.heads:
            scan = Scanned(head, scheme)
            scan.write(claim.results, CLASSICAL, partial(classical, scheme, people_))
            scan.write(claim.results, claim.applied.label, partial(network, claim))
            if given.plain_unet:
                own = partial(plain, scheme, given.plain_unet, people_)
                scan.write(claim.results, f'{PLAIN}, {given.plain_unet} steps', own)
    tables(claim, schemes)
    if given.real is not None:
        illustrations(claim, given.real, given.labels or given.real)


if __name__ == '__main__':
    main()
