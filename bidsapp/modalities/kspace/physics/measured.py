"""Samples of a slice or slab in their place, and what is known of their noise."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bidsapp.modalities.kspace.physics.fourier import ALONG_READOUT, hybrid, middle
from bidsapp.modalities.kspace.physics.sampling import about_origin, middle_block

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Share of measured samples, the furthest from the origin, that show the noise.
OUTER = 0.05
#: Samples by which the most energy may lie beside the origin that a header names.
BESIDE = 2


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """Cartesian k-space, origin at n // 2, of one slice (Z is 1) or slab.

    Lines of several averages are their mean, and count by `weights`, which stand in ``kspace``
    already: y = W (F S x) + n with one σ for all samples, and |W| ≤ 1.
    """

    kspace: Tensor  #: (C, X, Y, Z) complex64, 0 where nothing was measured
    weights: Tensor  #: (1, Y, Z), or (X, Y, Z) where readouts are not whole
    calibration: Tensor  #: (C, x, y, z), the block about the origin that makes maps
    sigma: float  #: E |n|² = σ²
    steps: dict[str, str] = field(default_factory=dict)  #: what was done, or why not
    warnings: tuple[str, ...] = ()

    @property
    def whole_readouts(self) -> bool:
        """Whether lines are measured whole or not at all, so that hybrid space is exact."""
        return len(self.weights) == 1


def without_oversampling(kspace: Tensor, n: int) -> Tensor:
    """K-space (…, X, Y) of whole readouts → (…, n, Y) of the ``n`` voxels in the middle.

    An orthonormal transform of part of an orthonormal transform: noise keeps its σ.
    """
    if n == kspace.shape[-2]:
        return kspace
    return ALONG_READOUT(middle(hybrid(kspace), n, -2))


def averaged(total: Tensor, count: Tensor) -> tuple[Tensor, Tensor, float]:
    """Weighted k-space, weights and the factor of σ, of sums over ``count`` measurements each.

    A mean of n has the noise σ / √n, and so the weight √(n / most).
    """
    most = max(float(count.max()), 1.0)
    weighted = total / (count.clamp_min(1) * most).sqrt()
    return weighted, (count / most).sqrt(), most**-0.5


def undersampled(whole: Measured, mask: Tensor) -> Measured:
    """What is left of a scan where ``mask`` (1, Y, Z) or (X, Y, Z) is 1, maps' samples among it.

    σ stays what all of the scan told.
    """
    kspace, weights = whole.kspace * mask, whole.weights * mask
    steps = {**whole.steps, 'Calibration': 'lines of the image that were kept'}
    return replace(
        whole, kspace=kspace, weights=weights, calibration=block_about_origin(kspace, weights),
        steps=steps,
    )  # fmt: skip


def corner_noise(kspace: Tensor, weights: Tensor) -> float:
    """σ from the samples (C, X, Y, Z) that are furthest from the origin, by their median.

    Of complex noise |n|² has the median σ² ln 2. What signal is left there counts as noise.
    """
    extents = [torch.arange(n, dtype=torch.float32) - n // 2 for n in kspace.shape[1:]]
    radius = torch.zeros(kspace.shape[1:])
    for axis, where in enumerate(extents):
        share = (where / where.abs().max().clamp_min(1)).square()
        radius = radius + share.reshape([-1 if axis == other else 1 for other in range(3)])
    known = (weights > 0).expand(radius.shape)
    far = torch.quantile(radius[known][: 2**24], 1 - OUTER)
    outer = kspace[:, known & (radius >= far)]
    return math.sqrt(float(outer.abs().square().median()) / math.log(2))


def block_about_origin(kspace: Tensor, weights: Tensor) -> Tensor:
    """(C, x, y, z) the part of k-space (C, X, Y, Z) that is measured whole, the origin amid it.

    Partial Fourier and asymmetric echoes are cut to the side that is shorter.
    """
    if len(weights) > 1:  # readouts end early: rectangles along readout and phase encoding
        rows, columns = centred_block(weights.amax(2))
        return kspace[:, rows, columns]
    plane = weights[0]
    if plane.shape[1] == 1:
        return kspace[:, :, centred_block(plane[:, 0])[0]]
    rows, columns = centred_block(plane)
    return kspace[:, :, rows, columns]


def centred_block(mask: Tensor) -> list[slice]:
    """`middle_block` of (Y,) or (X, Y), with the origin at n // 2 of what is left."""
    blocks = zip(middle_block(mask), mask.shape, strict=True)
    return [about_origin(block, n) for block, n in blocks]


def beside_origin(kspace: Tensor, weights: Tensor, names: Sequence[str]) -> list[str]:
    """Warnings where the most energy of (C, X, Y, Z) is far from the origin, by axis."""
    energy = kspace.abs().square().sum(0)
    found = []
    for axis, name in enumerate(names):
        others = tuple(other for other in range(3) if other != axis)
        along = energy.sum(others)
        n = len(along)
        most = int(along.argmax())
        if abs(most - n // 2) > BESIDE and along[most] > 2 * along[n // 2]:
            found.append(
                f'most energy along {name} is at sample {most} of {n}, and not at {n // 2}, where '
                'the header has the centre of k-space'
            )
    return found
