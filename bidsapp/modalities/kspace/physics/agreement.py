"""How alike an image is to the one of a full scan: PSNR, SSIM, NRMSE, HFEN, the central line.

Magnitudes of one slice each, (X, Y); what they are judged in is where the full scan has an object,
for air is easy. An image is first multiplied by the factor that brings it closest.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from bidsapp.modalities.kspace.physics.sense import brightness

#: Samples across a window of SSIM, and its constants over the range of values (Wang et al., IEEE
#: TIP 13:600, 2004).
WINDOW, MEAN_SHARE, SPREAD_SHARE = 7, 0.01, 0.03
#: Voxels: width and half size of the filter of HFEN (Ravishankar & Bresler, IEEE TMI 30:1028,
#: 2011).
SIGMA, REACH = 1.5, 7
#: Share of what is as bright as it gets from which a neighbourhood counts as object.
OBJECT = 0.1


def foreground(truth: Tensor) -> Tensor:
    """(…, X, Y) bool: where the mean of |truth| over a window is a tenth of its brightness."""
    size = truth.abs()
    return means(size) > OBJECT * brightness(size)


def means(x: Tensor) -> Tensor:
    """(…, X, Y) → the mean over the window around each place, of what lies in the image."""
    flat = x.reshape(-1, 1, *x.shape[-2:])
    found = F.avg_pool2d(flat, WINDOW, 1, WINDOW // 2, count_include_pad=False)
    return found.reshape(x.shape)


def similarity(found: Tensor, truth: Tensor, span: Tensor) -> Tensor:
    """(…, X, Y) structural similarity of magnitudes at each place; ``span`` (…, 1, 1) of values."""
    a, b = means(found), means(truth)
    unbiased = WINDOW**2 / (WINDOW**2 - 1)
    spread_a = unbiased * (means(found * found) - a * a)
    spread_b = unbiased * (means(truth * truth) - b * b)
    both = unbiased * (means(found * truth) - a * b)
    c, d = (MEAN_SHARE * span) ** 2, (SPREAD_SHARE * span) ** 2
    alike = (2 * a * b + c) * (2 * both + d)
    return alike / ((a * a + b * b + c) * (spread_a + spread_b + d))


def scaling(found: Tensor, truth: Tensor, where: Tensor) -> float:
    """By what ``found`` is multiplied to come closest to ``truth`` in ``where``."""
    a, b = found[where], truth[where]
    return float((a * b).sum() / (a * a).sum().clamp_min(1e-30))


def edges(x: Tensor) -> Tensor:
    """(X, Y) → its Laplacian, smoothed by a Gaussian of `SIGMA` voxels."""
    place = torch.arange(-REACH, REACH + 1, dtype=x.dtype, device=x.device)
    squared = place[:, None] ** 2 + place**2
    gaussian = torch.exp(-squared / (2 * SIGMA**2))
    kernel = gaussian / gaussian.sum() * (squared - 2 * SIGMA**2) / SIGMA**4
    kernel = kernel - kernel.mean()
    return F.conv2d(x[None, None], kernel[None, None], padding=REACH)[0, 0]


def agreement(found: Tensor, truth: Tensor, where: Tensor) -> dict[str, float]:
    """Every figure by name, of magnitudes (X, Y) in ``where`` (X, Y) bool; NaN where it is empty.

    ``psnr`` in dB over the largest value of the truth there, ``ssim``, ``nrmse`` and ``hfen`` in
    per cent of the truth's own, ``central_line`` the NRMSE across phase encoding in the middle of
    the readout, ``scale`` the factor.
    """
    if not where.any():
        return dict.fromkeys(('psnr', 'ssim', 'nrmse', 'hfen', 'central_line', 'scale'), math.nan)
    scale = scaling(found, truth, where)
    found = scale * found
    span = truth[where].max()
    error = (found - truth)[where].square().mean().sqrt()
    line = where.shape[0] // 2
    return {
        'psnr': float(20 * torch.log10(span / error.clamp_min(1e-12 * float(span)))),
        'ssim': float(similarity(found, truth, span)[where].mean()),
        'nrmse': _share(found, truth, where),
        'hfen': _share(edges(found), edges(truth), where),
        'central_line': _share(found[line], truth[line], where[line]),
        'scale': scale,
    }


def _share(found: Tensor, truth: Tensor, where: Tensor) -> float:
    """100 ‖found - truth‖ / ‖truth‖ in ``where``; NaN where the truth is nothing."""
    size = torch.linalg.vector_norm(truth[where])
    if not float(size):
        return math.nan
    return float(100 * torch.linalg.vector_norm((found - truth)[where]) / size)
