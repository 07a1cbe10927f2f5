"""What a scan's own lines say of its reconstructions, in words; first on the page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bidsapp.reports.page import Drawn
from bidsapp.reports.titles import title_of
from bidsapp.reports.written import sidecar

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from bidsapp.reports.written import WrittenRun


def methods_of(run: WrittenRun) -> dict[str, Path]:
    """Method → its image, that of all lines first."""
    suffix = run.entities['suffix']
    found = run.images('reconstruction', desc='recon', suffix=suffix)
    return {**run.images('reconstruction', desc='reference', suffix=suffix), **found}


def draw_verdict(run: WrittenRun) -> Drawn:
    """Which reconstruction to use, and what it rests on."""
    files = methods_of(run)
    if set(files) == {'full'}:
        return Drawn(
            'Verdict', None,
            'Every line was measured: the image of them all is the one to use, and there was '
            'nothing to reconstruct.',
        )  # fmt: skip
    said = sidecar(files['tv']) if 'tv' in files else {}
    return Drawn('Verdict', None, ' '.join([_best(said), _residual(said), _simulated(said)]))


def _best(said: Mapping[str, Any]) -> str:
    errors = said.get('LeftOutError') or {}
    written = {name: error for name, error in errors.items() if name in ('tv', 'sense')}
    if not written:
        return (
            'No network made an image. Too few lines outside the middle were measured to leave '
            'some out: no method can be judged by them.'
        )
    best = min(written, key=lambda name: written[name])
    every = ', '.join(f'{title_of(name)} {error:.3g}' for name, error in errors.items())
    return (
        f'No network made an image: the one to use is that of {title_of(best)}. Lines that were '
        f'measured and left out are predicted to so many times their expected error: {every}.'
    )


def _residual(said: Mapping[str, Any]) -> str:
    residual = said.get('Residual')
    if residual is None:
        return (
            'There are too few coils for so many missing lines to tell whether maps fit the data.'
        )
    return (
        f'Least squares leave of the data {residual:.3g} times what their noise lets expect; '
        'much more than 1 where the noise is not very low means that coil maps and lines do not '
        'belong together, as of a head that moved or that is wider than the field of view.'
    )


def _simulated(said: Mapping[str, Any]) -> str:
    if said.get('Simulated'):
        return (
            'Simulated: k-space was made of an image, which has lost phase, noise and coils; '
            'figures here flatter every method.'
        )
    left = said.get('RetrospectiveAcceleration')
    return '' if left is None else 'Lines were left out of a full scan afterwards, to compare.'
