"""Unseen schemes, and nothing to restore, on a held-out head.

    python benchmarks/evidence/simulated.py [--model FOLDER]

The head and its scans are those of `simheads`. Tissue, microstructure and crossings are claims of
their own: `tissue.py`, `microstructure.py`, `crossings.py`, `coverage.py`.
"""

from __future__ import annotations

import numpy as np
from applied import Applied, arguments, canonical, named
from comparators import tensor
from margins import said
from scores import degrees, table
from simheads import Case, simulated, without_faults

from bidsapp.modalities.dwi.simulate.protocol import Protocol

#: What motion and eddy-current correction leaves.
LEFT = {'motion_mm': 0.05, 'motion_deg': 0.05, 'eddy_hz': 0.6}
SEED = 11


def one_shell(n: int, b: float = 1000.0, snr: float = 20.0, n_b0: int = 2) -> Protocol:
    """``n`` directions at ``b``."""
    return Protocol(shells=((b, n),), n_b0=n_b0, snr=snr, **LEFT)


#: Unseen scheme → its protocol, and those between which it lies.
FAMILIES: dict[str, tuple[Protocol, tuple[Protocol, ...]]] = {
    '23 directions': (one_shell(23), (one_shell(20), one_shell(26))),
    'b = 1400': (one_shell(30, 1400.0), (one_shell(30), one_shell(30, 2000.0))),
    'two shells': (
        Protocol(shells=((1000.0, 30), (2000.0, 30)), n_b0=2, snr=20.0, **LEFT),
        (one_shell(60), one_shell(60, 2000.0)),
    ),
}


def name_of(protocol: Protocol) -> str:
    """For files."""
    shells = '-'.join(f'{n}at{b:.0f}' for b, n in protocol.shells)
    return f'{shells}-snr{protocol.snr:g}-b0x{protocol.n_b0}'


def case_of(protocol: Protocol, seed: int = SEED, half: bool = False) -> Case:
    """A kept scan."""
    return simulated(name_of(protocol), protocol, seed, half)


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
        here = [np.median(e) for e in direction_errors(applied, case_of(unseen))]
        there = np.mean(
            [[np.median(e) for e in direction_errors(applied, case_of(p))] for p in beside], 0
        )
        growth = here / there - 1
        rows.append([label, here[0], there[0], growth[0], growth[1], said(growth[0] <= 0.1)])
    case = case_of(one_shell(30))
    half = case_of(one_shell(30), half=True)
    here, there = (
        np.array([np.median(e) for e in direction_errors(applied, one)]) for one in (half, case)
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
    families(applied)
    restored_change(applied)


if __name__ == '__main__':
    main()
