"""Susceptibility maps from fields on a scan's own grid: frame, kernels, weights, constant.

A field is cut to the box of its mask and put amid zeros, inverted there, and put back. The
classical methods by name, for a *local* field: 'tkd', 'tikhonov', 'tv'; for a *total* field:
'single-step', total variation behind the spherical-mean filter on both sides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from bidsapp.modalities.gre.physics import background, inversion
from bidsapp.modalities.gre.physics.dipole import b0_direction, convolved, enlarged, kspace
from bidsapp.physics.geometry import voxel_sizes
from bidsapp.physics.operators import Padded

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from bidsapp.core import BoolArray, FloatArray
    from bidsapp.modalities.gre.physics.dipole import Shape

#: Of Tikhonov's λ; right for scans in vivo, whose field χ does not explain to the last part.
TIKHONOV = 0.02
#: Weights are limited to this multiple of the median: bright fluid is not to decide everything.
HEAVIEST = 2.0
#: Zeros around the box of a mask, of its length.
MARGIN = 1.3
#: |D| that is next to nothing.
CONE = 0.03
#: Iterations of total variation; behind the filter, which leaves no slow modes, fewer are enough.
ITERATIONS, ITERATIONS_BEHIND = 40, 25


#: Background removal by its name: total field, mask and voxel edges → local field and mask.
_REMOVED: dict[str, Callable[[Tensor, Tensor, Sequence[float]], tuple[Tensor, Tensor]]] = {
    'vsharp': background.vsharp,
    'resharp': background.resharp,
}


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """The box of a mask amid zeros, and its place on the grid of a scan."""

    whole: Shape  #: the scan's grid
    box: tuple[slice, slice, slice]
    zeros: Padded
    voxel_mm: tuple[float, ...]

    @classmethod
    def of(cls, mask: BoolArray, affine: FloatArray, factor: float = MARGIN) -> Frame:
        """Around ``mask`` (X, Y, Z), which holds something."""
        from scipy import ndimage

        (box,) = ndimage.find_objects(mask.astype(np.uint8))
        x, y, z = (s.stop - s.start for s in box)
        zeros = Padded((x, y, z), enlarged((x, y, z), factor))
        a, b, c = mask.shape
        return cls((a, b, c), box, zeros, tuple(float(v) for v in voxel_sizes(affine)))

    @property
    def padded(self) -> Shape:
        """The frame's grid."""
        x, y, z = self.zeros.padded
        return x, y, z

    def into(self, array: FloatArray | BoolArray) -> Tensor:
        """(X, Y, Z) of the scan → float32 in the frame."""
        cut = np.ascontiguousarray(array[self.box], np.float32)
        return self.zeros(torch.from_numpy(cut))

    def back(self, tensor: Tensor) -> np.ndarray:
        """What stands in the frame → (X, Y, Z) float32 of the scan, 0 beyond the box."""
        full = np.zeros(self.whole, np.float32)
        full[self.box] = self.zeros.adjoint(tensor.float()).numpy()
        return full


def weights_of(noise: FloatArray, mask: BoolArray) -> tuple[np.ndarray, float]:
    """Weights (X, Y, Z), 1 at the median ``noise`` and 0 outside ``mask``, and that median."""
    typical = float(np.median(noise[mask]))
    weights = np.where(mask, typical / np.maximum(noise, 1e-12), 0.0)
    return np.clip(weights, 0, HEAVIEST), typical


def local_field(
    total: FloatArray, mask: BoolArray, affine: FloatArray, method: str = 'vsharp'
) -> tuple[np.ndarray, np.ndarray]:
    """The local field (X, Y, Z) of a ``total`` one, and the mask in which it is known.

    ``method``: 'vsharp' or 'resharp'; the unit is the field's.
    """
    frame = Frame.of(mask, affine)
    remove = _REMOVED[method]
    middle = np.where(mask, total - np.median(total[mask]), 0)
    local, known = remove(frame.into(middle), frame.into(mask) > 0, frame.voxel_mm)
    return frame.back(local), frame.back(known) > 0


def susceptibility(
    field: FloatArray,
    noise: FloatArray,
    mask: BoolArray,
    affine: FloatArray,
    method: str = 'tv',
    strength: float | None = None,
    radius: float = background.SINGLE,
    b: Sequence[float] | None = None,
) -> np.ndarray:
    """χ (X, Y, Z) in ppm of a ``field`` in ppm with its ``noise``, mean 0 in ``mask``, 0 outside.

    ``method`` as above; ``strength`` is its λ (or threshold) where it is not to be the usual one,
    (`usual_strength`). ``radius`` in mm is of the single step's filter. ``b`` (3,) is the direction
    of B0 along the voxel axes where it is not that of ``affine``.
    """
    frame = Frame.of(mask, affine)
    ball = radius if method == 'single-step' else 0.0
    along = b0_direction(affine).tolist() if b is None else b
    problem = posed(field, noise, mask, frame, along, ball)
    f, d = problem.field, problem.transfer
    if strength is None:
        strength = usual_strength(noise, mask, affine, method, radius)
    if method == 'tkd':
        chi = inversion.truncated_division(f, d, strength)
    elif method == 'tikhonov':
        chi = inversion.tikhonov(f, d, strength)
    else:
        chi = total_variation(problem, frame.voxel_mm, ball, strength)
    found = frame.back(chi)
    return np.where(mask, found - found[mask].mean(), 0.0)


def usual_strength(
    noise: FloatArray,
    mask: BoolArray,
    affine: FloatArray,
    method: str,
    radius: float = background.SINGLE,
) -> float:
    """λ of a ``method``, or the threshold of 'tkd', where nobody says another; ``noise`` in ppm.

    That of total variation follows the median noise where the field is known.
    """
    if method in ('tkd', 'tikhonov'):
        return {'tkd': inversion.TRUNCATION, 'tikhonov': TIKHONOV}[method]
    behind, edges = method == 'single-step', voxel_sizes(affine).tolist()
    known = background.reach(mask, edges, radius) if behind else mask
    _, typical = weights_of(noise, known if known.any() else mask)
    return inversion.strength_for(typical, edges, behind)


@dataclass(frozen=True, slots=True, eq=False)
class Posed:
    """An inversion, in a frame: argmin over χ of ‖W (A χ - f)‖² and what is asked of χ."""

    field: Tensor  #: f in ppm, 0 where it is not known
    transfer: Tensor  #: the spectrum of A: D of a local field, S D of a total one
    known: Tensor  #: 1 where the field is known, behind the filter
    weights: Tensor  #: W, 0 where it is not
    noise: float  #: median of what is known, ppm
    cone: float  #: the same by what the field has where no χ gives any: `_on_cone`


def transfer_of(
    shape: Shape, voxel_mm: Sequence[float], b: Sequence[float], radius: float = 0.0
) -> Tensor:
    """The spectrum of D, or of S D with a ball of ``radius`` mm: layout of `torch.fft.rfftn`."""
    d = kspace(shape, voxel_mm, b)
    return d * background.spherical_mean(shape, voxel_mm, radius) if radius else d


def posed(
    field: FloatArray,
    noise: FloatArray,
    mask: BoolArray,
    frame: Frame,
    b: Sequence[float],
    radius: float = 0.0,
) -> Posed:
    """Of a local ``field`` in ``mask``, or of a total one by a filter of ``radius`` mm."""
    f = frame.into(np.where(mask, field - np.median(field[mask]), 0))
    d, known = kspace(frame.padded, frame.voxel_mm, b), mask
    s = torch.ones((), dtype=d.dtype)
    if radius:
        s = background.spherical_mean(frame.padded, frame.voxel_mm, radius)
        f = convolved(f, s)
        known = background.reach(mask, frame.voxel_mm, radius)
    weights, typical = weights_of(noise, known if known.any() else mask)
    where = frame.into(known)
    cone = typical * _on_cone(where * f, frame.into(noise) * where, d, s)
    return Posed(where * f, d * s, where, where * frame.into(weights), typical, cone)


def _on_cone(field: Tensor, noise: Tensor, d: Tensor, s: Tensor) -> float:
    """The spread of ``field`` where |D| is next to nothing, over that of its ``noise`` behind S.

    There a susceptibility gives no field. What stands there, beside noise and what a mask spreads,
    nothing explains: about 3 to 4 on a simulated head of which χ explains all.
    """
    on = d.abs() < CONE
    on[0, 0, 0] = False
    power = torch.fft.rfftn(field).abs().square()[on].mean()
    white = noise.square().sum() * (s**2).expand_as(d)[on].mean()
    return float((power / white.clamp_min(1e-30)).sqrt())


def total_variation(
    problem: Posed, voxel_mm: Sequence[float], radius: float = 0.0, strength: float | None = None
) -> Tensor:
    """χ in the frame of ``problem`` by total variation that begins with Tikhonov's map."""
    if strength is None:
        strength = inversion.strength_for(problem.noise, voxel_mm, bool(radius))
    return inversion.total_variation(
        problem.field,
        problem.transfer,
        problem.weights,
        voxel_mm,
        strength,
        iterations=ITERATIONS_BEHIND if radius else ITERATIONS,
        start=inversion.tikhonov(problem.field, problem.transfer, TIKHONOV),
    ).chi
