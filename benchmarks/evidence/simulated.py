"""Tissue, microstructure and unseen schemes on a simulated head that is held out.

    python benchmarks/evidence/simulated.py [--model FOLDER]

The head and its scans are those of `simheads`. Dice: of hard labels against true volume fractions,
2 Σ min(label, fraction) / Σ (label + fraction), mean of the three tissues; 'oracle' labels each
voxel by its true largest fraction: the ceiling that partial volume leaves, unless labels lean
towards the rare tissue, which this mean rewards. Beside it the
same of labels on true labels, and of shares on fractions, whose ceilings are 1. The template prior
has the head's own true affine. Logistic regression on FA, MD and log S0 (z-scored in the mask),
with squares and products too, is fitted to two scans of MNI heads by the same protocol, so it
knows the very contrast.
"""

from __future__ import annotations

import numpy as np
from applied import Applied, arguments, canonical, named
from comparators import blurred, tensor
from realscans import KEPT
from scores import degrees, table
from simheads import Case, simulated, without_faults

from bidsapp.modalities.dwi.physics.noddi import fit_noddi
from bidsapp.modalities.dwi.physics.spherical_mean import fit_smt
from bidsapp.modalities.dwi.simulate.protocol import Protocol

#: What motion and eddy-current correction leaves.
LEFT = {'motion_mm': 0.05, 'motion_deg': 0.05, 'eddy_hz': 0.6}
SEED = 11


def one_shell(n: int, b: float = 1000.0, snr: float = 20.0, n_b0: int = 2) -> Protocol:
    """``n`` directions at ``b``."""
    return Protocol(shells=((b, n),), n_b0=n_b0, snr=snr, **LEFT)


TISSUE = {'30 at b 1000, SNR 20': one_shell(30), '12 at b 1000, SNR 12': one_shell(12, snr=12.0)}
SHELLS = Protocol(shells=((1000.0, 30), (2000.0, 45)), n_b0=6, snr=25.0, **LEFT)
#: Unseen scheme → its protocol, and those between which it lies.
FAMILIES: dict[str, tuple[Protocol, tuple[Protocol, ...]]] = {
    '23 directions': (one_shell(23), (one_shell(20), one_shell(26))),
    'b = 1400': (one_shell(30, 1400.0), (one_shell(30), one_shell(30, 2000.0))),
    'two shells': (
        Protocol(shells=((1000.0, 30), (2000.0, 30)), n_b0=2, snr=20.0, **LEFT),
        (one_shell(60), one_shell(60, 2000.0)),
    ),
}
PARAMETERS = ('icvf', 'od', 'isovf')


def name_of(protocol: Protocol) -> str:
    """For files."""
    shells = '-'.join(f'{n}at{b:.0f}' for b, n in protocol.shells)
    return f'{shells}-snr{protocol.snr:g}-b0x{protocol.n_b0}'


def case_of(
    protocol: Protocol, seed: int = SEED, held_out: bool = True, half: bool = False
) -> Case:
    """A kept scan."""
    return simulated(name_of(protocol), protocol, seed, held_out, half)


def dice(shares: np.ndarray, truth: np.ndarray) -> float:
    """Mean over tissues, of (3, V) each."""
    both = 2 * np.minimum(shares, truth).sum(1) / (shares + truth).sum(1)
    return float(both.mean())


def hard(shares: np.ndarray) -> np.ndarray:
    """(3, V) one where largest."""
    return np.asarray(np.eye(3)[shares.argmax(0)].T)


def features(case: Case, squares: bool) -> np.ndarray:
    """(V, F) in the mask."""
    maps, inside = tensor(case.scan, case.scan.mask), case.scan.mask
    s0 = np.log(np.maximum(case.scan.data[..., case.scan.gtab.b0].mean(-1)[inside], 1e-6))
    x = np.column_stack([maps.fa[inside], maps.md[inside] * 1e3, (s0 - s0.mean()) / s0.std()])
    if not squares:
        return x
    products = [x[:, i] * x[:, j] for i in range(3) for j in range(i, 3)]
    return np.column_stack([x, *products])


def regression(protocol: Protocol, case: Case, squares: bool) -> np.ndarray:
    """(3, V) probabilities of logistic regression."""
    from sklearn.linear_model import LogisticRegression

    known = [case_of(protocol, seed, held_out=False) for seed in (101, 102)]
    x = np.concatenate([features(one, squares) for one in known])
    y = np.concatenate([one.tissue[:, one.scan.mask].argmax(0) for one in known])
    model = LogisticRegression(C=100.0, max_iter=2000).fit(x, y)
    return np.asarray(model.predict_proba(features(case, squares)).T)


def tissue(applied: Applied) -> None:
    """Dice of each, and the margin."""
    for label, protocol in TISSUE.items():
        case = case_of(protocol)
        inside = case.scan.mask
        truth = case.tissue[:, inside]
        shares = {
            'template prior, true affine': case.prior[:, inside],
            'logistic regression': regression(protocol, case, squares=False),
            'logistic regression, squares': regression(protocol, case, squares=True),
            'network': applied.of(case.scan)['tissue'].softmax(0).numpy()[:, inside],
            'oracle': truth,
        }
        print(f'Tissue, {label}: {inside.sum()} voxels')
        scores = {m: dice(hard(p), truth) for m, p in shares.items()}
        table(
            ['method', 'labels on fractions', 'labels on labels', 'shares on fractions'],
            [
                [m, scores[m], dice(hard(p), hard(truth)), dice(p / p.sum(0).clip(1e-6), truth)]
                for m, p in shares.items()
            ],
        )
        best = max(v for m, v in scores.items() if m not in ('network', 'oracle'))
        gain = scores['network'] - best
        room = scores['oracle'] - best
        print(
            f'  labels on fractions: network - best = {gain:+.3f} ({room:.3f} to the ceiling); '
            f'at least +0.030 wanted: {said(gain >= 0.03)}\n'
        )


def said(fine: bool) -> str:
    """In words."""
    return 'reached' if fine else 'NOT reached'


def fits(case: Case, where: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
    """Comparator → parameter → (V,) in ``where``; kept."""
    kept = KEPT / 'microstructure-fits.npz'
    if not kept.is_file():
        found = {}
        for label, scan in {'': case.scan, ', blur 3 mm': blurred(case.scan, 3.0)}.items():
            noddi, smt = (fit(scan.data, scan.gtab, where) for fit in (fit_noddi, fit_smt))
            found |= {f'NODDI{label}/{p}': getattr(noddi, p)[where] for p in PARAMETERS}
            found[f'SMT{label}/icvf'] = smt.icvf[where]
        np.savez(kept, **found)
    result: dict[str, dict[str, np.ndarray]] = {}
    with np.load(kept) as arrays:
        for key in arrays.files:
            method, _, parameter = key.rpartition('/')
            result.setdefault(method, {})[parameter] = arrays[key]
    return result


def microstructure(applied: Applied) -> None:
    """Slope, bias and correlation within white matter of one fibre."""
    case = case_of(SHELLS)
    where = case.scan.mask & (case.tissue[1] >= 0.9) & (case.truth.n_fibres.numpy() == 1)
    output = applied.of(case.scan)['microstructure'].numpy()[:, where]
    truth = {p: getattr(case.truth, p).numpy()[where] for p in PARAMETERS}
    methods = fits(case, where)
    methods['network'] = dict(zip(PARAMETERS, 1 / (1 + np.exp(-output[:3])), strict=True))
    other = case_of(SHELLS, 101, held_out=False)
    there = other.scan.mask & (other.tissue[1] >= 0.9) & (other.truth.n_fibres.numpy() == 1)
    print(
        f'Microstructure, 30 + 45 directions at b 1000 and 2000: {where.sum()} voxels of one fibre'
    )
    rows = []
    for parameter, true in truth.items():
        prior = float(getattr(other.truth, parameter).numpy()[there].mean())
        rows.append([parameter, 'constant prior', 0.0, prior - true.mean(), np.nan,
                     np.abs(prior - true).mean()])  # fmt: skip
        for method, found in methods.items():
            if parameter in found:
                rows.append([parameter, method, *line(true, found[parameter])])
    table(['parameter', 'method', 'slope', 'bias', 'r', 'mean |error|'], rows)


def line(true: np.ndarray, found: np.ndarray) -> tuple[float, float, float, float]:
    """Slope of the estimate on the truth, bias, correlation, mean absolute error."""
    slope = float(np.polyfit(true, found, 1)[0])
    r = float(np.corrcoef(true, found)[0, 1])
    return slope, float((found - true).mean()), r, float(np.abs(found - true).mean())


def direction_errors(applied: Applied, case: Case) -> tuple[np.ndarray, np.ndarray]:
    """(V,) degrees of the network and of the tensor where there is one fibre."""
    where = case.scan.mask & (case.truth.n_fibres.numpy() == 1)
    truth = case.vectors[where][:, 0]
    sample = canonical(case.scan)
    output = applied(sample)
    ours, _ = named(case.scan, sample.image, output, where)
    return degrees(ours, truth), degrees(tensor(case.scan, where).direction[where], truth)


def families(applied: Applied) -> None:
    """Median errors of directions, and their growth against the schemes beside them."""
    rows = []
    for label, (unseen, beside) in FAMILIES.items():
        here = [np.median(e) for e in direction_errors(applied, case_of(unseen))[:2]]
        there = np.mean(
            [[np.median(e) for e in direction_errors(applied, case_of(p))[:2]] for p in beside], 0
        )
        growth = here / there - 1
        rows.append([label, here[0], there[0], growth[0], growth[1], said(growth[0] <= 0.1)])
    case = case_of(one_shell(30))
    half = case_of(one_shell(30), half=True)
    here, there = (
        np.array([np.median(e) for e in direction_errors(applied, one)[:2]]) for one in (half, case)
    )
    growth = here / there - 1
    rows.append(['half sphere', here[0], there[0], *growth, said(growth[0] <= 0.1)])
    print('Unseen schemes: median degrees in white matter of one fibre; beside: mean of neighbours')
    table(['scheme', 'network', 'beside', 'growth', "tensor's growth", 'at most +0.10'], rows)


def restored_change(applied: Applied) -> None:
    """Nothing to restore: what the network changes of a noiseless scan without artefacts."""
    case = case_of(without_faults(one_shell(30)))
    output = applied.of(case.scan)['restore'].numpy()[:28, case.scan.mask]
    print(f'Restore, clean input: rms correction {np.sqrt(np.square(output).mean()):.3f} of the '
          "prior's standard deviation a harmonic\n")  # fmt: skip


def main() -> None:
    """All."""
    applied = Applied(arguments(__doc__).model)
    print(f'Network: {applied.name}\n')
    tissue(applied)
    microstructure(applied)
    families(applied)
    restored_change(applied)


if __name__ == '__main__':
    main()
