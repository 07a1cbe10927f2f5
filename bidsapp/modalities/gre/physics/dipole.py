"""The field of a susceptibility distribution: the dipole convolution f = D χ.

In k-space, with the direction b of B0 along the voxel axes (Salomir et al., Concepts Magn Reson B
19:26, 2003; Marques & Bowtell, Concepts Magn Reson B 25:65, 2005),

    D(k) = 1/3 - (k·b)² / |k|²,    D(0) = 0,    k_i = n_i / (N_i Δ_i),

so that χ in ppm gives f in ppm of B0, with the Lorentz correction, up to a constant. Sampled on a
finite grid this is the field of sources that repeat beyond it: grids are enlarged by zeros. The
other kernel, of `green`, is the exact mean-free sum of uniformly magnetised voxels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bidsapp.physics.geometry import grid_axes
from bidsapp.physics.operators import LinearOperator, Padded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bidsapp.core import FloatArray

Shape = tuple[int, int, int]

#: An enlarged grid is longer by this factor along each axis: images of the sources in k-space then
#: lie at least half a field of view away.
ENLARGED = 1.5
_ALL = (-3, -2, -1)


def b0_direction(affine: FloatArray) -> np.ndarray:
    """(3,) unit vector of B0, world z, along the voxel axes of ``affine`` (4, 4): Rᵀ z.

    The axes are orthonormal (`grid_axes`); the sign of b does not matter to a dipole.
    """
    return np.asarray(grid_axes(affine).T @ [0.0, 0.0, 1.0])


def enlarged(shape: Sequence[int], factor: float = ENLARGED) -> Shape:
    """The next lengths that are ``factor`` times as long and quick to transform."""
    from scipy.fft import next_fast_len

    x, y, z = (next_fast_len(math.ceil(n * factor), real=True) for n in shape)
    return x, y, z


def frequencies(shape: Shape, voxel_mm: Sequence[float]) -> list[Tensor]:
    """Three axes of k in cycles a mm, float64, that broadcast to the whole grid of `torch.fft`."""
    axes = []
    for axis, (n, size) in enumerate(zip(shape, voxel_mm, strict=True)):
        k = torch.fft.fftfreq(n, d=float(size), dtype=torch.float64)
        axes.append(k.reshape([-1 if axis == other else 1 for other in range(3)]))
    return axes


def half(spectrum: Tensor) -> Tensor:
    """The real even part of a whole spectrum (X, Y, Z), in the layout of `torch.fft.rfftn`.

    A real kernel that is its own mirror image has just this. What is lost is odd in k: nothing but
    values at Nyquist's frequency of an even axis, which stands for +k and -k at once.
    """
    mirrored = spectrum.flip(_ALL).roll((1, 1, 1), _ALL)
    return ((spectrum + mirrored) / 2)[..., : spectrum.shape[-1] // 2 + 1].contiguous()


def kspace(shape: Shape, voxel_mm: Sequence[float], b: Sequence[float]) -> Tensor:
    """The dipole D(k) in the layout of `torch.fft.rfftn`, (X, Y, Z // 2 + 1) float64.

    ``shape`` is the grid's, enlarged already; ``voxel_mm`` (3,); ``b`` (3,), of any length but 0.
    """
    x, y, z = np.asarray(b, float) / np.linalg.norm(b)
    k = frequencies(shape, voxel_mm)
    k[2] = k[2][..., : shape[2] // 2 + 1]
    # Nyquist's frequency stands for +k and -k at once: D² of both signs of it, as by `half`.
    other = [torch.where(2 * one.abs() * size > 0.999, -one, one)
             for one, size in zip(k, voxel_mm, strict=True)]  # fmt: skip
    along, mirrored = (x * one[0] + y * one[1] + z * one[2] for one in (k, other))
    square = k[0] ** 2 + k[1] ** 2 + k[2] ** 2
    square[0, 0, 0] = 1
    dipole = 1 / 3 - (along**2 + mirrored**2) / (2 * square)
    dipole[0, 0, 0] = 0
    return dipole


def green(shape: Shape, voxel_mm: Sequence[float], b: Sequence[float]) -> Tensor:
    """The spectrum of the field of one uniformly magnetised voxel at the voxels' centres.

    With the demagnetising tensor N of a cuboid (Newell, Williams & Dunlop, J Geophys Res 98:9551,
    1993) the field is δ/3 - bᵀ N b. Linear convolution with it, on a ``shape`` of at least twice
    the sources' extent, has no images at all. Layout and arguments as of `kspace`.
    """
    x, y, z = (
        (torch.fft.fftfreq(n, 1 / n, dtype=torch.float64) * size).reshape(
            [-1 if axis == other else 1 for other in range(3)]
        )
        for axis, (n, size) in enumerate(zip(shape, voxel_mm, strict=True))
    )
    u = torch.as_tensor(np.asarray(b, float) / np.linalg.norm(b))
    demagnetising = torch.zeros(shape, dtype=torch.float64)
    for corner in range(8):
        signs = [1 if corner >> bit & 1 else -1 for bit in range(3)]
        p, q, s = (
            a + sign * size / 2
            for a, sign, size in zip((x, y, z), signs, map(float, voxel_mm), strict=True)
        )
        r = torch.sqrt(p**2 + q**2 + s**2)
        own = (
            u[0] ** 2 * torch.atan(q * s / (p * r))
            + u[1] ** 2 * torch.atan(p * s / (q * r))
            + u[2] ** 2 * torch.atan(p * q / (s * r))
        )
        cross = (
            u[0] * u[1] * _logarithm(s, r)
            + u[0] * u[2] * _logarithm(q, r)
            + u[1] * u[2] * _logarithm(p, r)
        )
        demagnetising += math.prod(signs) * (own - 2 * cross) / (4 * math.pi)
    field = -demagnetising
    field[0, 0, 0] += 1 / 3
    return half(torch.fft.fftn(field).real)


def _logarithm(along: Tensor, r: Tensor) -> Tensor:
    """log(a + r), which near -r is computed without cancellation up to terms that sum to none."""
    return torch.asinh(along / torch.sqrt((r**2 - along**2).clamp_min(1e-300)))


@dataclass(frozen=True, slots=True, eq=False)
class Convolution(LinearOperator):
    """Convolution of real images with a real kernel that is its own mirror image: self-adjoint.

    Domain and range: real (…, *``shape``). ``spectrum`` is that of the kernel, real, in the layout
    of `torch.fft.rfftn` on the grid ``padded``, on which the image stands amid zeros.
    """

    spectrum: Tensor
    shape: Shape
    padded: Shape

    def forward(self, x: Tensor) -> Tensor:
        """The kernel convolved with ``x``, cut to its grid."""
        frame = Padded(self.shape, self.padded)
        return frame.adjoint(convolved(frame(x), self.spectrum))

    def adjoint(self, y: Tensor) -> Tensor:
        """The same."""
        return self.forward(y)


def convolved(x: Tensor, spectrum: Tensor) -> Tensor:
    """Real ``x`` (…, X, Y, Z), circularly, with the kernel of that real spectrum (`rfftn`)."""
    transformed = torch.fft.rfftn(x, dim=_ALL) * spectrum.to(x)
    return torch.fft.irfftn(transformed, s=x.shape[-3:], dim=_ALL)


def dipole(
    shape: Sequence[int], voxel_mm: Sequence[float], b: Sequence[float], exact: bool = False
) -> Convolution:
    """D as an operator on images of ``shape``: χ in ppm → field in ppm of B0.

    By `kspace` on a grid half as large again, or ``exact``, by `green` on one twice as large.
    """
    x, y, z = (int(n) for n in shape)
    padded = enlarged((x, y, z), 2.0 if exact else ENLARGED)
    kernel: Any = green if exact else kspace
    return Convolution(kernel(padded, voxel_mm, b), (x, y, z), padded)
