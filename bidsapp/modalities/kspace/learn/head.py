"""What is learnt of reconstruction: the complex image that all of k-space would have given.

Output and target are (2, X, Y, Z), real and imaginary part of slices side by side, on the grid of
the input and in its units: the target is Σ_c conj(S_c) Fᴴ y_c of the full k-space y, combined by
the maps S of the input, so that a network which is shown all of k-space has nothing to add. Neither
is divided by anything; loss and metrics do not change where both are multiplied alike.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from bidsapp.core import Head
from bidsapp.modalities.kspace.learn.input import rephased
from bidsapp.modalities.kspace.physics.agreement import agreement, foreground, similarity
from bidsapp.modalities.kspace.physics.sense import brightness

if TYPE_CHECKING:
    from torch import Tensor

    from bidsapp.core import Sample, Turn

#: Weight of 1 - SSIM beside the two absolute errors.
STRUCTURE = 0.1
#: As it is, and mirrored along readout, along phase encoding, and both. Mirroring an image mirrors
#: its k-space; a turn by 90 degrees would lay phase encoding along readout.
MIRRORS: tuple[Turn, ...] = tuple(
    ((x, 0, 0), (0, y, 0), (0, 0, 1)) for x in (1, -1) for y in (1, -1)
)


def slices_of(channels: Tensor) -> Tensor:
    """(…, 2, X, Y, Z) → complex slices (…, Z, X, Y)."""
    return torch.view_as_complex(channels.movedim(-4, -1).contiguous()).movedim(-1, -3)


def magnitude(x: Tensor) -> Tensor:
    """|x|, with a gradient at 0."""
    return (x.real.square() + x.imag.square() + 1e-30).sqrt()


def loss(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean absolute errors of image and magnitude, and 1 - SSIM on the object, (B, 2, X, Y, Z).

    ``mask`` (B, 1, X, Y, Z): what lies at the edge of a crop does not count. Errors are over the
    brightness of the target.
    """
    found, truth = slices_of(prediction), slices_of(target)
    unit = brightness(truth)
    found, truth = found / unit, truth / unit
    inside = mask[:, 0].movedim(-1, 1)
    a, b = magnitude(found), magnitude(truth)
    errors = magnitude(found - truth) + (a - b).abs()
    unlike = 1 - similarity(a, b, b.amax((-2, -1), keepdim=True))
    return _mean(errors, inside) + STRUCTURE * _mean(unlike, inside & foreground(truth))


def _mean(values: Tensor, where: Tensor) -> Tensor:
    return (values * where).sum() / where.sum().clamp_min(1)


def metrics(output: Tensor, sample: Sample) -> list[tuple[str, str, float]]:
    """Means over slices of how alike magnitudes are, each slice on its own object."""
    if sample.target is None:
        raise ValueError('metrics need a labelled sample')
    found, truth = (slices_of(x).abs() for x in (output, sample.target))
    where = foreground(truth) & sample.mask[0].movedim(-1, 0)
    rows = [agreement(*one) for one in zip(found, truth, where, strict=True)]
    return [
        (name, 'all', float(torch.tensor([row[name] for row in rows]).nanmean()))
        for name in rows[0]
    ]


HEAD = Head(
    channels=2,
    targets=2,
    loss=loss,
    metrics=metrics,
    score='nrmse',
    higher_is_better=False,
    words={
        'psnr': 'peak signal over root mean square error on the object, dB',
        'ssim': 'structural similarity, 7 x 7, on the object',
        'nrmse': "root mean square error on the object over the reference's, per cent",
        'hfen': 'the same of edges (Laplacian of a Gaussian of 1.5 voxels), per cent',
        'central_line': 'the same along the central line across phase encoding, per cent',
        'scale': 'factor by which images were multiplied before they were compared',
    },
    turns=MIRRORS,
    augment=rephased,
)
