"""Losses and metrics are zero at the truth and blind to what has no meaning."""

from __future__ import annotations

import pytest
import torch

from bidsapp.learn.losses import OF_FRACTIONS, cross_entropy_and_dice
from bidsapp.learn.metrics import angular_errors, confusion, dice_per_class, f1_macro


def test_segmentation_loss_is_near_zero_for_sure_and_right_and_large_for_sure_and_wrong():
    target = torch.randint(1, 4, (1, 1, 6, 6, 6)).float()
    logits = 20 * torch.nn.functional.one_hot(target[:, 0].long() - 1, 3).movedim(-1, 1).float()
    mask = torch.ones_like(target, dtype=torch.bool)
    assert cross_entropy_and_dice(logits, target, mask) < 1e-3
    assert cross_entropy_and_dice(-logits, target, mask) > 1


def test_unlabelled_voxels_do_not_count():
    target = torch.randint(1, 4, (1, 1, 6, 6, 6)).float()
    target[:, :, :3] = 0
    logits = torch.randn(1, 3, 6, 6, 6)
    other = logits.clone()
    other[:, :, :3] += 5
    mask = torch.ones_like(target, dtype=torch.bool)
    assert cross_entropy_and_dice(logits, target, mask) == cross_entropy_and_dice(
        other, target, mask
    )


def test_dice_of_a_known_confusion():
    truth = torch.tensor([1, 1, 1, 1, 2, 2, 3, 3])
    said = torch.tensor([1, 1, 1, 2, 2, 2, 3, 1])
    dice = dice_per_class(confusion(said, truth, 3))
    assert dice.tolist() == pytest.approx([6 / 8, 4 / 5, 2 / 3])
    assert f1_macro(confusion(said, truth, 3)) == pytest.approx((6 / 8 + 4 / 5 + 2 / 3) / 3)


def test_a_class_that_does_not_occur_is_left_out_of_the_mean():
    counts = confusion(torch.tensor([1, 2]), torch.tensor([1, 2]), 3)
    assert f1_macro(counts) == 1


def test_right_angle_is_ninety_degrees():
    x, y = torch.tensor([[1.0, 0, 0]]), torch.tensor([[0, -1.0, 0]])
    assert angular_errors(x, y).item() == pytest.approx(90)


def test_fractions_and_labels_mean_the_same_where_tissue_is_pure():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 3, 4, 4, 4, generator=generator)
    labels = torch.randint(1, 4, (1, 1, 4, 4, 4), generator=generator)
    fractions = torch.nn.functional.one_hot(labels[:, 0] - 1, 3).movedim(-1, 1).float()
    mask = torch.ones(1, 1, 4, 4, 4, dtype=torch.bool)
    by_label = float(cross_entropy_and_dice(logits, labels.float(), mask))
    by_fraction = float(cross_entropy_and_dice(logits, fractions, mask))
    entropy = float(torch.nn.functional.cross_entropy(logits, labels[:, 0] - 1))
    assert by_fraction - entropy == pytest.approx(OF_FRACTIONS * (by_label - entropy), rel=1e-4)
