"""How sure the network is, beside what it says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bidsapp.reports import canvas
from bidsapp.reports.planes import grey, mapped, window
from bidsapp.reports.written import PREDICTED, WrittenRun

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from bidsapp.reports.canvas import Key, Row
    from bidsapp.reports.planes import Cut, View

#: Degrees; what an axis about which nothing is known differs by, root mean square.
NO_DIRECTION = 54.7
#: Standard deviation of a parameter that is drawn brightest; all values as likely have 0.29.
NO_VALUE = 0.3

#: Rows, keys, and what to say of them.
Beside = tuple[list['Row'], list['Key'], str]


def of_labels(run: WrittenRun, view: View, cuts: Sequence[Cut], segmentation: str) -> Beside:
    """A row with the entropy of a predicted segmentation; nothing if there is none."""
    path = run.images(segmentation=segmentation, suffix='probseg').get('entropy')
    words = 'Entropy: 0 where the network is certain, 1 where all classes are as likely.'
    return _row(view, cuts, path, 1.0, 'entropy', '', words)


def of_directions(run: WrittenRun, view: View, cuts: Sequence[Cut]) -> Beside:
    """A row with the expected angular error of the predicted first fibre."""
    words = (f'Expected angle: how far from its direction the network expects the true one; '
             f'{NO_DIRECTION}° where it does not know.')  # fmt: skip
    path = _path(run, 'direction')
    return _row(view, cuts, path, NO_DIRECTION, 'expected angle', '°', words)


def of_parameter(run: WrittenRun, view: View, cuts: Sequence[Cut], param: str) -> Beside:
    """A row with the standard deviation that the network gives a parameter."""
    words = 'Standard deviation: the error that the network expects of its own value.'
    return _row(view, cuts, _path(run, param), NO_VALUE, 'standard deviation', '', words)


def _path(run: WrittenRun, param: str) -> Path | None:
    return run.images(param=param, desc='uncertainty', suffix='dwimap').get(PREDICTED)


def _row(
    view: View,
    cuts: Sequence[Cut],
    path: Path | None,
    high: float,
    name: str,
    unit: str,
    words: str,
) -> Beside:
    if path is None:
        return [], [], ''
    values, bright = view.load(path), window(view.b0, view.brain)
    panels = view.panels(
        cuts,
        lambda at: mapped(0.4 * grey(at(view.b0), bright), at(values), at(view.brain), high,
                          'inferno'),
    )  # fmt: skip
    row = (f'Uncertainty of the network ({name})', panels)
    return [row], [canvas.scale_bar(name, 'inferno', high, unit)], f' {words}'
