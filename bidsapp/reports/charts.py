"""Curves and dots on white, as PNG."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bidsapp.reports.canvas import save

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

BLUE, ORANGE, GREY = '#2f6fb5', '#d9822b', '#8a939e'
#: Share of all steps over which the loss is averaged for the bold curve.
SMOOTHING = 0.02


def _axes(height: float, columns: int = 1) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, height), layout='constrained', facecolor='white')
    axes = list(figure.subplots(1, columns, squeeze=False)[0])
    for one in axes:
        one.spines[['top', 'right']].set_visible(False)
        one.grid(axis='y', color='#e4e7eb', linewidth=0.8)
        one.set_axisbelow(True)
    return figure, axes


def line_chart(path: Path, values: Sequence[float], across: str, up: str) -> Path:
    """One value for each whole number from 0."""
    figure, (axes,) = _axes(2.4)
    axes.plot(np.arange(len(values)), values, color=BLUE, marker='o', markersize=3, linewidth=1)
    axes.set(xlabel=across, ylabel=up, ylim=(0, None))
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
    steps, loss = (np.array([row[k] for row in rows]) for k in ('step', 'loss'))
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
