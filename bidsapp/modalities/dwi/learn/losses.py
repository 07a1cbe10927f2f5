"""Losses of diffusion tasks: dyads, fibre densities, NODDI likelihood, harmonics."""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from bidsapp.learn.losses import labelled_voxels
from bidsapp.modalities.dwi.physics import fixed_response_fod
from bidsapp.modalities.dwi.physics.harmonics import harmonics_at
from bidsapp.modalities.dwi.physics.qspace import N_SH, SLOTS, standard
from bidsapp.physics.eigen import eigh

if TYPE_CHECKING:
    from torch import Tensor

#: Order of the density of fibre directions, and the square of the norm of one fibre in it.
DENSITY_ORDER, N_DENSITY = fixed_response_fod.ORDER, fixed_response_fod.N
FIBRE_NORM = N_DENSITY / (4 * math.pi)
#: Of a target's vectors, which are of length 1 or 0: nobody knows.
UNKNOWN_FIBRES = 4.0
#: Natural logarithms between which a standard deviation is believed.
LOG_SD = (-4.6, 0.0)


#: Row and column of the six numbers that make a symmetric 3x3 matrix.
DYAD = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))


def dyad(vectors: Tensor) -> Tensor:
    """(…, 3) → (…, 6): v vᵀ as xx, yy, zz, √2 xy, √2 xz, √2 yz; the same for v and -v.

    With the √2 the squared distance of two such is the Frobenius distance of the matrices,
    2 sin² of the angle between unit vectors: no wrap-around and no preferred axis.
    """
    return six(vectors[..., :, None] * vectors[..., None, :])


def six(matrix: Tensor) -> Tensor:
    """Symmetric (…, 3, 3) → (…, 6), as `dyad` has them."""
    return torch.stack([matrix[..., i, j] * (1 if i == j else 2**0.5) for i, j in DYAD], dim=-1)


def symmetric(dyads: Tensor) -> Tensor:
    """(…, 6) as ``dyad`` has them → (…, 3, 3)."""
    matrix = dyads.new_zeros(*dyads.shape[:-1], 3, 3)
    for k, (i, j) in enumerate(DYAD):
        value = dyads[..., k] / (1 if i == j else 2**0.5)
        matrix[..., i, j] = value
        matrix[..., j, i] = value
    return matrix


def principal_axis(dyads: Tensor) -> Tensor:
    """(…, 6) → (…, 3) unit eigenvector of the largest eigenvalue; its sign has no meaning."""
    return eigh(symmetric(dyads).double())[1][..., -1].to(dyads.dtype)


def dyadic(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean squared Frobenius distance to v vᵀ where ``target`` (B, 3, X, Y, Z) is not zero."""
    where = mask & (target.square().sum(1, keepdim=True) > 0.5)
    chosen = labelled_voxels(prediction, where)
    if not len(chosen):
        return prediction.sum() * 0
    return (chosen - dyad(labelled_voxels(target, where))).square().sum(1).mean()


def fibres(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """The strongest fibre's dyad where there is one, and the density of all in the brain.

    ``prediction`` (B, 6 + N_DENSITY, X, Y, Z), ``target`` (B, 9, X, Y, Z) unit vectors or zeros.
    The density is Σ δ(v_i), cut off at DENSITY_ORDER; its squared error is in units of one fibre.
    Where the target is UNKNOWN_FIBRES nothing is learnt.
    """
    mask = mask & (target.abs().amax(1, keepdim=True) < UNKNOWN_FIBRES / 2)
    strongest = dyadic(prediction[:, :6], target[:, :3], mask)
    where = mask[:, 0]
    if not where.any():
        return strongest
    vectors = target.movedim(1, 0).unflatten(0, (3, 3))[:, :, where]
    density = sum(harmonics_at(v, DENSITY_ORDER) for v in vectors.unbind(0))
    error = prediction[:, 6:].movedim(1, 0)[:, where] - density
    return strongest + error.square().sum(0).mean() / FIBRE_NORM


def gaussian_nll(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Negative log-likelihood of icvf, od, isovf (B, 3, …); prediction: logits, log deviations.

    Density and dispersion count in proportion to the tissue that is there; unknown ones are
    negative.
    """
    known = (target >= 0) & mask
    tissue = (1 - target[:, 2:].clamp_min(0)).expand_as(target).clone()
    tissue[:, 2] = 1
    return weighted_nll(prediction[:, :3].sigmoid(), prediction[:, 3:], target, known * tissue)


def weighted_nll(mean: Tensor, log_sd: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Negative log-likelihood of ``target`` under normal distributions; all (B, K, X, Y, Z).

    Each term is weighted by the square root of its own predicted variance (Seitzer et al., ICLR
    2022), so that what is hard to predict is still learnt. ``weight`` says what a voxel counts.
    """
    log_sd = log_sd.clamp(*LOG_SD)
    deviation = log_sd.exp()
    nll = 0.5 * ((target - mean) / deviation).square() + log_sd
    total = (weight * deviation.detach() * nll).sum((0, 2, 3, 4))
    return (total / weight.sum((0, 2, 3, 4)).clamp_min(1)).mean() * 10


#: b (s/mm²) of which a bin's weights are; share of the prior's variance that counts as no error.
_MIDDLE, LEAST_ERROR = (1000.0, 1800.0, 2800.0), 1e-3


@cache
def _signal_weights() -> Tensor:
    """(slots · N_SH,) share of each standardised harmonic in the variance of its bin's signal."""
    rows = [standard(b)[1] ** 2 for b in _MIDDLE]
    return torch.from_numpy(np.concatenate([row / row.sum() for row in rows])).float()


def signal_errors(prediction: Tensor, target: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """(B,) squared error of S/S0 in filled slots, by a correction and by none.

    ``prediction`` (B, slots · N_SH, …), ``target`` the same and then a flag a slot. Squares of
    standardised harmonics times the prior's variance are those of the signal over the sphere
    (Parseval); in units of that variance. Of a sample without a filled slot both are zero.
    """
    n = len(SLOTS)
    values, filled = target[:, : n * N_SH], target[:, n * N_SH :]
    weight = (filled * mask).repeat_interleave(N_SH, dim=1)
    weight = weight * _signal_weights().to(weight)[:, None, None, None]
    total = weight.flatten(1).sum(1).clamp_min(1e-6)
    errors = (prediction.float() - values).square(), values.square()
    left, before = ((error * weight).flatten(1).sum(1) / total for error in errors)
    return left, before


def correction(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Squared error of the signal over that of its input, as `signal_errors` has them.

    A network that changes nothing scores 1 at any noise but the least (LEAST_ERROR).
    """
    left, before = signal_errors(prediction, target, mask)
    return ((left + LEAST_ERROR) / (before + LEAST_ERROR)).mean()


def spread_about(dyads: Tensor, axes: Tensor) -> Tensor:
    """(V,) mean sin² of the angle from unit ``axes`` (V, 3) to v, by mean dyads (V, 6) of v.

    As `axis_and_spread` has it, about any axis: 1 - aᵀTa / trace T, T without what is negative.
    """
    values, vectors = eigh(symmetric(dyads).double())
    values = values.clamp_min(0)
    along = (vectors.mT @ axes.double()[..., None])[..., 0].square()
    total = values.sum(-1)
    share = (values * along).sum(-1) / total.clamp_min(1e-12)
    return torch.where(total > 0, 1 - share, 2 / 3)


def axis_and_spread(dyads: Tensor) -> tuple[Tensor, Tensor]:
    """(V, 6) mean dyads → principal axes (V, 3) and root mean square angles (V,) in degrees.

    A network fitted by squared error to v vᵀ predicts its mean T. With the axis a, the mean of
    sin² of the angle from a to v is 1 - aᵀTa / trace T, which gives the angle; no label and no
    second network is needed. 54.7 degrees is complete ignorance.
    """
    values, vectors = eigh(symmetric(dyads).double())
    values = values.clamp_min(0)
    total = values.sum(-1)
    share = torch.where(total > 0, values[:, -1] / total.clamp_min(1e-12), 1 / 3)
    angle = torch.rad2deg(torch.asin((1 - share).clamp(0, 2 / 3).sqrt()))
    return vectors[..., -1].to(dyads.dtype), angle.to(dyads.dtype)
