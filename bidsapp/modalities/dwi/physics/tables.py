"""Examination of a gradient table as it was given."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bidsapp.core import Finding
from bidsapp.modalities.dwi.physics.acquisition import (
    MIN_DIRECTIONS,
    acquisition,
    determines_tensor,
)
from bidsapp.modalities.dwi.physics.gradients import B0_THRESHOLD, GradientTable

if TYPE_CHECKING:
    from bidsapp.core import FloatArray

#: A vector whose norm differs from 1 by more than this is reported.
NORM_TOLERANCE = 0.05


def examine(
    bvecs: FloatArray, bvals: FloatArray, n_volumes: int
) -> tuple[np.ndarray, np.ndarray, list[Finding]]:
    """Look at a table as stored: (bvecs (3, N), bvals (N,), findings).

    A transposed table is turned, since its shape tells; nothing else is changed. With an error
    among the findings the returned table must not be used.
    """
    findings: list[Finding] = []

    def found(severity: str, code: str, message: str) -> None:
        findings.append(Finding(severity, code, message))

    bvecs, bvals = np.atleast_2d(np.asarray(bvecs, float)), np.asarray(bvals, float).ravel()
    if bvecs.shape[0] != 3 and bvecs.shape[1] == 3:
        bvecs = bvecs.T
        found(
            'warning',
            'BVEC_TRANSPOSED',
            f'the bvec file has {bvecs.shape[1]} rows of 3 numbers; BIDS wants 3 rows. '
            'It was read as its transpose.',
        )
    if len(bvals) != n_volumes:
        found(
            'error',
            'BVAL_COUNT',
            f'{len(bvals)} b-values for {n_volumes} volumes; there must be one for each volume',
        )
    if bvecs.shape != (3, n_volumes):
        found(
            'error',
            'BVEC_COUNT',
            f'the bvec file is {bvecs.shape[0]} x {bvecs.shape[1]}; '
            f'expected 3 rows of {n_volumes} numbers, one column for each volume',
        )
    if not (np.isfinite(bvecs).all() and np.isfinite(bvals).all()):
        found('error', 'GRADIENT_NAN', 'the gradient table holds values that are not numbers')
    if (bvals < 0).any():
        found('error', 'BVAL_NEGATIVE', 'the bval file holds negative b-values')
    if any(f.severity == 'error' for f in findings):
        return bvecs, bvals, findings
    findings += _examine_values(bvecs, bvals)
    return bvecs, bvals, findings


def _examine_values(bvecs: FloatArray, bvals: FloatArray) -> list[Finding]:
    """Findings about the numbers of a table whose shape is right."""
    findings: list[Finding] = []
    weighted = bvals >= B0_THRESHOLD
    norms = np.linalg.norm(bvecs, axis=0)
    if not weighted.any():
        message = f'all {len(bvals)} b-values are below {B0_THRESHOLD:g}: nothing is weighted'
        return [Finding('error', 'ALL_B0', message)]
    if (zero := np.flatnonzero(weighted & (norms < 1e-6))).size:
        message = (
            f'volumes {listing(zero)} (counted from 0) have b > 0 and a gradient of length zero; '
            'give each its direction, or take out a volume that is an average (a trace image)'
        )
        return [Finding('error', 'ZERO_GRADIENT', message)]
    if weighted.all():
        message = f'no volume has b < {B0_THRESHOLD:g}; S/S0 needs at least one'
        findings.append(Finding('error', 'NO_B0', message))
    if (odd := np.flatnonzero(weighted & (np.abs(norms - 1) > NORM_TOLERANCE))).size:
        message = (
            f'gradients of volumes {listing(odd)} are not of length 1; '
            'only their directions are used'
        )
        findings.append(Finding('warning', 'NORM', message))
    table = GradientTable(np.where(weighted, bvecs / np.maximum(norms, 1e-9), 0).T, bvals)
    facts = acquisition(table)
    if not determines_tensor(facts):
        message = (
            f'{facts.directions} different directions (up to sign), condition number '
            f'{facts.condition:.3g}; at least {MIN_DIRECTIONS} that determine a tensor are needed'
        )
        findings.append(Finding('error', 'TOO_FEW_DIRECTIONS', message))
    per_shell = sum(n for _, n in facts.shells)
    if per_shell < weighted.sum():
        message = f'{int(weighted.sum()) - per_shell} weighted volumes repeat a direction'
        findings.append(Finding('warning', 'REPEATED_DIRECTIONS', message))
    return findings


def listing(indices: np.ndarray) -> str:
    """The first six of some volume numbers, and how many more there are."""
    shown = ', '.join(str(int(i)) for i in indices[:6])
    return shown + (f' and {len(indices) - 6} more' if len(indices) > 6 else '')
