"""Reconstruction of an image x (…, X, Y) from measured k-space y (…, C, X, Y) and coil maps.

y_c = M F S_c x + n with the mask M, the centred orthonormal transform F over ``axes``, and maps S
whose squares sum to 1: |A| ≤ 1. In hybrid space ``axes`` is phase encoding alone. Every solve here
is batched; σ, of `strength`, is that of y.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bidsapp.modalities.kspace.physics.fourier import BOTH, PHASE, READOUT
from bidsapp.physics.operators import Diagonal, Fourier, LinearOperator, RealToComplex, Repeated
from bidsapp.physics.solvers import conjugate_gradient

if TYPE_CHECKING:
    from collections.abc import Sequence

#: ‖∇‖² of differences along two axes is at most 8: step lengths of `total_variation`, which
#: satisfy 1 / PRIMAL - 8 DUAL ≥ ‖A‖² / 2 (Condat, JOTA 158:460, 2013).
PRIMAL, DUAL = 1.0, 1 / 16
#: Scaling filter of the orthonormal wavelet with two vanishing moments (Daubechies, CPAM 41:909,
#: 1988), times 4 √2: 1 + √3, 3 + √3, 3 - √3, 1 - √3.
DAUBECHIES = tuple(
    (one + sign * 3**0.5) / 32**0.5 for one, sign in ((1, 1), (3, 1), (3, -1), (1, -1))
)
LEVELS = 4
#: λ over σ, of total variation and wavelets, and of `cg_sense`, there over `brightness` as well.
#: Medians of three simulated heads, 8 coils, R = 2 and 4, noise 0.5 and 2 %: of 0.1, 0.2, 0.4, 0.8
#: and 1.6 these are within 0.5 dB of the best, but total variation and wavelets at R = 4 and 0.5 %,
#: where errors of the maps ask for four times as much (1.6 dB).
OF_NOISE, OF_NOISE_LINEAR = 0.4, 0.8
#: Steps of the linear solve, and of total variation and wavelets.
LINEAR_STEPS, STEPS = 30, 60
#: Of an image's magnitudes, what is as bright as it gets.
QUANTILE = 0.99


def sense(maps: Tensor, mask: Tensor, fourier: Fourier = BOTH) -> LinearOperator:
    """A: image (…, X, Y) → coils (…, C, X, Y), zero where ``mask`` is.

    ``maps`` (…, C, X, Y); ``mask`` broadcasts to them. ``fourier`` is `BOTH`, or `ALONG_PHASE` for
    y in hybrid space.
    """
    coils = Diagonal(maps) @ Repeated(maps.shape[-3], axis=-3)
    return Diagonal(mask) @ fourier @ coils


def holding(operator: LinearOperator, phase: Tensor) -> LinearOperator:
    """A on real images, that ``phase`` (…, X, Y), of modulus 1, is put on: half the unknowns.

    Least squares on it are what virtual conjugate coils solve (Blaimer et al., MRM 61:93, 2009)
    and, with one coil, what projections onto convex sets (Haacke et al., J Magn Reson 92:126, 1991)
    come to.
    """
    return operator @ Diagonal(phase) @ RealToComplex()


def brightness(image: Tensor) -> Tensor:
    """(…, 1, 1) the 99th percentile of |image| (…, X, Y), and not 0."""
    size = torch.quantile(image.abs().flatten(-2), QUANTILE, dim=-1)
    return size.clamp_min(1e-30)[..., None, None]


def classical(operator: LinearOperator, y: Tensor, sigma: float, axes: int) -> dict[str, Tensor]:
    """Images by every method that needs no training, by name, for noise of ``sigma`` in ``y``.

    ``axes`` as for `cg_sense`, from which the other two start.
    """
    found = smooth(operator, y, sigma, axes)
    return {**found, 'wavelet': l1_wavelet(operator, y, OF_NOISE * sigma, found['sense'])}


def smooth(operator: LinearOperator, y: Tensor, sigma: float, axes: int) -> dict[str, Tensor]:
    """Those of `classical` that total variation rests on, and itself."""
    back = operator.adjoint(y)
    linear = cg_sense(operator, y, OF_NOISE_LINEAR * sigma / brightness(back), axes)
    tv = total_variation(operator, y, OF_NOISE * sigma, linear)
    return {'zerofilled': back, 'sense': linear, 'tv': tv}


def cg_sense(
    operator: LinearOperator,
    y: Tensor,
    strength: float | Tensor,
    axes: int,
    steps: int = LINEAR_STEPS,
) -> Tensor:
    """argmin ‖A x - y‖² + λ ‖x‖² (Pruessmann et al., MRM 46:638, 2001).

    ``axes`` is how many of the last axes A joins: 1 in hybrid space, where every column is a system
    of its own with its own steps, and so none depends on which others are there.
    """
    right = operator.adjoint(y)
    return conjugate_gradient(
        lambda x: operator.gram(x) + strength * x,
        right, steps=steps, tolerance=1e-5, batch_dims=right.ndim - axes,
    )  # fmt: skip


def gradient(x: Tensor) -> Tensor:
    """(2, …, X, Y) forward differences along readout and phase encoding, around the end."""
    return torch.stack([x.roll(-1, axis) - x for axis in (READOUT, PHASE)])


def divergence(p: Tensor) -> Tensor:
    """Minus the adjoint of `gradient`."""
    along, across = p.unbind(0)
    return along - along.roll(1, READOUT) + across - across.roll(1, PHASE)


def total_variation(
    operator: LinearOperator, y: Tensor, strength: float | Tensor, start: Tensor, steps: int = STEPS
) -> Tensor:
    """argmin ½ ‖A x - y‖² + λ Σ |∇x|, |∇x| over both axes and both parts of x; ‖A‖ ≤ 1.

    Primal-dual steps (Condat, 2013). ``strength``, a number or one an image, (…, 1, 1), is of the
    units of y.
    """
    x, p = start, torch.zeros_like(gradient(start))
    back = operator.adjoint(y)
    limit = torch.as_tensor(strength, device=x.device).clamp_min(1e-30)
    for _ in range(steps):
        before = x
        x = x - PRIMAL * (operator.gram(x) - back - divergence(p))
        p = p + DUAL * gradient(2 * x - before)
        p = p / (torch.linalg.vector_norm(p, dim=0) / limit).clamp_min(1)
    return x


def wavelet_matrix(n: int) -> Tensor:
    """(n, n) orthonormal: one level of the wavelet along a circle of ``n``, averages first.

    Of an odd number of samples the last is its own average.
    """
    matrix = torch.zeros(n, n)
    half, even = n - n // 2, n - n % 2
    if even != n:
        matrix[half - 1, n - 1] = 1
    for k, low in enumerate(DAUBECHIES):
        high = (-1) ** k * DAUBECHIES[3 - k]
        for i in range(even // 2):
            matrix[i, (2 * i + k) % even] += low
            matrix[half + i, (2 * i + k) % even] += high
    return matrix


@dataclass(frozen=True, slots=True, eq=False)
class Wavelet(LinearOperator):
    """Coefficients of the last two axes, unitary for any size, averages in the first corner."""

    matrices: Sequence[tuple[Tensor, Tensor]]  #: of the two axes, level by level

    @classmethod
    def of(cls, shape: tuple[int, int], levels: int = LEVELS) -> Wavelet:
        """For images (X, Y); as many levels as leave four samples along each axis."""
        found = []
        for _ in range(levels):
            if min(shape) < 4:
                break
            found.append((wavelet_matrix(shape[0]), wavelet_matrix(shape[1])))
            shape = (shape[0] - shape[0] // 2, shape[1] - shape[1] // 2)
        return cls(found)

    def forward(self, x: Tensor) -> Tensor:
        """Image → coefficients."""
        x = x.clone()
        for rows, columns in self.matrices:
            n, m = len(rows), len(columns)
            x[..., :n, :m] = rows.to(x) @ x[..., :n, :m] @ columns.T.to(x)
        return x

    def adjoint(self, y: Tensor) -> Tensor:
        """Coefficients → image; it is the inverse."""
        y = y.clone()
        for rows, columns in reversed(self.matrices):
            n, m = len(rows), len(columns)
            y[..., :n, :m] = rows.T.to(y) @ y[..., :n, :m] @ columns.to(y)
        return y


def l1_wavelet(
    operator: LinearOperator, y: Tensor, strength: float | Tensor, start: Tensor, steps: int = STEPS
) -> Tensor:
    """argmin ½ ‖A x - y‖² + λ ‖W x‖₁ by FISTA (Beck & Teboulle, SIAM J Imaging Sci 2:183, 2009).

    The grid of the wavelet is shifted from step to step (Figueiredo & Nowak, IEEE TIP 12:906,
    2003), so that its blocks do not show. Averages are not shrunk.
    """
    wavelet = Wavelet.of((start.shape[-2], start.shape[-1]))
    rows, columns = wavelet.matrices[-1]
    averages = (..., slice(len(rows) - len(rows) // 2), slice(len(columns) - len(columns) // 2))
    x, ahead, t = start, start, 1.0
    for step in range(steps):
        moved = ahead - operator.adjoint(operator(ahead) - y)
        shift = (5 * step % 2**LEVELS, 3 * step % 2**LEVELS)
        coefficients = wavelet(moved.roll(shift, (READOUT, PHASE)))
        kept = coefficients[averages].clone()
        size = coefficients.abs()
        coefficients = coefficients * ((size - strength).clamp_min(0) / size.clamp_min(1e-30))
        coefficients[averages] = kept
        before = x
        x = wavelet.H(coefficients).roll((-shift[0], -shift[1]), (READOUT, PHASE))
        t_before, t = t, (1 + (1 + 4 * t * t) ** 0.5) / 2
        ahead = x + (t_before - 1) / t * (x - before)
    return x


def noise_map(
    operator: LinearOperator,
    shape: Sequence[int],
    strength: float,
    axes: int,
    generator: torch.Generator,
    replicas: int = 32,
) -> Tensor:
    """(X, Y) standard deviation of `cg_sense`, for y (C, X, Y) of σ = 1: its noise amplification.

    By replicas (Robson et al., MRM 60:895, 2008), of all of which the deviation is known to
    1 / √(2 · replicas). An image over σ times it is in units of SNR, and it is √R g, with g the
    geometry factor, where all of k-space would give 1.
    """
    total = torch.zeros(())
    for _ in range(replicas):
        noise = torch.randn(tuple(shape), dtype=torch.complex64, generator=generator)
        total = total + cg_sense(operator, noise, strength, axes).abs().square()
    return (total / replicas).sqrt()
