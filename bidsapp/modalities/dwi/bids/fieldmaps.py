"""How the susceptibility distortion of a dMRI run can be estimated: what BIDS says, no guesses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from bidsapp.bids.scans import BidsImage, phase_encoding
from bidsapp.modalities.dwi.bids.fieldmap_sources import FieldmapSource, measured, pairs
from bidsapp.modalities.dwi.physics.gradients import B0_THRESHOLD
from bidsapp.problems import BadData, MissingInput

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from bidsapp.modalities.dwi.bids.runs import DwiRun


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to correct a run, in words, and with what it needs."""

    method: Literal['pair', 'gre', 't1w', 'none']
    words: str
    source: FieldmapSource | None = None
    axis: int | None = None  #: array axis of the run along which it is distorted


@dataclass(frozen=True, slots=True)
class Choice:
    """All ways to correct a run, the best first, the last of them 'none'."""

    candidates: tuple[Candidate, ...]
    reasons: tuple[str, ...]  #: why better ones are not among them

    @property
    def best(self) -> Candidate:
        """The first."""
        return self.candidates[0]

    @property
    def words(self) -> str:
        """One line for people: what will be done, what else could be, and why nothing better."""
        ways = '; else '.join(c.words for c in self.candidates if c.method != 'none')
        return '; '.join([f'distortion: {ways or self.best.words}', *self.reasons])


def choose_distortion(run: DwiRun) -> Choice:
    """Ways to correct ``run``: reversed pair, gradient-echo field map, T1w-guided, none.

    T1w-guided registration needs only the axis of phase encoding.
    """
    if run.taken_from is not None:
        return Choice((Candidate('none', f'as {run.taken_from} has left it'),), ())
    axis, _ = phase_encoding(run.metadata)
    candidates = [Candidate(s.kind, s.words, s, axis) for s in run.fieldmaps]
    reasons = list(run.fieldmap_notes)
    if not candidates and not reasons:
        reasons.append('no reversed phase encoding and no field map was found')
    if 't1w' not in run.case.files:
        reasons.append('there is no T1w image to guide a registration')
    elif axis is None:
        reasons.append(
            'the metadata say neither PhaseEncodingDirection nor PhaseEncodingAxis: a T1w image '
            'cannot guide the correction'
        )
    else:
        name = run.case.files['t1w'].name
        words = f'registration to {name} along axis {"ijk"[axis]}'
        candidates.append(Candidate('t1w', words, None, axis))
    candidates.append(Candidate('none', 'not corrected', None, axis))
    return Choice(tuple(candidates), tuple(reasons))


def find_fieldmaps(
    run: BidsImage, others: Sequence[BidsImage], b0_threshold: float = B0_THRESHOLD
) -> tuple[tuple[FieldmapSource, ...], tuple[str, ...]]:
    """Field maps of ``run``, the best first, and why others cannot be used.

    ``others`` are images of its dataset that could be one. Those that B0FieldIdentifier links come
    first, then those that IntendedFor links; only where no linked one can be used, one of the same
    session that is linked to nothing. ``b0_threshold``: greatest b (s/mm²) that counts as b = 0.
    """
    try:
        run.grid()
    except (BadData, MissingInput):
        return (), ()  # what is wrong with the run itself is said where it is read
    own = [s for s in others if s.path != run.path and same(run, s, 'subject')]
    fields = run.listed('B0FieldSource') | run.listed('B0FieldIdentifier')
    named = [s for s in own if s.listed('B0FieldIdentifier') & fields]
    meant = [s for s in own if run.path in intended_for(s)]
    near = [s for s in own if same(run, s, 'session') and s not in (*named, *meant)]
    free = [s for s in near if not s.listed('IntendedFor')]
    notes: list[str] = []
    if run.listed('B0FieldSource') and not named:
        wanted = ', '.join(sorted(run.listed('B0FieldSource')))
        notes.append(f'no image has the B0FieldIdentifier {wanted} that this run names')
    for scans, link in (
        (named, 'linked by B0FieldIdentifier'),
        (meant, 'linked by IntendedFor'),
        (free, ''),
    ):
        found = pairs(run, scans, link, notes, b0_threshold)
        found += measured(run, scans, link, notes)
        if found:
            break
    else:
        notes += [f'{s.path.name} is intended for other images' for s in near if s not in free]
    return tuple(found), tuple(dict.fromkeys(notes))


def same(one: BidsImage, other: BidsImage, entity: str) -> bool:
    """Whether two images have the same label of ``entity``, or both none."""
    return one.entities.get(entity) == other.entities.get(entity)


def intended_for(scan: BidsImage) -> set[Path]:
    """Images that IntendedFor names: BIDS URIs, or paths from the participant's folder.

    Paths from the dataset's or the session's folder, which are wrong but common, are understood.
    """
    entities, said = scan.entities, scan.listed('IntendedFor')
    subject = scan.root / f'sub-{entities.get("subject")}'
    bases = [subject, scan.root, subject / f'ses-{entities.get("session")}']
    uris = {s for s in said if s.startswith('bids:')}
    return {scan.root / s.removeprefix('bids::') for s in uris if s.startswith('bids::')} | {
        base / s for s in said - uris for base in bases
    }
