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

#: Standard deviation of a parameter that is drawn brightest; all values as likely have 0.29.
NO_VALUE = 0.3

#: Rows, keys, and what to say of them.
Beside = tuple[list['Row'], list['Key'], str]


def of_labels(run: WrittenRun, view: View, cuts: Sequence[Cut], segmentation: str) -> Beside:
    """A row with the entropy of a predicted segmentation; nothing if there is none."""
    path = run.images(segmentation=segmentation, suffix='probseg').get('entropy')
    words = 'Entropy: 0 where the network is certain, 1 where all classes are as likely.'
    return row(view, cuts, path, 1.0, 'entropy', '', words)


def of_parameter(run: WrittenRun, view: View, cuts: Sequence[Cut], param: str) -> Beside:
    """A row with the standard deviation that the network gives a parameter."""
    words = 'Standard deviation: the error that the network expects of its own value.'
    return row(view, cuts, predicted_map(run, param), NO_VALUE, 'standard deviation', '', words)


def predicted_map(run: WrittenRun, param: str) -> Path | None:
    """The map of a predicted parameter's uncertainty."""
    maps = run.images(param=param, desc='uncertainty', suffix=run.suffix_of(param))
    return maps.get(PREDICTED)


def row(
    view: View,
    cuts: Sequence[Cut],
    path: Path | None,
    high: float,
    name: str,
    unit: str,
    words: str,
) -> Beside:
    """A row of one map in the brain, its key and what to say of it; nothing without a map."""
    if path is None:
        return [], [], ''
    values, bright = view.load(path), window(view.background, view.brain)
    panels = view.panels(
        cuts,
        lambda at: mapped(0.4 * grey(at(view.background), bright), at(values), at(view.brain), high,
                          'inferno'),
    )  # fmt: skip
    own = (f'Uncertainty of the network ({name})', panels)
    return [own], [canvas.scale_bar(name, 'inferno', high, unit)], f' {words}'
