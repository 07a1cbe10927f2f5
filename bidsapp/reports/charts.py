"""Curves and dots on white, as PNG."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from bidsapp.reports.canvas import save

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

BLUE, ORANGE, GREY = '#2f6fb5', '#d9822b', '#8a939e'
#: Curves of one chart, told apart by colour-blind eyes too.
CURVES = ('#0072b2', '#d55e00', '#009e73')
Curves = Mapping[str, np.ndarray]  #: by what the legend calls them
#: Share of all steps over which the loss is averaged for the bold curve.
SMOOTHING = 0.02


def _axes(height: float, columns: int = 1) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, height), layout='constrained', facecolor='white')
    return figure, [_styled(axes) for axes in figure.subplots(1, columns, squeeze=False)[0]]


def _styled(axes: Any) -> Any:
    axes.spines[['top', 'right']].set_visible(False)
    axes.grid(axis='y', color='#e4e7eb', linewidth=0.8)
    axes.set_axisbelow(True)
    return axes


def motion_chart(
    path: Path, moved: np.ndarray, groups: Mapping[str, Curves], marked: Sequence[int]
) -> Path:
    """Displacement (N,) of volumes from 0, and a second row with a chart for each of ``groups``.

    Volumes that are ``marked`` stand out in all of them.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.4 + 2.3 * bool(groups)), layout='constrained', facecolor='white')
    grid = figure.add_gridspec(1 + bool(groups), max(len(groups), 1))
    top = _styled(figure.add_subplot(grid[0, :]))
    volumes = np.arange(len(moved))
    top.plot(volumes, moved, color=BLUE, marker='o', markersize=3, linewidth=1)
    top.set(ylabel='displacement (mm)', ylim=(0, None), xlabel='' if groups else 'volume')
    every = [top]
    for place, (words, curves) in enumerate(groups.items()):
        axes = _styled(figure.add_subplot(grid[1, place]))
        for colour, (name, values) in zip(CURVES, curves.items(), strict=False):
            axes.plot(volumes, values, color=colour, linewidth=1.3, label=name)
        axes.set(xlabel='volume', ylabel=words)
        every.append(axes)
    if groups:
        figure.legend(*every[-1].get_legend_handles_labels(), loc='outside lower center',
                      ncols=len(CURVES), frameon=False, fontsize=9)  # fmt: skip
    for axes in every:
        axes.set_xlim(-0.5, len(moved) - 0.5)
        axes.xaxis.get_major_locator().set_params(integer=True)
        for n in marked:
            axes.axvspan(n - 0.5, n + 0.5, color=ORANGE, alpha=0.3, linewidth=0)
    return save(figure, path)


def residual_chart(path: Path, values: np.ndarray, low: float | None) -> Path:
    """Residual over noise (N,) by volume, NaN for none; from ``low`` to 1 is right."""
    figure, (axes,) = _axes(2.4)
    volumes = np.arange(len(values))
    axes.axhspan(1 if low is None else low, 1, color=GREY, alpha=0.25, linewidth=0)
    axes.axhline(1, color=GREY, linewidth=1)
    axes.plot(volumes, values, color=BLUE, marker='o', markersize=3, linewidth=1)
    axes.set(xlabel='volume', ylabel='residual / noise', ylim=(0, None))
    axes.set_xlim(-0.5, len(values) - 0.5)
    axes.xaxis.get_major_locator().set_params(integer=True)
    return save(figure, path)


def smoothed(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Running mean over SMOOTHING of the steps, at the steps on which it is centred."""
    width = max(1, round(SMOOTHING * len(values)))
    kernel = np.full(width, 1 / width)
    return np.convolve(steps, kernel, 'valid'), np.convolve(values, kernel, 'valid')


def learning_chart(
    path: Path, rows: Sequence[Mapping[str, float]], score_name: str, higher: bool | None
) -> Path:
    """Training loss and validation score over steps, the best marked if ``higher`` says which."""
    figure, (left, right) = _axes(3.4, 2)
    known = [row for row in rows if 'loss' in row]
    steps, loss = (np.array([row[k] for row in known]) for k in ('step', 'loss'))
    if known:
        left.plot(steps, loss, color=BLUE, alpha=0.25, linewidth=0.8)
        left.plot(*smoothed(steps, loss), color=BLUE, linewidth=1.8)
    left.set(xlabel='step', ylabel='training loss')
    scored = [(row['step'], row['validation']) for row in rows if 'validation' in row]
    right.set(xlabel='step', ylabel=f'validation: {score_name}')
    if scored:
        at, score = np.array(scored).T
        right.plot(at, score, color=ORANGE, marker='o', markersize=3.5, linewidth=1.5)
    if scored and higher is not None:
        best = int(np.argmax(score) if higher else np.argmin(score))
        right.plot(at[best], score[best], 'o', color='black', markersize=8, fillstyle='none')
        text = f'best {score[best]:.4g} at step {at[best]:.0f}'
        right.set_title(text, fontsize=10, loc='left')
        left.axvline(at[best], color=GREY, linewidth=1, linestyle='--')
        right.axvline(at[best], color=GREY, linewidth=1, linestyle='--')
    return save(figure, path)


def paired_dots(
    path: Path, groups: Sequence[str], values: Mapping[str, Mapping[str, float]], up: str
) -> Path:
    """For each participant its value with each of ``groups`` (models), joined by a line."""
    figure, (axes,) = _axes(3.2)
    place = {name: i for i, name in enumerate(groups)}
    for own in values.values():
        x = [place[name] for name in groups if name in own]
        y = [own[name] for name in groups if name in own]
        axes.plot(x, y, color=GREY, marker='o', markersize=5, linewidth=0.8,
                  markerfacecolor=BLUE, markeredgecolor='white')  # fmt: skip
    for name, i in place.items():
        own_values = [own[name] for own in values.values() if name in own]
        axes.hlines(np.median(own_values), i - 0.15, i + 0.15, color=ORANGE, linewidth=2.5)
    axes.set_xticks(range(len(groups)), groups)
    axes.set(xlim=(-0.5, len(groups) - 0.5), ylabel=up)
    return save(figure, path)


def profile_chart(path: Path, curves: Curves, along: str, what: str) -> Path:
    """Values along a line of voxels, the first curve grey and wide: what the others should be."""
    figure, (axes,) = _axes(3.0)
    for n, (name, values) in enumerate(curves.items()):
        style = {'color': GREY, 'linewidth': 3} if n == 0 else {'linewidth': 1.2}
        axes.plot(np.arange(len(values)), values, label=name, **style)
    axes.set(xlabel=along, ylabel=what, xlim=(0, max(len(v) for v in curves.values()) - 1))
    axes.legend(frameon=False, fontsize=9, ncols=len(curves))
    return save(figure, path)
