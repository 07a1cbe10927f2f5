"""From a field to susceptibility: closed forms, total variation, the data-consistent step.

All work on one grid, in its whole spectrum; who calls them enlarges it (`dipole.enlarged`). Fields
and χ are in ppm, (X, Y, Z) tensors; ``transfer`` is a real spectrum in the layout of
`torch.fft.rfftn`: the dipole D for a local field, S D for a total field behind the spherical-mean
filter S (Chatnuntawech et al., NMR Biomed 30:e3570, 2017), so that nothing is deconvolved twice. χ
is known up to a constant, which is left where the method leaves it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from bidsapp.modalities.gre.physics.dipole import convolved

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

#: |D| below which truncated division divides no further.
TRUNCATION = 0.15
#: Largest step of χ, ppm per mm, that one iteration of total variation smooths away: the splitting
#: weight is λ over this. It sets the pace and not the solution.
PACE = 0.002
#: Over-relaxation of total variation, between 1 (none) and 2: as near after half the iterations.
RELAXED = 1.8
#: Total variation has converged where an iteration changes χ by less than this share of it.
CONVERGED = 0.002
#: Of total variation: λ over the field's noise times a voxel's edge, for a local field and behind
#: the spherical-mean filter, which leaves less of the field. Measured on one simulated head of 2
#: and 3 mm at noise of 0.6 to 2.4 ppb, behind the filter at 3 mm and 0.7 ppb only.
OF_NOISE, BEHIND_FILTER = 0.08, 0.025


def truncated_division(field: Tensor, transfer: Tensor, threshold: float = TRUNCATION) -> Tensor:
    """Thresholded k-space division (Shmueli et al., MRM 62:1510, 2009).

    χ(k) = f(k) / D(k), and with |D| raised to ``threshold`` where it is below.
    """
    sign = torch.where(transfer < 0, -1.0, 1.0)
    return convolved(field, sign / transfer.abs().clamp_min(threshold))


def tikhonov(field: Tensor, transfer: Tensor, strength: float | Tensor) -> Tensor:
    """argmin ‖D χ - f‖² + ‖√strength χ‖², in closed form: χ(k) = D f / (D² + strength).

    ``strength`` is λ, or a spectrum like ``transfer``: λ |G|² (`gradient_power`) smooths instead.
    (Bilgic et al., JMRI 40:181, 2014.)
    """
    power = transfer**2 + strength
    return convolved(field, torch.where(power > 0, transfer / power.clamp_min(1e-30), 0.0))


def consistent(
    chi: Tensor, field: Tensor, transfer: Tensor, mask: Tensor, strength: float | Tensor
) -> Tensor:
    """A step of χ towards the measured field: χ + F⁻¹[D / (D² + λ) F(M (f - D χ))].

    It changes what the data know and leaves what they do not, at the magic angle, as it is.
    ``mask`` (X, Y, Z), 0 to 1, is where ``field`` is known.
    """
    left = mask * (field - convolved(chi, transfer))
    return chi + tikhonov(left, transfer, strength)


def gradient(x: Tensor, voxel_mm: Sequence[float]) -> Tensor:
    """(3, X, Y, Z) forward differences per mm, around the grid's end."""
    steps = [x.roll(-1, axis) - x for axis in (-3, -2, -1)]
    return torch.stack([step / float(size) for step, size in zip(steps, voxel_mm, strict=True)])


def divergence(y: Tensor, voxel_mm: Sequence[float]) -> Tensor:
    """The negative adjoint of `gradient`: (3, X, Y, Z) → (X, Y, Z)."""
    steps = [part - part.roll(1, axis) for part, axis in zip(y, (-3, -2, -1), strict=True)]
    total = steps[0] / float(voxel_mm[0])
    for step, size in zip(steps[1:], voxel_mm[1:], strict=True):
        total = total + step / float(size)
    return total


def gradient_power(shape: Sequence[int], voxel_mm: Sequence[float]) -> Tensor:
    """|G|² = Σ |1 - exp(2πi k Δ)|² / Δ², the spectrum of -div grad, in the layout of `rfftn`."""
    total = torch.zeros((), dtype=torch.float64)
    for axis, (n, size) in enumerate(zip(shape, voxel_mm, strict=True)):
        turn = torch.fft.fftfreq(n, dtype=torch.float64) * 2 * torch.pi
        own = (2 - 2 * torch.cos(turn)) / float(size) ** 2
        total = total + own.reshape([-1 if axis == other else 1 for other in range(3)])
    return total[..., : shape[-1] // 2 + 1]


def strength_for(noise: float, voxel_mm: Sequence[float], behind_filter: bool = False) -> float:
    """λ of total variation, ppm mm, for a field whose noise is ``noise`` ppm where weights are 1.

    Proportional to the noise, as the threshold of any sparse estimate is, and to the mean edge of a
    voxel, since gradients are per mm. What a background filter leaves is no noise: it is smooth,
    and counted as noise would take the contrast away.
    """
    edge = math.prod(float(size) for size in voxel_mm) ** (1 / 3)
    return (BEHIND_FILTER if behind_filter else OF_NOISE) * noise * edge


@dataclass(frozen=True, slots=True, eq=False)
class Inverse:
    """What a minimisation found."""

    chi: Tensor  #: (X, Y, Z) ppm
    iterations: int
    change: float  #: ‖χ - χ before‖ / ‖χ‖ of the last iteration


def total_variation(
    field: Tensor,
    transfer: Tensor,
    weights: Tensor,
    voxel_mm: Sequence[float],
    strength: float,
    *,
    iterations: int = 100,
    tolerance: float = CONVERGED,
    start: Tensor | None = None,
) -> Inverse:
    """argmin ½ ‖W (D χ - f)‖² + λ Σ |∇χ| by ADMM, |∇χ| isotropic and per mm.

    ``weights`` W (X, Y, Z) are 0 where the field is not known and about 1 where it is. Both terms
    are split, v = ∇χ and g = D χ, so that every step has a closed form although W is no filter
    (Milovic et al., MRM 80:814, 2018):

        χ ← (μ GᴴG + DᴴD)⁻¹ (μ Gᴴ(v - s) + Dᴴ(g - t))
        v ← shrink(∇χ + s, λ/μ),    g ← (W² f + Dχ + t) / (W² + 1)

    with s and t what is still asked for, and ∇χ and Dχ over-relaxed in the second line (Eckstein &
    Bertsekas, Math Program 55:293, 1992). ``strength`` is λ in ppm mm; ``start`` is where χ begins,
    such as Tikhonov's map. At most ``iterations``, fewer once χ changes by less than ``tolerance``
    of itself.
    """
    mu = strength / PACE
    d = transfer.to(field)
    power = mu * gradient_power(field.shape, voxel_mm).to(field) + d**2
    inverse = torch.where(power > 0, 1 / power.clamp_min(1e-30), 0.0)
    square = weights.to(field) ** 2
    known, share = square * field, 1 / (square + 1)
    axes = (-3, -2, -1)
    chi = torch.zeros_like(field) if start is None else start

    def split(s: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """v and g of what is asked for, and what then still is."""
        length = s.square().sum(0).sqrt()
        v = s * (1 - PACE / length.clamp_min(1e-12)).clamp_min(0)
        g = (known + t) * share
        return v, s - v, g, t - g

    v, s, g, t = split(gradient(chi, voxel_mm), convolved(chi, d))
    done, change = 0, 1.0
    while done < iterations and change > tolerance:
        right = torch.fft.rfftn(g - t, dim=axes) * d
        right -= mu * torch.fft.rfftn(divergence(v - s, voxel_mm), dim=axes)
        spectrum = right * inverse
        before, chi = chi, torch.fft.irfftn(spectrum, s=field.shape, dim=axes)
        predicted = torch.fft.irfftn(spectrum * d, s=field.shape, dim=axes)
        v, s, g, t = split(
            s + v.lerp_(gradient(chi, voxel_mm), RELAXED), t + g.lerp_(predicted, RELAXED)
        )
        change = float((chi - before).norm() / chi.norm().clamp_min(1e-12))
        done += 1
    return Inverse(chi, done, change)
