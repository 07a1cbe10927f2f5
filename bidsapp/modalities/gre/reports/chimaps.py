"""Figures of susceptibility: every map on one scale, and what the field says against it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bidsapp.bids.images import load_volume
from bidsapp.modalities.gre.bids.prepared import load_fields
from bidsapp.modalities.gre.reports.fields import signed
from bidsapp.reports import canvas, uncertainty
from bidsapp.reports.maps import comparing_cuts, seen
from bidsapp.reports.page import Drawn
from bidsapp.reports.planes import View, window
from bidsapp.reports.titles import begun, title_of
from bidsapp.reports.written import PREDICTED, sidecar

if TYPE_CHECKING:
    from pathlib import Path

    from bidsapp.reports.written import WrittenRun

#: ppm that are drawn white; minus it is black.
WHITE = 0.1
#: ppm of a network's deviation that are drawn brightest.
UNSURE = 0.05
REFERENCE, UNCERTAIN = 'reference', 'uncertainty'


def draw_maps(run: WrittenRun, view: View) -> Drawn | None:
    """Susceptibility by every method, and how sure the network is."""
    files = run.images(suffix='Chimap')
    doubt = files.pop(UNCERTAIN, None)
    if not files:
        return None
    cuts = comparing_cuts(view)
    rows = [
        signed(view, cuts, view.load(path), WHITE, begun(title_of(source)))
        for source, path in files.items()
    ]
    more_rows, more_keys, words = uncertainty.row(
        view, cuts, doubt, UNSURE, 'standard deviation', ' ppm',
        'Standard deviation: the error that the network expects of its own value.',
    )  # fmt: skip
    keys = [canvas.scale_bar('susceptibility', 'gray', WHITE, ' ppm', -WHITE), *more_keys]
    path = canvas.draw_rows(run.figure(desc='comparison', suffix='Chimap'), [*rows, *more_rows],
                            keys)  # fmt: skip
    return Drawn('Magnetic susceptibility', path, caption(files) + words)


def caption(files: dict[str, Path]) -> str:
    """Where χ is 0, and which map is the one to use."""
    said = sidecar(next(iter(files.values()))).get('SusceptibilityReference')
    text = 'Every map on the same scale; iron and veins are bright, myelin and calcium dark. '
    text += f'0 is: {said}. ' if said else ''
    predicted = files.get(PREDICTED)
    if predicted is None:
        return text + 'No network made a map: that of total variation is the one to use.'
    if sidecar(predicted).get('WithinTestedRange') is False:
        return text + (
            'The network was not tested for the like of this scan: the map of total variation is '
            'the one to use.'
        )
    return text + seen(predicted)


def draw_residual(run: WrittenRun, view: View) -> Drawn | None:
    """What of the local field the reference does not explain."""
    from bidsapp.modalities.gre.physics.residual import unexplained

    path = run.images(suffix='Chimap').get(REFERENCE)
    if path is None:
        return None
    fields = load_fields(run.case)
    left = unexplained(fields.local, load_volume(path), fields.known, fields.mask, fields.affine,
                       fields.direction)  # fmt: skip
    shown = view.turned(left)
    high = window(np.abs(view.turned(fields.local)), view.turned(fields.known), 98)
    rows = [signed(view, comparing_cuts(view), shown, high, '')]
    share = left[fields.known].std() / max(float(fields.local[fields.known].std()), 1e-12)
    figure = canvas.draw_rows(
        run.figure(desc='residual', suffix='fieldmap'), rows,
        [canvas.scale_bar('residual field', 'gray', high, ' ppm', -high)],
    )  # fmt: skip
    return Drawn(
        'Residual field', figure,
        'Local field less the field of the map of total variation, on the scale of the local '
        f'field; its spread is {share:.0%} of that. Anatomy in it is what the map lacks; what is '
        'smooth was left by the background.',
    )  # fmt: skip
