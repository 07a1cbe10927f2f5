"""What is learnt of susceptibility: χ up to a constant, and how far it may be off."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bidsapp.core import Head
from bidsapp.modalities.gre.physics import agreement

if TYPE_CHECKING:
    from torch import Tensor

    from bidsapp.core import Sample

#: Natural logarithms of ppm between which a standard deviation is believed.
LOG_SD = (-9.0, 0.5)


def deviations(log_sd: Tensor) -> Tensor:
    """What a network says of its error, as logarithms → standard deviations in ppm."""
    return log_sd.clamp(*LOG_SD).exp()


def loss(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Negative log-likelihood of χ less its mean in ``mask``; (B, 2, …) χ and log σ, (B, 1, …)."""
    chi, log_sd = prediction.split(1, 1)
    error = (chi - target) * mask
    axes = (1, 2, 3, 4)
    error = error - error.sum(axes, keepdim=True) / mask.sum(axes, keepdim=True).clamp_min(1)
    nll = 0.5 * (error / deviations(log_sd)).square() + log_sd.clamp(*LOG_SD)
    return nll[mask].mean()


def metrics(output: Tensor, sample: Sample) -> list[tuple[str, str, float]]:
    """NRMSE, XSIM and slope of χ in the mask."""
    if sample.target is None:
        raise ValueError('metrics need a labelled sample')
    chi, truth, mask = (x[0].numpy() for x in (output, sample.target, sample.mask))
    names = ('nrmse', 'xsim', 'slope')
    return [(name, 'all', getattr(agreement, name)(chi, truth, mask)) for name in names]


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
    },
)
