"""Losses of diffusion networks are zero at the truth and blind to what has no meaning."""

from __future__ import annotations

import math

import pytest
import torch

from bidsapp.learn.metrics import angular_errors
from bidsapp.modalities.dwi.learn.losses import (
    DENSITY_ORDER,
    correction,
    dyad,
    dyadic,
    fibres,
    gaussian_nll,
    principal_axis,
    signal_errors,
)
from bidsapp.modalities.dwi.physics.harmonics import harmonics_at
from bidsapp.modalities.dwi.physics.qspace import prior_deviation


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


def density_of(vectors):
    """(1, 45, 1, 1, 1) of one voxel with these unit vectors (n, 3)."""
    return sum(harmonics_at(v, DENSITY_ORDER) for v in vectors)[None, :, None, None, None]


def one_voxel(*vectors):
    target = torch.zeros(1, 9, 1, 1, 1)
    for k, v in enumerate(vectors):
        target[0, 3 * k : 3 * k + 3, 0, 0, 0] = v
    return target


HERE = torch.ones(1, 1, 1, 1, 1, dtype=torch.bool)


def test_fibres_are_right_only_with_the_strongest_and_the_density():
    a = torch.nn.functional.normalize(torch.tensor([1.0, 2.0, 2.0]), dim=0)
    b = torch.nn.functional.normalize(torch.tensor([2.0, -2.0, 1.0]), dim=0)
    right = torch.cat([dyad(a)[None, :, None, None, None], density_of([a, b])], 1)
    assert float(fibres(right, one_voxel(a, b), HERE)) == pytest.approx(0, abs=1e-5)
    assert float(fibres(right, one_voxel(-a, -b), HERE)) == pytest.approx(0, abs=1e-5)
    # The second fibre missing is an error of one fibre.
    lone = torch.cat([dyad(a)[None, :, None, None, None], density_of([a])], 1)
    assert float(fibres(lone, one_voxel(a, b), HERE)) == pytest.approx(1, abs=1e-3)


def test_where_no_fibre_counts_the_density_shall_be_nothing():
    spurious = torch.cat([torch.zeros(1, 6, 1, 1, 1), density_of([torch.eye(3)[0]])], 1)
    assert float(fibres(spurious, one_voxel(), HERE)) == pytest.approx(1, abs=1e-3)
    assert float(fibres(torch.zeros(1, 51, 1, 1, 1), one_voxel(), HERE)) == 0


def test_likelihood_is_best_at_the_true_spread():
    generator = torch.Generator().manual_seed(0)
    target = 0.5 + 0.1 * torch.randn(1, 3, 20, 20, 20, generator=generator)
    mask = torch.ones(1, 1, 20, 20, 20, dtype=torch.bool)

    def slope_at(deviation):
        log_sd = torch.full((1, 3, 20, 20, 20), float(deviation)).log().requires_grad_()
        loss = gaussian_nll(torch.cat([torch.zeros_like(target), log_sd], 1), target, mask)
        return float(torch.autograd.grad(loss, log_sd)[0].sum())

    assert slope_at(0.05) < 0 < slope_at(0.2)
    assert abs(slope_at(0.1)) < 0.1 * abs(slope_at(0.2))


def test_unknown_parameters_teach_nothing():
    prediction = torch.randn(1, 6, 2, 2, 2, requires_grad=True)
    target = torch.full((1, 3, 2, 2, 2), -1.0)
    loss = gaussian_nll(prediction, target, torch.ones(1, 1, 2, 2, 2, dtype=torch.bool))
    loss.backward()
    assert not prediction.grad.any()


def test_only_filled_slots_are_corrected():
    prediction = torch.zeros(1, 84, 1, 1, 1)
    prediction[:, 28:56] = 5
    target = torch.zeros(1, 87, 1, 1, 1)
    target[:, 84] = 1
    assert float(correction(prediction, target, HERE)) == 1
    target[:, 85] = 1
    assert float(correction(prediction, target, HERE)) > 1


def test_no_correction_scores_one_and_half_of_it_a_quarter():
    target = torch.zeros(2, 87, 3, 3, 3)
    target[:, :28] = torch.randn(2, 28, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    target[1] *= 0.1  # whatever the noise
    target[:, 84] = 1
    mask = torch.ones(2, 1, 3, 3, 3, dtype=torch.bool)
    assert float(correction(0 * target[:, :84], target, mask)) == pytest.approx(1)
    assert float(correction(0.5 * target[:, :84], target, mask)) == pytest.approx(0.25, abs=0.05)


def test_harmonics_count_by_their_share_of_the_signal():
    """Squared error on the sphere, by Parseval: what degree 6 holds is next to nothing."""
    error = {}
    for first, last in ((0, 1), (1, 6), (15, 28)):
        prediction = torch.zeros(1, 84, 1, 1, 1)
        prediction[:, first:last] = 1
        target = torch.zeros(1, 87, 1, 1, 1)
        target[:, 84] = 1
        error[first] = float(signal_errors(prediction, target, HERE)[0])
    spread = prior_deviation(1000.0)
    assert error[1] / error[0] == pytest.approx(5 * spread[1] ** 2 / spread[0] ** 2, rel=1e-3)
    assert error[15] < 1e-3 * error[0]
