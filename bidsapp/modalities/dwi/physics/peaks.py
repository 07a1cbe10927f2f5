"""Maxima of even functions on the sphere that are given by their harmonics."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from bidsapp.modalities.dwi.physics.harmonics import basis, fibonacci_hemisphere

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bidsapp.core import FloatArray

#: Most fibres told apart in a voxel.
MAX_FIBRES = 3
FIBRES = ((1, 'One Fibre', '1F'), (2, 'Two Fibres', '2F'), (3, 'Three Fibres', '3F'))


#: Densities looked at together.
_CHUNK = 1000


@cache
def sphere(order: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """(n, 3) hemisphere directions and (n, K) harmonics there."""
    directions = fibonacci_hemisphere(n)
    return directions, basis(directions, order)


def at_directions(directions: FloatArray, order: int) -> np.ndarray:
    """(…, 3) unit vectors → (…, K) harmonics there."""
    return basis(directions.reshape(-1, 3), order).reshape(*directions.shape[:-1], -1)


def fibre_peaks(
    density: FloatArray,
    order: int,
    relative: float = 0.5,
    separation_deg: float = 25.0,
    absolute: float = 0.0,
    n: int = 3,
) -> tuple[np.ndarray, np.ndarray]:
    """The ``n`` highest maxima of densities (K, V): directions (V, n, 3), amplitudes (V, n).

    Highest first; each at least ``relative`` of the highest and ``separation_deg`` from those
    above it; zero where there are fewer. Where the highest is not above ``absolute`` (in the
    density's unit, see ``isotropic_floor``) there are none.
    """
    parts = [
        _peaks_of(density[:, first : first + _CHUNK], order, relative, separation_deg, absolute, n)
        for first in range(0, max(density.shape[1], 1), _CHUNK)
    ]
    directions, amplitudes = zip(*parts, strict=True)
    return np.concatenate(directions), np.concatenate(amplitudes)


def _peaks_of(
    density: FloatArray,
    order: int,
    relative: float,
    separation_deg: float,
    absolute: float,
    n: int,
) -> tuple[np.ndarray, np.ndarray]:
    """`fibre_peaks` of some voxels."""
    voxel, direction = _grid_maxima(density, order, relative)
    columns = density.T[voxel]
    direction, amplitude = _climb(direction, columns, order)
    by_height = np.lexsort((-amplitude, voxel))
    voxel, direction, amplitude = voxel[by_height], direction[by_height], amplitude[by_height]
    directions = np.zeros((density.shape[1], n, 3))
    amplitudes = np.zeros((density.shape[1], n))
    first = np.searchsorted(voxel, voxel)
    rank, count = np.arange(len(voxel)) - first, np.zeros(density.shape[1], int)
    limit = np.cos(np.deg2rad(separation_deg))
    for place in range(int(rank.max(initial=-1)) + 1):
        here = np.flatnonzero(rank == place)
        v, u, a = voxel[here], direction[here], amplitude[here]
        apart = np.abs(np.einsum('vnj,vj->vn', directions[v], u)).max(1) < limit
        highest = amplitudes[v, 0]
        tall = np.where(count[v] > 0, a >= relative * highest, (place == 0) & (a > absolute))
        good = apart & tall & (count[v] < n)
        v, u, a = v[good], u[good], a[good]
        directions[v, count[v]], amplitudes[v, count[v]] = u, a
        count[v] += 1
    return directions, amplitudes


@cache
def _peak_grid() -> tuple[np.ndarray, np.ndarray]:
    """(724, 3) directions, about 5 degrees apart, and the (724, 10) nearest ones up to sign."""
    directions = fibonacci_hemisphere(724)
    nearness = np.abs(directions @ directions.T)
    return directions, np.argsort(-nearness, axis=1)[:, 1:11]


def _grid_maxima(
    density: FloatArray, order: int, relative: float
) -> tuple[NDArray[np.intp], np.ndarray]:
    """Voxel (P,) and direction (P, 3) of the local maxima on a grid that may become peaks."""
    directions, neighbours = _peak_grid()
    harmonics = sphere(order, len(directions))[1]
    values = harmonics @ density
    # A grid point may be below the maximum that it stands for, hence a wider gate here.
    highest = values > 0.8 * relative * values.max(0, initial=0)
    for neighbour in neighbours.T:
        highest &= values >= values[neighbour]
    vertex, voxel = np.nonzero(highest)
    return voxel, directions[vertex]


def _climb(direction: FloatArray, columns: FloatArray, order: int) -> tuple[np.ndarray, np.ndarray]:
    """Directions (P, 3) and amplitudes (P,) of the maxima near ``direction``.

    Newton steps in the tangent plane, with derivatives from nine points 2 degrees apart;
    ``columns`` (P, K) are the harmonics of each.
    """
    h, longest = np.deg2rad(2.0), np.deg2rad(5.0)
    offsets = h * np.array([(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)], float)
    for _ in range(2):
        planes = _tangents(direction)
        points = direction[:, None] + np.einsum('sc,pcj->psj', offsets, planes)
        harmonics = basis(points.reshape(-1, 3), order).reshape(-1, 9, columns.shape[1])
        v = np.einsum('psk,pk->ps', harmonics, columns).reshape(-1, 3, 3)
        gx, gy = (v[:, 2, 1] - v[:, 0, 1]) / (2 * h), (v[:, 1, 2] - v[:, 1, 0]) / (2 * h)
        hxx = (v[:, 2, 1] + v[:, 0, 1] - 2 * v[:, 1, 1]) / h**2
        hyy = (v[:, 1, 2] + v[:, 1, 0] - 2 * v[:, 1, 1]) / h**2
        hxy = (v[:, 2, 2] - v[:, 2, 0] - v[:, 0, 2] + v[:, 0, 0]) / (4 * h**2)
        determinant = hxx * hyy - hxy**2
        concave = (hxx < 0) & (determinant > 0)
        safe = np.where(concave, determinant, 1.0)
        step = np.stack([hxy * gy - hyy * gx, hxy * gx - hxx * gy], 1) / safe[:, None]
        length = np.linalg.norm(step, axis=1)
        step *= (concave * np.minimum(1, longest / np.maximum(length, 1e-12)))[:, None]
        direction = direction + np.einsum('pc,pcj->pj', step, planes)
        direction = direction / np.linalg.norm(direction, axis=1, keepdims=True)
    return direction, np.einsum('pk,pk->p', basis(direction, order), columns)


def _tangents(direction: FloatArray) -> np.ndarray:
    """(P, 2, 3) two unit vectors across each direction (P, 3) and across each other."""
    helper = np.eye(3)[np.abs(direction).argmin(1)]
    first = np.cross(direction, helper)
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    return np.stack([first, np.cross(direction, first)], 1)
