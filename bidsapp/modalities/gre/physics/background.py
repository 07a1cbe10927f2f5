"""What comes from outside: removing the background field by the spherical-mean-value property.

Inside a sphere that holds no sources a field is harmonic, and its mean over the sphere is its value
at the centre. With S = δ - (mean over a ball), S f at a voxel whose ball lies within the mask knows
the sources in the mask only (Schweser et al., NeuroImage 54:2789, 2011). Balls are of voxels, with
parts of voxels at their surface, and stand at the origin of the grid.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from bidsapp.modalities.gre.physics.dipole import convolved, half
from bidsapp.physics.solvers import conjugate_gradient

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from bidsapp.core import BoolArray
    from bidsapp.modalities.gre.physics.dipole import Shape

#: mm: radii of V-SHARP, and that of RESHARP and the single step.
LARGEST, SMALLEST, SINGLE = 12.0, 1.0, 5.0
#: |S| below which V-SHARP's deconvolution divides no further.
TRUNCATION = 0.05
#: Points along a voxel's edge that tell which part of it lies in a ball.
_FINE = 5


def spherical_mean(shape: Shape, voxel_mm: Sequence[float], radius: float) -> Tensor:
    """The spectrum of S = δ - ball of ``radius`` mm, of sum 1, in the layout of `torch.fft.rfftn`.

    S(0) is exactly 0; between 0 and about 1.1 elsewhere. float64.
    """
    edges = [int(np.ceil(radius / size)) for size in voxel_mm]
    parts = (np.arange(_FINE) + 0.5) / _FINE - 0.5
    offsets = [
        (np.arange(-n, n + 1)[:, None] + parts).ravel() * size
        for n, size in zip(edges, voxel_mm, strict=True)
    ]
    x, y, z = (o**2 for o in offsets)
    inside = (x[:, None, None] + y[:, None] + z) <= radius**2
    blocks = [part for n in edges for part in (2 * n + 1, _FINE)]
    ball = torch.as_tensor(inside.reshape(blocks).mean((1, 3, 5)))
    kernel = torch.zeros(shape, dtype=torch.float64)
    places = [torch.arange(-n, n + 1) % size for n, size in zip(edges, shape, strict=True)]
    where = tuple(torch.meshgrid(*places, indexing='ij'))
    kernel.index_put_(where, -ball / ball.sum(), accumulate=True)
    kernel[0, 0, 0] += 1
    spectrum = half(torch.fft.fftn(kernel).real)
    spectrum[0, 0, 0] = 0
    return spectrum


def depth(mask: BoolArray, voxel_mm: Sequence[float]) -> np.ndarray:
    """(X, Y, Z) mm to the nearest voxel outside ``mask``; what lies beyond the grid is outside."""
    from scipy import ndimage

    padded = ndimage.distance_transform_edt(np.pad(mask, 1), voxel_mm)
    return np.asarray(padded[1:-1, 1:-1, 1:-1])


def reach(mask: BoolArray, voxel_mm: Sequence[float], radius: float) -> BoolArray:
    """Where a ball of ``radius`` mm lies within ``mask``."""
    # A voxel outside begins half an edge before its centre.
    return np.asarray(depth(mask, voxel_mm) > radius + max(voxel_mm) / 2)


def vsharp(
    total: Tensor,
    mask: Tensor,
    voxel_mm: Sequence[float],
    largest: float = LARGEST,
    smallest: float = SMALLEST,
) -> tuple[Tensor, Tensor]:
    """The local field, and the smaller mask in which it is known, by V-SHARP (Wu et al., 2012).

    ``total`` (X, Y, Z) and ``mask`` (bool) amid zeros that a ball does not reach over. Each voxel
    takes the largest ball that fits, of radii 1 mm apart down to ``smallest`` or a voxel's edge;
    the deconvolution with that of the largest is truncated at 0.05. (MRM 67:137,
    doi:10.1002/mrm.23000.)
    """
    deep = depth(mask.numpy(), voxel_mm)
    smallest = max(smallest, max(float(size) for size in voxel_mm))
    radii = np.arange(largest, smallest - 1e-6, -1.0)
    filtered, known = torch.zeros_like(total), torch.zeros_like(mask)
    deconvolution = None
    for radius in radii:
        fits = torch.as_tensor(deep > radius + max(voxel_mm) / 2) & ~known
        if not fits.any():
            continue
        s = spherical_mean(_shape(total), voxel_mm, float(radius))
        deconvolution = s if deconvolution is None else deconvolution
        filtered = torch.where(fits, convolved(total * mask, s), filtered)
        known |= fits
    if deconvolution is None:
        return filtered, known
    inverse = torch.where(deconvolution.abs() > TRUNCATION, 1 / deconvolution, 0.0)
    return known * convolved(filtered, inverse), known


def resharp(
    total: Tensor,
    mask: Tensor,
    voxel_mm: Sequence[float],
    radius: float = SINGLE,
    strength: float = 1e-4,
    iterations: int = 30,
) -> tuple[Tensor, Tensor]:
    """The local field, and the mask in which it is known, by RESHARP (Sun & Wilman, 2014).

    argmin ‖M S (f - f_total)‖² + λ ‖f‖² by conjugate gradients, M where the ball fits (MRM
    71:1151, doi:10.1002/mrm.24765). Arguments as of `vsharp`.
    """
    s = spherical_mean(_shape(total), voxel_mm, radius)
    known = torch.as_tensor(reach(mask.numpy(), voxel_mm, radius))

    def normal(x: Tensor) -> Tensor:
        return convolved(known * convolved(x, s), s) + strength * x

    right = convolved(known * convolved(total * mask, s), s)
    local = conjugate_gradient(normal, right, steps=iterations, tolerance=1e-3)
    return known * local, known


def _shape(image: Tensor) -> Shape:
    x, y, z = image.shape
    return x, y, z
