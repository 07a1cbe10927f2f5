"""Volumes of a run that carry nothing, or only part of a head, or another gain than their like.

Looked at before anything is computed from a run: one such volume spoils what all are compared
with. Each is compared with its peers, the volumes of its shell, or where these are fewer than
three those of the nearest b. Medians say what is usual, so that a few bad volumes do not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bidsapp.physics.brain import largest, otsu

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bidsapp.core import BoolArray, FloatArray
    from bidsapp.modalities.dwi.physics.gradients import GradientTable

#: Volumes of a shell that say what is usual among them.
MANY = 3
#: Share of the usual signal below which a volume, or a slice of it, is empty.
_EMPTY, _EMPTY_SLICE = 0.05, 0.2
#: Of the largest slice of the head: smaller ones are not judged, for the head moves.
_HELD = 0.25
#: Share of the head's slices that may be missing in a volume: so many can be predicted.
_REPLACEABLE = 0.1
#: Volumes of a shell whose slices can be predicted from the others (`outliers`).
_PREDICTED = 10
#: Signal of a volume, over that of its shell or below it, which no direction explains.
_GAIN = 1.3
#: The same in robust standard deviations of the shell.
_DEVIATIONS = 6.0
#: Of the usual correlation with the median image: less is another image.
_LIKE = 0.4
#: Voxels along an axis, at most, where whole images are correlated; volumes that show the head.
_COARSE, _SHOWN = 24, 15


def unusable(data: FloatArray, gtab: GradientTable) -> dict[int, str]:
    """Volumes of ``data`` (X, Y, Z, N) that must not be used, and why, in words.

    Missing slices that are few, in a shell that is large enough to predict them, are left to
    `outliers`. Raises nothing: a run in which all are bad has no usual signal, and says nothing.
    """
    found = {v: why for v in range(len(gtab)) if (why := _empty(data[..., v]))}
    rest = np.array([v for v in range(len(gtab)) if v not in found], int)
    if len(rest) < MANY:
        return found
    head = _head(data, rest)
    level, slices = _signal(data, head, rest)
    likeness = _likeness(data, gtab, rest)
    for k, v in enumerate(rest):
        own = _peers(gtab, rest, int(v))
        shell = set(rest[own]) <= set(_shell(gtab, int(v)))
        usual = np.median(level[own])
        why = ''
        if level[k] < _EMPTY * usual:
            why = f'nearly empty, {100 * level[k] / usual:.1g} % of the signal of its like'
        elif missing := _missing(slices, k, own, len(own) if shell else 0):
            why = missing
        elif likeness[k] < _LIKE * np.median(likeness[own]):
            why = 'no head is seen in it where the others show one'
        elif shell and _another_gain(level, k, own):
            why = f'another gain, {level[k] / usual:.2g} times the signal of its like'
        if why:
            found[int(v)] = why
    return dict(sorted(found.items()))


def without_numbers(data: FloatArray) -> dict[int, str]:
    """Volumes that hold a slice's worth, or more, of voxels that are no numbers, and so said."""
    plane = data[..., 0].size // max(data.shape[:3])
    counts = [int((~np.isfinite(data[..., v])).sum()) for v in range(data.shape[-1])]
    return {
        v: f'{n} voxels that are not numbers (NaN or infinite)'
        for v, n in enumerate(counts)
        if n >= plane
    }


def _empty(volume: FloatArray) -> str:
    lowest, highest = float(volume.min()), float(volume.max())
    if lowest == highest:
        return 'empty' if highest == 0 else f'nothing but the value {highest:g}'
    return ''


def _shell(gtab: GradientTable, v: int) -> NDArray[np.intp]:
    if gtab.b0[v]:
        return np.flatnonzero(gtab.b0)
    return next(members for _, members in gtab.shells() if v in members)


def _peers(gtab: GradientTable, rest: NDArray[np.int_], v: int) -> NDArray[np.intp]:
    """Which of ``rest`` are like volume ``v``, itself among them."""
    own = np.flatnonzero(np.isin(rest, _shell(gtab, v)))
    if len(own) >= MANY:
        return own
    return np.argsort(np.abs(gtab.bvals[rest] - gtab.bvals[v]), kind='stable')[: MANY + 2]


def _head(data: FloatArray, rest: NDArray[np.int_]) -> BoolArray:
    """(X, Y, Z) where the head is, in most volumes."""
    shown = rest[np.linspace(0, len(rest) - 1, min(len(rest), _SHOWN)).astype(int)]
    bright = [data[..., v] / max(float(data[..., v].mean()), 1e-12) for v in shown]
    image = np.median(bright, axis=0)
    return largest(image > 0.5 * otsu(np.minimum(image, np.percentile(image, 99))))


def _signal(
    data: FloatArray, head: BoolArray, rest: NDArray[np.int_]
) -> tuple[np.ndarray, list[np.ndarray]]:
    """(R,) mean signal of each volume in the head, and for each axis (R, n) that of its slices.

    Slices that hardly hold head are left out.
    """
    planes = [tuple(other for other in range(3) if other != axis) for axis in range(3)]
    counts = [head.sum(axis=plane) for plane in planes]
    held = [count >= max(_HELD * count.max(), 1) for count in counts]
    level = np.empty(len(rest))
    slices = [np.empty((len(rest), int(own.sum()))) for own in held]
    for k, v in enumerate(rest):
        volume = np.where(head, data[..., v], 0)
        level[k] = volume.sum(dtype=float) / max(head.sum(), 1)
        for plane, count, own, rows in zip(planes, counts, held, slices, strict=True):
            rows[k] = volume.sum(axis=plane, dtype=float)[own] / count[own]
    return level, slices


def _missing(slices: list[np.ndarray], k: int, own: NDArray[np.intp], together: int) -> str:
    """What volume ``k`` lacks; empty where that can be predicted from ``together`` volumes."""
    for rows in slices:
        empty = rows[k] < _EMPTY_SLICE * np.median(rows[own], axis=0)
        few = _REPLACEABLE * rows.shape[1] if together >= _PREDICTED else 0
        if empty.sum() > few:
            return f'{int(empty.sum())} of {rows.shape[1]} slices of the head are missing'
    return ''


def _another_gain(level: FloatArray, k: int, own: NDArray[np.intp]) -> bool:
    logs = np.log(np.maximum(level, 1e-12))
    away = logs[own] - np.median(logs[own])
    spread = np.median(np.abs(away)) / 0.6745
    distance = abs(logs[k] - np.median(logs[own]))
    return bool(distance > max(np.log(_GAIN), _DEVIATIONS * spread))


def _likeness(data: FloatArray, gtab: GradientTable, rest: NDArray[np.int_]) -> np.ndarray:
    """(R,) correlation of each volume, coarsely, with the median of its peers."""
    step = tuple(slice(None, None, max(1, n // _COARSE)) for n in data.shape[:3])
    coarse = np.asarray(data[step][..., rest], float).reshape(-1, len(rest))
    coarse -= coarse.mean(0)
    found = np.empty(len(rest))
    for k, v in enumerate(rest):
        usual = np.median(coarse[:, _peers(gtab, rest, int(v))], axis=1)
        usual -= usual.mean()
        power = np.square(coarse[:, k]).sum() * np.square(usual).sum()
        found[k] = coarse[:, k] @ usual / max(np.sqrt(power), 1e-12)
    return found
