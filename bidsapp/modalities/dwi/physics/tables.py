"""Examination of a gradient table as it was given."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from bidsapp.core import Finding
from bidsapp.modalities.dwi.physics.acquisition import (
    MIN_DIRECTIONS,
    acquisition,
    determines_tensor,
)
from bidsapp.modalities.dwi.physics.gradients import B0_THRESHOLD, GradientTable, b0_limit
from bidsapp.modalities.dwi.physics.scaled_vectors import NO_VECTOR, scaled_bvals

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from numpy.typing import NDArray

    from bidsapp.core import BoolArray, FloatArray

#: A vector whose norm differs from 1 by more than this is reported; less is rounding.
NORM_TOLERANCE = 0.02


@dataclass(frozen=True, slots=True, eq=False)
class Examined:
    """A table as it can be used, and what was found. With an error it must not be used."""

    bvecs: FloatArray  #: (3, K) of the volumes that are kept
    bvals: FloatArray  #: (K,) s/mm²
    kept: NDArray[np.intp]  #: (K,) which volumes of the image these are
    b0_threshold: float  #: the greatest b that counts as b = 0
    findings: tuple[Finding, ...]
    left_out: Mapping[int, str] = field(default_factory=dict)  #: volume of the image → why
    in_lengths: bool = False  #: b was read from the lengths of the vectors: the signal has to agree

    @property
    def errors(self) -> list[str]:
        """What makes the table unusable, in words."""
        return [f.message for f in self.findings if f.severity == 'error']


def examine(
    bvecs: FloatArray,
    bvals: FloatArray,
    n_volumes: int,
    b0_threshold: float = B0_THRESHOLD,
    excluded: Collection[int] = (),
) -> Examined:
    """Look at a table as stored beside an image of ``n_volumes``.

    A transposed table is turned, since its shape tells; vectors of b = 0 that are not numbers are
    zero; volumes at the end that are weighted in no direction are left out, and those ``excluded``
    by the user. Where no b is at most ``b0_threshold``, the lowest stand for b = 0
    (`gradients.b0_limit`). Where b seems to stand in the lengths of the vectors it is read from
    there, which the signal has to confirm (`scaled_vectors.decay_agrees`).
    """
    findings: list[Finding] = []
    bvecs, bvals = np.atleast_2d(np.asarray(bvecs, float)), np.asarray(bvals, float).ravel()
    if bvecs.shape[0] != 3 and bvecs.shape[1] == 3:
        bvecs = bvecs.T
        findings.append(_transposed(bvecs.shape[1]))
    kept = np.arange(len(bvals))
    findings += _examine_shape(bvecs, bvals, n_volumes)
    if findings and findings[-1].severity == 'error':
        return Examined(bvecs, bvals, kept, b0_threshold, tuple(findings))
    scaled = scaled_bvals(bvecs, bvals, b0_threshold)
    if scaled is not None:
        findings.append(_in_lengths(bvecs, bvals, scaled))
        bvecs = np.divide(bvecs, np.linalg.norm(bvecs, axis=0), where=scaled > 0, out=0 * bvecs)
        bvals = scaled
    limit = b0_limit(bvals, b0_threshold)
    bvecs = np.where((bvals <= limit) & np.isnan(bvecs).any(0), 0, bvecs)
    if limit > b0_threshold:
        findings.append(_lowest_shell(bvals, limit, b0_threshold))
    dropped = _trailing_averages(bvecs, bvals, limit)
    if dropped:
        findings.append(_averages(dropped))
    kept = np.arange(len(bvals) - dropped)
    out = dict.fromkeys(sorted(set(excluded) & set(kept.tolist())), 'as --exclude-volumes has it')
    findings += _left_out(out)
    kept = np.setdiff1d(kept, list(out)).astype(int)
    bvecs, bvals = bvecs[:, kept], bvals[kept]
    findings += _examine_values(bvecs, bvals, limit)
    return Examined(bvecs, bvals, kept, limit, tuple(findings), out, scaled is not None)


def without(table: Examined, bad: Mapping[int, str]) -> Examined:
    """``table`` without the volumes ``bad``, by their number in the image, and why each is out.

    With an error where what is left is no diffusion run.
    """
    stay = ~np.isin(table.kept, list(bad))
    if stay.all():
        return table
    bvecs, bvals, kept = table.bvecs[:, stay], table.bvals[stay], table.kept[stay]
    lost = 'without the volumes that cannot be used: '
    left = [
        replace(found, message=lost + found.message)
        for found in _examine_values(bvecs, bvals, table.b0_threshold)
        if found.severity == 'error'
    ]
    findings = (*table.findings, *_left_out(bad), *left)
    out = {**table.left_out, **bad}
    return replace(table, bvecs=bvecs, bvals=bvals, kept=kept, findings=findings, left_out=out)


def _left_out(volumes: Mapping[int, str]) -> list[Finding]:
    """A warning for each reason, with the volumes that it holds for."""
    said: dict[str, list[int]] = {}
    for volume, why in sorted(volumes.items()):
        said.setdefault(why, []).append(volume)
    return [
        Finding(
            'warning', 'VOLUME_LEFT_OUT',
            f'volume{"s" * (len(members) > 1)} {", ".join(map(str, members))} (counted from 0), '
            f'left out: {why}',
        )
        for why, members in said.items()
    ]  # fmt: skip


def _in_lengths(bvecs: FloatArray, bvals: FloatArray, scaled: FloatArray) -> Finding:
    changed = scaled != bvals
    lengths = np.unique(np.round(np.linalg.norm(bvecs[:, changed], axis=0), 2))
    values = np.unique(np.round(scaled))
    return Finding(
        'warning', 'B_IN_LENGTHS',
        f'the lengths of the vectors ({", ".join(f"{x:g}" for x in lengths[:6])} …) look like an '
        'encoding of b under one value in the bval file: b is read as that value times the '
        f'squared length ({", ".join(f"{x:g}" for x in values[:6])} s/mm2), if the signal falls '
        'that way. Write these values into the bval file, and vectors of length 1',
    )  # fmt: skip


def _examine_shape(bvecs: FloatArray, bvals: FloatArray, n_volumes: int) -> list[Finding]:
    """Errors that leave nothing to look at further."""
    found: list[Finding] = []

    def error(code: str, message: str) -> None:
        found.append(Finding('error', code, message))

    if len(bvals) != n_volumes:
        error(
            'BVAL_COUNT',
            f'{len(bvals)} b-values for {n_volumes} volumes; there must be one for each volume',
        )
    if bvecs.shape != (3, n_volumes):
        error(
            'BVEC_COUNT',
            f'the bvec file is {bvecs.shape[0]} x {bvecs.shape[1]}; '
            f'expected 3 rows of {n_volumes} numbers, one column for each volume',
        )
    if not np.isfinite(bvals).all():
        error('GRADIENT_NAN', 'the bval file holds values that are not numbers')
    if (bvals < 0).any():
        error('BVAL_NEGATIVE', 'the bval file holds negative b-values')
    return found


def _transposed(rows: int) -> Finding:
    return Finding(
        'warning', 'BVEC_TRANSPOSED',
        f'the bvec file has {rows} rows of 3 numbers; BIDS wants 3 rows. It was read as its '
        'transpose.',
    )  # fmt: skip


def _averages(number: int) -> Finding:
    return Finding(
        'warning', 'TRACE_IMAGE',
        f'the last {number} volumes have b > 0 and no direction: averages (trace or ADC images), '
        'which are left out',
    )  # fmt: skip


def _lowest_shell(bvals: FloatArray, limit: float, b0_threshold: float) -> Finding:
    low = bvals[bvals <= limit]
    span = f'{low.min():g}' if low.min() == limit else f'{low.min():g} to {limit:g}'
    return Finding(
        'warning', 'B0_LOWEST_SHELL',
        f'no volume has b <= {b0_threshold:g}: the {len(low)} of b = {span} serve as b = 0, and '
        'every model takes their b as it is (--b0-threshold sets the limit)',
    )  # fmt: skip


def _trailing_averages(bvecs: FloatArray, bvals: FloatArray, limit: float) -> int:
    """How many volumes at the end are weighted in no direction; 0 if no others are weighted."""
    average = (bvals > limit) & (np.linalg.norm(bvecs, axis=0) < NO_VECTOR)
    others = np.flatnonzero(~average)
    last = int(others[-1]) + 1 if others.size else 0
    return len(bvals) - last if (bvals[:last] > limit).any() else 0


def _examine_values(bvecs: FloatArray, bvals: FloatArray, limit: float) -> list[Finding]:
    """Findings about the numbers of a table whose shape is right."""
    findings: list[Finding] = []
    weighted = bvals > limit
    norms = np.linalg.norm(bvecs, axis=0)
    if not np.isfinite(bvecs).all():
        message = 'the gradient table holds values that are not numbers'
        return [Finding('error', 'GRADIENT_NAN', message)]
    if not weighted.any():
        message = (
            f'all {len(bvals)} b-values are at most {limit:g} and count as b = 0 '
            '(--b0-threshold): nothing is weighted'
        )
        return [Finding('error', 'ALL_B0', message)]
    if weighted.all():
        message = (
            f'no volume has b <= {limit:g}; S/S0 needs at least one. --b0-threshold counts '
            'volumes of a higher b as b = 0'
        )
        return [Finding('error', 'NO_B0', message)]
    if (zero := np.flatnonzero(weighted & (norms < NO_VECTOR))).size:
        message = (
            f'volumes {listing(zero)} (counted from 0) have b > 0 and a gradient of length zero; '
            'give each its direction, or take out a volume that is an average (a trace image)'
        )
        return [Finding('error', 'ZERO_GRADIENT', message)]
    if (odd := np.flatnonzero(weighted & (np.abs(norms - 1) > NORM_TOLERANCE))).size:
        message = (
            f'gradients of volumes {listing(odd)} are not of length 1; '
            'only their directions are used'
        )
        findings.append(Finding('warning', 'NORM', message))
    return [*findings, *_examine_directions(bvecs, bvals, weighted, limit)]


def _examine_directions(
    bvecs: FloatArray, bvals: FloatArray, weighted: BoolArray, limit: float
) -> list[Finding]:
    """Whether the weighted volumes determine a tensor, and repeat a direction."""
    findings: list[Finding] = []
    norms = np.linalg.norm(bvecs, axis=0)
    table = GradientTable(np.where(weighted, bvecs / np.maximum(norms, 1e-9), 0).T, bvals, limit)
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
