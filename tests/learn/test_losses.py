"""Losses and metrics are zero at the truth and blind to what has no meaning."""

from __future__ import annotations

import math

import pytest
import torch

from bidsapp.learn.losses import cross_entropy_and_dice, dyad, dyadic, principal_axis
from bidsapp.learn.metrics import angular_errors, confusion, dice_per_class, f1_macro


@pytest.fixture
def axes():
    torch.manual_seed(0)
    vectors = torch.randn(500, 3)
    return vectors / vectors.norm(dim=1, keepdim=True)


def test_dyad_is_the_same_for_opposite_vectors(axes):
    assert torch.equal(dyad(axes), dyad(-axes))


def test_squared_dyad_distance_is_twice_the_squared_sine(axes):
    other = axes.roll(1, 0)
    distance = (dyad(axes) - dyad(other)).square().sum(1)
    sine_squared = 1 - (axes * other).sum(1).square()
    assert torch.allclose(distance, 2 * sine_squared, atol=1e-5)


def test_principal_axis_undoes_dyad(axes):
    assert angular_errors(principal_axis(dyad(axes)), axes).max() < 0.1


def test_no_wrap_around():
    """Two axes one degree apart cost the same wherever they are, across any meridian."""
    a, b = (
        torch.tensor([math.cos(t), math.sin(t), 0.0]) for t in (math.pi - 0.01, -math.pi + 0.01)
    )
    c, d = (torch.tensor([math.cos(t), math.sin(t), 0.0]) for t in (0.31, 0.33))
    assert (dyad(a) - dyad(b)).norm() == pytest.approx((dyad(c) - dyad(d)).norm().item(), rel=1e-3)


def test_dyadic_loss_counts_only_voxels_with_a_direction(axes):
    target = torch.zeros(1, 3, 4, 4, 4)
    target[0, :, 0, 0, 0] = axes[0]
    prediction = torch.randn(1, 6, 4, 4, 4)
    prediction[0, :, 0, 0, 0] = dyad(axes[0])
    mask = torch.ones(1, 1, 4, 4, 4, dtype=torch.bool)
    assert dyadic(prediction, target, mask) == pytest.approx(0, abs=1e-10)
    assert dyadic(prediction, target, ~mask) == 0


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
