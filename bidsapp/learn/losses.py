"""Losses on masked volumes; prediction (B, K, X, Y, Z), mask (B, 1, X, Y, Z) bool → scalar."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def labelled_voxels(values: Tensor, where: Tensor) -> Tensor:
    """(B, K, X, Y, Z) at ``where`` (B, 1, X, Y, Z) → (V, K)."""
    return values.movedim(1, -1)[where[:, 0]]


def cross_entropy_and_dice(logits: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean cross-entropy plus one minus the mean soft Dice over classes that occur.

    ``target`` (B, 1, X, Y, Z) holds 1 … K; 0 is unlabelled and does not count.
    """
    where = mask & (target > 0)
    chosen = labelled_voxels(logits, where)
    if not len(chosen):
        return logits.sum() * 0
    truth = labelled_voxels(target, where)[:, 0].long() - 1
    probabilities = chosen.softmax(1)
    one_hot = F.one_hot(truth, logits.shape[1]).to(probabilities)
    overlap = (probabilities * one_hot).sum(0)
    size = probabilities.sum(0) + one_hot.sum(0)
    dice = 2 * overlap / size.clamp_min(1e-6)
    return F.cross_entropy(chosen, truth) + 1 - dice[one_hot.sum(0) > 0].mean()


#: Row and column of the six numbers that make a symmetric 3x3 matrix.
DYAD = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))


def dyad(vectors: Tensor) -> Tensor:
    """(…, 3) → (…, 6): v vᵀ as xx, yy, zz, √2 xy, √2 xz, √2 yz; the same for v and -v.

    With the √2 the squared distance of two such is the Frobenius distance of the matrices,
    2 sin² of the angle between unit vectors: no wrap-around and no preferred axis.
    """
    parts = [vectors[..., i] * vectors[..., j] * (1 if i == j else 2**0.5) for i, j in DYAD]
    return torch.stack(parts, dim=-1)


def principal_axis(dyads: Tensor) -> Tensor:
    """(…, 6) → (…, 3) unit eigenvector of the largest eigenvalue; its sign has no meaning."""
    matrix = dyads.new_zeros(*dyads.shape[:-1], 3, 3)
    for k, (i, j) in enumerate(DYAD):
        value = dyads[..., k] / (1 if i == j else 2**0.5)
        matrix[..., i, j] = value
        matrix[..., j, i] = value
    return torch.linalg.eigh(matrix.double()).eigenvectors[..., -1].to(dyads.dtype)


def dyadic(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean squared Frobenius distance to v vᵀ where ``target`` (B, 3, X, Y, Z) is not zero."""
    where = mask & (target.square().sum(1, keepdim=True) > 0.5)
    chosen = labelled_voxels(prediction, where)
    if not len(chosen):
        return prediction.sum() * 0
    return (chosen - dyad(labelled_voxels(target, where))).square().sum(1).mean()


def weighted_absolute_error(prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Mean over channels of Σ w |p - t| / Σ w; all (B, K, X, Y, Z), a channel without weight 0."""
    error = (weight * (prediction - target).abs()).sum((0, 2, 3, 4))
    return (error / weight.sum((0, 2, 3, 4)).clamp_min(1e-6)).mean()
