"""Rows of panels and their keys on black, as PNG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bidsapp.bids.write import whole

if TYPE_CHECKING:
    from pathlib import Path

    from bidsapp.reports.planes import Panel

#: Inches, and pixels per inch, of all figures.
WIDTH, DPI = 12.0, 140
#: Inches: space around panels, for a row's title, for the keys below.
GAP, TITLE, KEY = 0.06, 0.28, 0.5
#: Inches that a letter of a key takes, on average.
LETTER = 0.08
#: No row's pictures are taller than this, in inches.
TALLEST = 3.6

#: Draws a key into axes in inches from x on, and says how wide it is.
Key = Callable[[Any, float], float]
#: A title, empty for none, and panels.
Row = tuple[str, Sequence['Panel']]


def save(figure: Any, path: Path) -> Path:
    """Write a matplotlib figure as PNG, whole; the same figure gives the same bytes."""
    with whole(path) as hidden:
        figure.savefig(hidden, format='png', dpi=DPI, metadata={'Software': None},
                       facecolor=figure.get_facecolor())  # fmt: skip
    return path


def draw_rows(path: Path, rows: Sequence[Row], keys: Sequence[Key] = ()) -> Path:
    """Panels of all rows at one scale, row under row, and the keys at the bottom."""
    from matplotlib.figure import Figure

    scale = min(_scale(panels) for _, panels in rows)
    heights = [scale * max(p.size[1] for p in panels) + GAP for _, panels in rows]
    heights = [h + (TITLE if title else 0) for h, (title, _) in zip(heights, rows, strict=True)]
    total = sum(heights) + (KEY if keys else 0) + GAP
    figure = Figure(figsize=(WIDTH, total), facecolor='black')
    top = total - GAP
    for (title, panels), height in zip(rows, heights, strict=True):
        if title:
            figure.text(2 * GAP / WIDTH, (top - TITLE / 2) / total, title, color='white',
                        fontsize=11, va='center')  # fmt: skip
        _draw_row(figure, panels, scale, top - height + GAP, total)
        top -= height
    _draw_keys(figure, keys, total)
    return save(figure, path)


def _scale(panels: Sequence[Panel]) -> float:
    """Inches per mm at which a row just fits."""
    free = WIDTH - GAP * (len(panels) + 1)
    return min(free / sum(p.size[0] for p in panels), TALLEST / max(p.size[1] for p in panels))


def _draw_row(
    figure: Any, panels: Sequence[Panel], scale: float, bottom: float, total: float
) -> None:
    """Panels side by side; what is left of the width goes evenly around them."""
    widths = [p.size[0] * scale for p in panels]
    gap = (WIDTH - sum(widths)) / (len(panels) + 1)
    tallest = scale * max(p.size[1] for p in panels)
    left = gap
    for panel, width in zip(panels, widths, strict=True):
        height = panel.size[1] * scale
        low = bottom + (tallest - height) / 2
        axes = figure.add_axes(
            (left / WIDTH, low / total, width / WIDTH, height / total), frameon=False
        )
        _draw_panel(axes, panel)
        left += width + gap


def _draw_panel(axes: Any, panel: Panel) -> None:
    from matplotlib.patheffects import withStroke

    width, height = panel.size
    axes.set_axis_off()
    axes.imshow(panel.picture, origin='lower', extent=(0, width, 0, height), aspect='auto')
    if panel.outline is not None and panel.outline.any() and not panel.outline.all():
        rows, columns = panel.outline.shape
        x = (np.arange(columns) + 0.5) * width / columns
        y = (np.arange(rows) + 0.5) * height / rows
        axes.contour(x, y, panel.outline, levels=[0.5], colors='#ff4d4d', linewidths=0.9)
    edge = [withStroke(linewidth=2, foreground='black')]
    style = {'transform': axes.transAxes, 'path_effects': edge}
    for x, letter, side in zip((0.015, 0.985), panel.letters, ('left', 'right'), strict=True):
        axes.text(x, 0.5, letter, color='#ffd54a', fontsize=9, va='center', ha=side, **style)
    axes.text(0.015, 0.985, panel.place, color='#b8bec6', fontsize=7, va='top', **style)


def _draw_keys(figure: Any, keys: Sequence[Key], total: float) -> None:
    if not keys:
        return
    axes = figure.add_axes((0, 0, 1, KEY / total), frameon=False)
    axes.set(xlim=(0, WIDTH), ylim=(0, KEY))
    axes.set_axis_off()
    x = 0.15
    for key in keys:
        x += key(axes, x) + 0.4


def swatches(pairs: Sequence[tuple[str, str]]) -> Key:
    """A key of colours and their names."""

    def draw(axes: Any, x: float) -> float:
        start = x
        for colour, name in pairs:
            axes.fill([x, x + 0.2, x + 0.2, x], [0.15, 0.15, 0.35, 0.35], color=colour)
            _write(axes, x + 0.28, name)
            x += 0.5 + LETTER * len(name)
        return x - start

    return draw


def scale_bar(name: str, cmap: str, high: float, unit: str = '', low: float = 0.0) -> Key:
    """A key from ``low`` to ``high`` of a colour map."""

    def draw(axes: Any, x: float) -> float:
        before, after = f'{name}  {low:.3g}', f'{high:.3g}{unit}'
        _write(axes, x, before)
        start, x = x, x + 0.1 + LETTER * len(before)
        ramp = np.linspace(0, 1, 256)[None]
        axes.imshow(ramp, extent=(x, x + 1.6, 0.15, 0.35), aspect='auto', cmap=cmap)
        axes.set(xlim=(0, WIDTH), ylim=(0, KEY))
        _write(axes, x + 1.7, after)
        return x + 1.7 + LETTER * len(after) - start

    return draw


def direction_ball(axes: Any, x: float) -> float:
    """The key of direction colours: a ball seen from above, the patient's left on the left."""
    side = np.linspace(-1, 1, 96)
    u, v = np.meshgrid(side, side)
    square = u**2 + v**2
    ball = np.stack([np.abs(u), np.abs(v), np.sqrt(np.clip(1 - square, 0, 1))], -1)
    ball *= (square <= 1)[..., None]
    size = KEY - 0.06
    axes.imshow(ball, origin='lower', extent=(x, x + size, 0.03, 0.03 + size), aspect='auto')
    axes.set(xlim=(0, WIDTH), ylim=(0, KEY))
    start, x = x, x + size + 0.12
    for colour, name in (('#ff5a5a', 'red: left-right'), ('#3ddc6b', 'green: front-back'),
                         ('#6d8dff', 'blue: up-down')):  # fmt: skip
        _write(axes, x, name, colour)
        x += 0.15 + LETTER * len(name)
    return x - start


def _write(axes: Any, x: float, text: str, colour: str = 'white') -> None:
    axes.text(x, KEY / 2, text, color=colour, fontsize=9, va='center')
