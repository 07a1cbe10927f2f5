"""What is learnt: figures on closed forms, and a loss that knows no scale and no edge of a crop."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from bidsapp.core import Sample
from bidsapp.modalities.kspace.learn.head import HEAD, loss, metrics, slices_of
from bidsapp.modalities.kspace.networks.normalised import channels_of
from bidsapp.modalities.kspace.physics.agreement import agreement, edges, foreground, similarity
from tests.modalities.kspace.phantom import image_of, noise_of

SHAPE = (32, 28)


@pytest.fixture
def truth():
    return channels_of(image_of(SHAPE)[None])


@pytest.fixture
def found(truth, generator):
    return truth + 0.05 * channels_of(noise_of((1, *SHAPE), generator))


def everywhere(truth):
    return torch.ones(1, 1, *truth.shape[2:], dtype=torch.bool)


def named(output, truth, mask=None):
    mask = everywhere(truth) if mask is None else mask
    sample = Sample(torch.zeros(4, *SHAPE, 1), mask[0], np.eye(4), truth[0])
    return {name: value for name, _, value in metrics(output[0], sample)}


def test_the_truth_costs_nothing(truth):
    assert loss(truth, truth, everywhere(truth)).item() < 1e-6
    right = named(truth, truth)
    assert right['ssim'] == pytest.approx(1)
    assert right['nrmse'] == right['hfen'] == right['central_line'] == 0
    assert right['psnr'] > 200


def test_every_figure_has_words(found, truth):
    assert named(found, truth).keys() == HEAD.words.keys()
    assert HEAD.score in HEAD.words


def test_neither_loss_nor_figures_know_a_common_scale_or_phase(found, truth):
    turned = [channels_of(1000j * slices_of(x)[:, 0]) for x in (found, truth)]
    assert loss(*turned, everywhere(truth)).item() == pytest.approx(
        loss(found, truth, everywhere(truth)).item(), rel=1e-4
    )
    assert named(*turned) == pytest.approx(named(found, truth), rel=1e-4)


def test_a_factor_is_told_and_not_judged(found, truth):
    one, other = named(found, truth), named(4 * found, truth)
    assert other['scale'] == pytest.approx(one['scale'] / 4)
    assert other['psnr'] == pytest.approx(one['psnr'], rel=1e-4)


def test_an_error_of_known_size_has_the_figures_of_the_formulas():
    """A chequered error is no part of a constant truth: no factor takes any of it away."""
    truth = torch.full(SHAPE, 2.0)
    sign = torch.ones(SHAPE)
    sign[::2] *= -1
    sign[:, ::2] *= -1
    rows = agreement(truth + 0.2 * sign, truth, torch.ones(SHAPE, dtype=torch.bool))
    scale = 4 / (4 + 0.04)
    assert rows['scale'] == pytest.approx(scale)
    error = math.sqrt((scale * 0.2) ** 2 + (2 * (1 - scale)) ** 2)
    assert rows['nrmse'] == pytest.approx(100 * error / 2, rel=1e-4)
    assert rows['central_line'] == pytest.approx(100 * error / 2, rel=1e-4)
    assert rows['psnr'] == pytest.approx(20 * math.log10(2 / error), rel=1e-4)


def test_similarity_of_constants_is_that_of_their_means():
    """Without texture SSIM is (2ab + c) / (a² + b² + c)."""
    a, b, span = torch.full(SHAPE, 1.0), torch.full(SHAPE, 0.5), torch.tensor([[1.0]])
    c = 0.01**2
    wanted = torch.full(SHAPE, (2 * 0.5 + c) / (1.25 + c))
    assert torch.allclose(similarity(a, b, span), wanted, atol=1e-4)


def test_edges_are_the_laplacian_of_a_parabola():
    """Of x² it is 2 wherever the filter is inside."""
    x = torch.arange(40.0)[:, None].expand(40, 40) - 20
    inner = edges(x.square())[8:-8, 8:-8]
    assert torch.allclose(inner, torch.full_like(inner, 2.0), atol=0.02)
    assert edges(x)[8:-8, 8:-8].abs().max() < 1e-3


def test_what_a_mask_leaves_out_does_not_count(found, truth):
    mask = everywhere(truth)
    mask[..., :6, :, :] = False
    # SSIM at a place sees three voxels around it.
    wild = found.clone()
    wild[..., :3, :, :] = 9.0
    assert loss(wild, truth, mask).item() == pytest.approx(loss(found, truth, mask).item())
    kept = named(found, truth, mask)
    assert named(wild, truth, mask)['nrmse'] == pytest.approx(kept['nrmse'])


def test_air_is_no_object():
    truth = image_of((64, 56))
    where = foreground(truth)
    assert where[32, 28]
    assert not where[:4].any()
    assert 0.9 < where.sum() / (truth.abs() > 0).sum() < 1.4


def test_a_gradient_is_there_where_nothing_is(truth):
    prediction = torch.zeros_like(truth).requires_grad_()
    loss(prediction, truth, everywhere(truth)).backward()
    assert torch.isfinite(prediction.grad).all()
    assert prediction.grad.abs().sum() > 0
