"""What is learnt: χ up to a constant, its deviation; the same for a block and its double."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bidsapp.core import Sample
from bidsapp.modalities.gre.learn import head
from bidsapp.modalities.gre.learn.head import (
    HEAD,
    OF_SD,
    calibrate,
    deviations,
    likeness,
    loss,
    metrics,
)
from bidsapp.modalities.gre.physics.agreement import xsim

SHAPE = (12, 13, 14)


@pytest.fixture
def scene(generator):
    """Outputs (2, 2, X, Y, Z) that state a third of their errors, targets and mask."""
    truth = 0.05 * torch.randn(2, 1, *SHAPE, generator=generator)
    mask = torch.ones(2, 1, *SHAPE, dtype=torch.bool)
    mask[..., :3, :, :] = False
    sd = torch.exp(-4 + torch.rand(2, 1, *SHAPE, generator=generator))
    chi = truth + sd * torch.randn(2, 1, *SHAPE, generator=generator)
    return torch.cat([chi, (sd / 3).log()], 1), truth * mask, mask


def sample_of(scene, k):
    _, truth, mask = scene
    return Sample(torch.ones(6, *SHAPE), mask[k], np.eye(4), truth[k])


def test_a_constant_costs_nothing(scene):
    output, truth, mask = scene
    shifted = output + torch.tensor([0.3, 0.0])[:, None, None, None]
    assert loss(shifted, truth, mask).item() == pytest.approx(
        loss(output, truth, mask).item(), abs=1e-4
    )
    one, other = (metrics(o[0], sample_of(scene, 0)) for o in (output, shifted))
    assert [v for *_, v in one] == pytest.approx([v for *_, v in other], abs=1e-5)


def test_the_right_deviation_is_the_best(scene):
    output, truth, mask = scene
    values = []
    for factor in (1, 3, 9):
        said = output.clone()
        said[:, 1] += float(np.log(factor))
        values.append(loss(said, truth, mask).item())
    assert values[1] == min(values)


def test_likeness_is_xsim(scene):
    output, truth, mask = scene
    alike = likeness(output[:, :1], truth, mask)
    for k in range(2):
        pair = output[k, 0].numpy(), truth[k, 0].numpy(), mask[k, 0].numpy()
        assert alike[k][mask[k]].mean().item() == pytest.approx(xsim(*pair), abs=1e-4)


def test_contrast_of_a_block_is_no_weight(scene, monkeypatch):
    """But for XSIM, which is in ppm."""
    monkeypatch.setattr(head, 'OF_XSIM', 0.0)
    output, truth, mask = scene
    larger = torch.cat([4 * output[:, :1], output[:, 1:] + float(np.log(4))], 1)
    there = loss(larger, 4 * truth, mask).item() - OF_SD * float(np.log(4))
    assert there == pytest.approx(loss(output, truth, mask).item(), abs=1e-4)


def test_calibrated_deviations_hold_68_per_cent_in_each_third(scene):
    output = scene[0]
    samples = [sample_of(scene, k) for k in range(2)]
    factor, shift = calibrate(list(output), samples)
    assert (factor[0], shift[0]) == (1, 0)
    assert factor[1].item() == pytest.approx(1, abs=0.2)
    assert shift[1].item() > 0.5
    said = output * factor[:, None, None, None] + shift[:, None, None, None]
    for k, sample in enumerate(samples):
        rows = {name: value for name, _, value in metrics(said[k], sample)}
        assert 0.63 < rows['within_one_sd'] < 0.73


def test_outside_the_mask_nothing_counts(scene):
    output, truth, mask = scene
    wild = torch.where(mask, output, 7.0)
    assert loss(wild, truth, mask).item() == pytest.approx(loss(output, truth, mask).item())


def test_metrics_are_of_where_the_field_is_known(scene):
    sample = sample_of(scene, 0)
    wrong = scene[0][0].clone()
    wrong[0, :, :4] = 9.0
    sample.image[4, :, :4] = 0
    assert metrics(wrong, sample) == metrics(scene[0][0], sample)


def test_deviations_are_believed_within_limits():
    assert torch.isfinite(deviations(torch.tensor([-1e9, 1e9]))).all()
    assert HEAD.score in HEAD.words
