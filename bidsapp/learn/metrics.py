"""Figures of merit, in the brain or the white matter only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


#: What `class_scores` gives, for people.
CLASS_WORDS = {
    'f1_macro': 'mean over classes of F1, in labelled brain voxels',
    'accuracy': 'share of labelled brain voxels with the right class',
    'dice': 'Dice overlap of one class, in labelled brain voxels',
}


def confusion(predicted: Tensor, truth: Tensor, classes: int) -> Tensor:
    """(V,) labels 1 … K each → (K, K) counts, truth along the rows."""
    index = (truth.long() - 1) * classes + (predicted.long() - 1)
    return torch.bincount(index, minlength=classes**2).reshape(classes, classes)


def dice_per_class(counts: Tensor) -> Tensor:
    """(K, K) counts → (K,) Dice, which for one class is its F1; NaN where it does not occur."""
    correct, sizes = counts.diagonal().double(), (counts.sum(0) + counts.sum(1)).double()
    return torch.where(sizes > 0, 2 * correct / sizes.clamp_min(1), torch.nan)


def f1_macro(counts: Tensor) -> float:
    """Mean F1 over the classes that occur."""
    return float(dice_per_class(counts).nanmean())


def class_scores(
    predicted: Tensor, truth: Tensor, codes: Sequence[str]
) -> list[tuple[str, str, float]]:
    """F1 macro, accuracy, and Dice of each class, of (V,) labels 1 … K named by ``codes``.

    Of no voxels all are NaN.
    """
    counts = confusion(predicted, truth, len(codes))
    accuracy = float(counts.diagonal().sum() / counts.sum())
    dice = zip(codes, dice_per_class(counts).tolist(), strict=True)
    return [
        ('f1_macro', 'all', f1_macro(counts)),
        ('accuracy', 'all', accuracy),
        *(('dice', code, value) for code, value in dice),
    ]


def angular_errors(predicted: Tensor, truth: Tensor) -> Tensor:
    """(V, 3) unit axes each → (V,) degrees between them, 0 … 90; signs do not count."""
    cosine = (predicted.double() * truth.double()).sum(-1).abs()
    return torch.rad2deg(torch.arccos(cosine.clamp(0, 1)))
