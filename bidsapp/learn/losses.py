"""Losses on masked volumes; prediction (B, K, X, Y, Z), mask (B, 1, X, Y, Z) bool → scalar."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

#: Weight of Dice where the truth is fractions.
OF_FRACTIONS = 0.25


def labelled_voxels(values: Tensor, where: Tensor) -> Tensor:
    """(B, K, X, Y, Z) at ``where`` (B, 1, X, Y, Z) → (V, K)."""
    return values.movedim(1, -1)[where[:, 0]]


def cross_entropy_and_dice(logits: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean cross-entropy plus one minus the mean soft Dice over classes that occur.

    ``target`` (B, 1, X, Y, Z) holds 1 … K; 0 is unlabelled and does not count. Or it holds the
    fractions (B, K, X, Y, Z) of the classes; all 0 is unlabelled. Of fractions, which have no
    sharp border that a voxel could miss, Dice counts a quarter: it favours what is rare.
    """
    where = mask & (target.sum(1, keepdim=True) > 0)
    chosen = labelled_voxels(logits, where)
    if not len(chosen):
        return logits.sum() * 0
    truth = labelled_voxels(target, where)
    classes = logits.shape[1]
    share = truth if truth.shape[1] == classes else F.one_hot(truth[:, 0].long() - 1, classes)
    share = share / share.sum(1, keepdim=True)
    probabilities = chosen.softmax(1)
    # Of fractions the overlap is what both have; for labels that is the usual product.
    overlap = torch.minimum(probabilities, share).sum(0)
    size = probabilities.sum(0) + share.sum(0)
    dice = 2 * overlap / size.clamp_min(1e-6)
    missed = 1 - dice[share.sum(0) > 0].mean()
    weight = OF_FRACTIONS if truth.shape[1] == classes else 1.0
    return F.cross_entropy(chosen, share.to(chosen)) + weight * missed
