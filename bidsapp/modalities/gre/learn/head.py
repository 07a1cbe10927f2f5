"""What is learnt of susceptibility: χ up to a constant, and how far it may be off."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional as F

from bidsapp.core import Head
from bidsapp.modalities.gre.physics import agreement
from bidsapp.modalities.gre.physics.agreement import WINDOW, nrmse, slope, xsim
from bidsapp.modalities.gre.physics.seen import CHANNELS
from bidsapp.physics.geometry import ALL_TURNS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from bidsapp.core import Sample

#: Natural logarithms of ppm between which a standard deviation is believed.
LOG_SD = (-9.0, 0.5)
#: The channel of what is seen that tells where the field is known.
KNOWN = CHANNELS.index('known')
#: ppm below which the contrast of a block is not counted any higher; weights, beside the relative
#: error, of 1 - XSIM and of what is said of the error.
LEAST_CONTRAST, OF_XSIM, OF_SD = 1e-3, 0.5, 0.1
#: Share of a normal distribution within one standard deviation.
WITHIN = 0.6827
#: Powers of a stated deviation among which the calibrated one is looked for.
POWERS = np.linspace(0.4, 1.6, 25)


def deviations(log_sd: Tensor) -> Tensor:
    """What a network says of its error, as logarithms → standard deviations in ppm."""
    return log_sd.clamp(*LOG_SD).exp()


def errors(chi: Tensor, truth: Tensor, mask: Tensor) -> Tensor:
    """χ less ``truth``, (B, 1, X, Y, Z) each, without its mean in ``mask``; 0 outside."""
    error = (chi - truth) * mask
    count = mask.sum((1, 2, 3, 4), keepdim=True).clamp_min(1)
    return (error - error.sum((1, 2, 3, 4), keepdim=True) / count) * mask


def loss(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean absolute error of χ over that of a map of nothing, 1 - XSIM, and how unlikely log σ is.

    So a block of little contrast counts as much as another, a calcification does not decide, and
    contrast is not given up where it is hard to tell, as the absolute error alone would have it.
    What is said of the error follows the error and does not pull at χ.
    """
    chi, log_sd = prediction.split(1, 1)
    axes, count = (1, 2, 3, 4), mask.sum((1, 2, 3, 4)).clamp_min(1)
    error = errors(chi, target, mask)
    nothing = errors(torch.zeros_like(target), target, mask).abs().sum(axes) / count
    relative = error.abs().sum(axes) / count / nothing.clamp_min(LEAST_CONTRAST)
    ratio = error.detach() / deviations(log_sd)
    unlikely = (0.5 * ratio.square() + log_sd.clamp(*LOG_SD)) * mask
    unlike = (1 - likeness(chi, target, mask)) * mask
    return (
        relative + OF_XSIM * unlike.sum(axes) / count + OF_SD * unlikely.sum(axes) / count
    ).mean()


def likeness(chi: Tensor, truth: Tensor, mask: Tensor) -> Tensor:
    """XSIM at each voxel of two maps in ppm, (B, 1, X, Y, Z) each: `physics.agreement.xsim`."""
    a, b = (-errors(torch.zeros_like(x), x, mask) for x in (chi.float(), truth))
    alike: Tensor = agreement.likeness(a, b, box_mean)
    return alike


def box_mean(x: Tensor) -> Tensor:
    """Means of (B, 1, X, Y, Z) over windows of 5³ voxels, amid zeros."""
    for axis in range(3):
        window = [WINDOW if i == axis else 1 for i in range(3)]
        margin = [WINDOW // 2 if i == axis else 0 for i in range(3)]
        x = F.avg_pool3d(x, window, 1, margin)
    return x


def metrics(output: Tensor, sample: Sample) -> list[tuple[str, str, float]]:
    """NRMSE, XSIM and slope of χ, and the share of errors within what is stated.

    In the mask where the field is known: beyond, behind a filter's ball, all is a guess.
    """
    if sample.target is None:
        raise ValueError('metrics need a labelled sample')
    where = sample.mask & (sample.image[KNOWN : KNOWN + 1] > 0)
    where = where if where.any() else sample.mask
    chi, truth, mask = (x[0].numpy() for x in (output, sample.target, where))
    error = errors(output[None, :1], sample.target[None], where[None])[0, 0]
    within = (error.abs() <= deviations(output[1]))[where[0]]
    return [
        ('nrmse', 'all', nrmse(chi, truth, mask)),
        ('xsim', 'all', xsim(chi, truth, mask)),
        ('slope', 'all', slope(chi, truth, mask)),
        ('within_one_sd', 'all', float(within.float().mean())),
    ]


def calibrate(outputs: Sequence[Tensor], samples: Sequence[Sample]) -> Tensor:
    """(2, 2) factors and shifts: of χ none; of log σ those by which 68 % lie within one.

    In each third of what is stated the logarithm has to be raised by some number for that; the
    factor makes the three as alike as can be, and the shift is their mean.
    """
    found = []
    for output, sample in zip(outputs, samples, strict=True):
        assert sample.target is not None
        inside = sample.mask[0]
        error = errors(output[None, :1], sample.target[None], sample.mask[None])[0, 0]
        found.append(torch.stack([error.abs().clamp_min(1e-7).log(), output[1]])[:, inside])
    error, stated = torch.cat(found, 1).double().numpy()
    thirds = np.array_split(np.argsort(stated, kind='stable'), 3)

    def needed(power: float) -> np.ndarray:
        return np.array([np.quantile(error[at] - power * stated[at], WITHIN) for at in thirds])

    best = min(POWERS, key=lambda power: float(needed(power).std()))
    return torch.tensor([[1.0, best], [0.0, float(needed(best).mean())]])


HEAD = Head(
    channels=2,
    targets=1,
    loss=loss,
    metrics=metrics,
    score='nrmse',
    higher_is_better=False,
    words={
        'nrmse': 'root mean square error of susceptibility over its spread, per cent',
        'xsim': 'structural similarity of susceptibility in ppm (XSIM)',
        'slope': 'of the regression line on the reference: 1 where contrast is kept',
        'within_one_sd': 'share of errors within one stated standard deviation; 0.68 is right',
    },
    turns=ALL_TURNS,
    calibrate=calibrate,
)
