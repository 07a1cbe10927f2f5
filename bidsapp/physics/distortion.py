"""Susceptibility distortion of echo-planar images: the model, its inverse, and its units.

A displacement d (X, Y, Z) is in voxels along the phase-encoding axis p, at the places of the
corrected image: what belongs to x is found at x + d(x) in the raw image, and there it is spread
over J = 1 + ∂d/∂p voxels:

    corrected(x) = J(x) · raw(x + d(x) e_p).

An off-resonance of f Hz gives d = s · f · T, T the total readout time in s and s the sign of the
BIDS phase-encoding direction (+1 for 'j', -1 for 'j-'; Jezzard and Balaban, MRM 1995).
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable

    from bidsapp.core import FloatArray

#: Parts into which `distort` cuts a voxel: what is stretched more than this becomes uneven.
_PARTS = 8


def phase_axis(phase_encoding: str) -> tuple[int, int]:
    """(array axis, sign) of a BIDS phase-encoding direction such as 'j-'. Raises ValueError."""
    if phase_encoding not in ('i', 'j', 'k', 'i-', 'j-', 'k-'):
        raise ValueError(f'phase encoding {phase_encoding!r} is none of i, j, k, i-, j-, k-')
    return 'ijk'.index(phase_encoding[0]), -1 if phase_encoding.endswith('-') else 1


def displacement_of(hz: FloatArray, readout: float, phase_encoding: str) -> np.ndarray:
    """Displacement in voxels, float32, of an off-resonance in Hz; ``readout`` in s."""
    return np.asarray(phase_axis(phase_encoding)[1] * readout * np.asarray(hz), np.float32)


def field_of(displacement: FloatArray, readout: float, phase_encoding: str) -> np.ndarray:
    """Off-resonance in Hz, float32, of a displacement in voxels; ``readout`` in s."""
    return np.asarray(displacement / (phase_axis(phase_encoding)[1] * readout), np.float32)


def jacobian(displacement: FloatArray, axis: int) -> np.ndarray:
    """(X, Y, Z) J = 1 + ∂d/∂p, float32, by central differences; ``axis`` is p.

    Where it is not positive the image is folded there.
    """
    return np.asarray(1 + np.gradient(displacement, axis=axis), np.float32)


def unwarp(
    image: FloatArray, displacement: FloatArray, axis: int, order: int = 3, device: str = 'cpu'
) -> np.ndarray:
    """``image`` (X, Y, Z) or (X, Y, Z, N) where and as bright as it would be without d; float32.

    ``order`` 1 interpolates linearly, 3 by cubic B-splines (which may overshoot below 0). Beyond
    the edge the edge is repeated. Raises ValueError for another order or other shapes.
    """
    shift = torch.as_tensor(np.ascontiguousarray(displacement, np.float32), device=device)
    factor = torch.as_tensor(jacobian(displacement, axis), device=device)
    return _volumewise(
        image, displacement, device, lambda v: factor * sample_along(v, shift, axis, order)
    )


def distort(
    image: FloatArray, displacement: FloatArray, axis: int, device: str = 'cpu'
) -> np.ndarray:
    """The raw image of an undistorted ``image`` (X, Y, Z) or (X, Y, Z, N); float32.

    Every piece of a voxel goes where d takes its two faces and fills what lies between them; d is
    linear between voxel centres. The sum is conserved but for what leaves the grid, and folds pile
    up. Nothing enters from beyond the edge. Raises ValueError if the shapes differ.
    """
    shift = torch.as_tensor(np.ascontiguousarray(displacement, np.float32), device=device)
    return _volumewise(image, displacement, device, lambda v: distorted(v, shift, axis))


def _volumewise(
    image: FloatArray, displacement: FloatArray, device: str, change: Callable[[Tensor], Tensor]
) -> np.ndarray:
    """``change`` for each volume in turn: never more than one beside the result."""
    if image.shape[:3] != displacement.shape:
        raise ValueError(f'an image {image.shape} with a displacement {displacement.shape}')
    result = np.empty(image.shape, np.float32)
    source, target = (array.reshape(*array.shape[:3], -1) for array in (image, result))
    for index in range(source.shape[-1]):
        volume = np.ascontiguousarray(source[..., index], np.float32)
        target[..., index] = change(torch.as_tensor(volume, device=device)).cpu().numpy()
    return result


def sample_along(image: Tensor, shift: Tensor, axis: int, order: int = 3) -> Tensor:
    """image(x + shift(x) e_axis) of an ``image`` (X, Y, Z); ``shift`` (X, Y, Z) in voxels.

    ``order`` 1 or 3, as in `unwarp`.
    """
    lines, moving = image.movedim(axis, -1), shift.movedim(axis, -1)
    n = lines.shape[-1]
    place = (torch.arange(n).to(moving) + moving).clamp(0, n - 1)
    return interpolated(lines, place, order).movedim(-1, axis)


def distorted(image: Tensor, shift: Tensor, axis: int) -> Tensor:
    """`distort` of one ``image`` (X, Y, Z) with ``shift`` (X, Y, Z), on any device."""
    lines, moving = image.movedim(axis, -1), shift.movedim(axis, -1)
    n = lines.shape[-1]
    pieces, faces = _cut(n)
    mass = lines @ pieces.to(lines).T
    faces = moving @ faces.to(moving).T + torch.arange(n * _PARTS + 1).to(moving) / _PARTS
    low, width = torch.minimum(faces[..., 1:], faces[..., :-1]), faces.diff(dim=-1).abs()
    voxel = low.floor()
    beyond = 1 - (voxel + 1 - low) / width.clamp_min(1e-6)  # the share in the next voxel
    beyond = beyond.clamp(0, 1)
    # One voxel more on either side takes what leaves the grid.
    raw = mass.new_zeros(*lines.shape[:-1], n + 3)
    index = voxel.long().clamp(-1, n) + 1
    raw.scatter_add_(-1, index, mass * (1 - beyond)).scatter_add_(-1, index + 1, mass * beyond)
    return raw[..., 1 : n + 1].movedim(-1, axis)


@cache
def _cut(n: int) -> tuple[Tensor, Tensor]:
    """What is in each of the pieces (n _PARTS, n), and d at their faces (n _PARTS + 1, n).

    Both are linear in the samples. The spline of the integral passes through its values at the
    faces of the voxels, so the pieces of a voxel add up to it.
    """
    faces = torch.arange(n * _PARTS + 1, dtype=torch.float64) / _PARTS
    unit = torch.eye(n, dtype=torch.float64)
    integral = functional.pad(unit.cumsum(-1), (1, 0))
    mass = interpolated(integral, faces.expand(n, -1), 3).diff(dim=-1)
    return mass.T, interpolated(unit, (faces - 0.5).clamp(0, n - 1).expand(n, -1), 1).T


def interpolated(lines: Tensor, place: Tensor, order: int) -> Tensor:
    """(…, M) values of ``lines`` (…, n) at ``place`` (…, M), which lies within [0, n - 1]."""
    n = lines.shape[-1]
    if order == 1:
        low = place.long().clamp_max(max(n - 2, 0))
        return torch.lerp(
            lines.gather(-1, low), lines.gather(-1, (low + 1).clamp_max(n - 1)), place - low
        )
    if order != 3:
        raise ValueError(f'interpolation of order {order}; 1 and 3 are known')
    coefficients = lines @ _prefilter(n, lines).T
    low = place.floor()
    t = place - low
    weights = (
        (1 - t) ** 3 / 6,
        2 / 3 - t**2 + t**3 / 2,
        2 / 3 - (1 - t) ** 2 + (1 - t) ** 3 / 2,
        t**3 / 6,
    )
    value = torch.zeros_like(place)
    for step, weight in enumerate(weights, start=-1):
        index = (low.long() + step).abs()
        index = index.minimum(2 * (n - 1) - index).clamp_min(0)  # mirrored at the end voxels
        value.addcmul_(coefficients.gather(-1, index), weight)
    return value


def _prefilter(n: int, like: Tensor) -> Tensor:
    """(n, n) samples → coefficients of the cubic B-spline through them, mirrored at its ends."""
    spline = torch.diag(torch.full((n,), 2 / 3, dtype=torch.float64))
    for row in range(n):
        for neighbour in (abs(row - 1), n - 1 - abs(n - 2 - row)):
            spline[row, max(neighbour, 0)] += 1 / 6
    inverse: Tensor = torch.linalg.inv(spline)
    return inverse.to(like)
