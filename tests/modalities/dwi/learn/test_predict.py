"""The diffusion network in patches is the one in one piece; mirrors are averaged as learnt."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bidsapp import registry
from bidsapp.core import Sample
from bidsapp.learn import predict as module
from bidsapp.learn.predict import TTA_FLIPS, averaged_turns, predict, predict_tta
from bidsapp.modalities.dwi.physics.qspace import LAYOUT, N_CHANNELS
from bidsapp.modalities.dwi.physics.turns import turned_channels
from bidsapp.networks.registry import build
from bidsapp.physics.geometry import turned_voxels


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    """float32, whatever the processor has."""
    monkeypatch.setattr(module, 'precision', lambda device: None)


def of(image):
    return Sample(image, torch.ones(1, *image.shape[1:], dtype=torch.bool), np.eye(4))


def test_patches_and_whole_agree_within_the_stated_tolerance():
    """Root mean square difference below 2 % of the output's standard deviation, in float32."""
    torch.manual_seed(0)
    network = build('dwi', 'unet3d', 4, {'a': 3}, widths=(8, 8, 16, 16)).eval()
    sample = of(torch.randn(4, 120, 104, 40))
    whole = predict(network, sample, whole=True)
    pieces = predict(network, sample, whole=False)
    difference = (whole - pieces).square().mean().sqrt()
    assert difference < 0.02 * whole.std()


def test_bfloat16_changes_little(monkeypatch):
    torch.manual_seed(0)
    network = build('dwi', 'unet3d', 4, {'a': 3}).eval()
    sample = of(torch.randn(4, 24, 24, 24))
    exact = predict(network, sample)
    monkeypatch.setattr(module, 'precision', lambda device: torch.bfloat16)
    assert (predict(network, sample) - exact).abs().mean() < 0.05 * exact.std()


def test_the_mean_over_mirrors_is_the_same_for_a_head_and_its_image():
    """Mirrored along the axis of its turns, a head gives the mirrored answer, exactly."""
    torch.manual_seed(0)
    head, turned = registry.task('orientation').head, registry.input('dwi').turned
    network = build('dwi', 'unet3d', N_CHANNELS, head.heads, **LAYOUT, widths=(4, 4, 8, 8)).eval()
    image = torch.randn(N_CHANNELS, 8, 9, 10)
    mirror = TTA_FLIPS[1]
    pair = (TTA_FLIPS[0], mirror)
    here = predict_tta(network, of(image), [head], pair, turned)
    there = predict_tta(network, of(turned_channels(image, mirror)), [head], pair, turned)
    back = head.turn_output(turned_voxels(there, mirror)[None], mirror)[0]
    assert torch.allclose(here, back, atol=1e-3 * float(here.std()) + 1e-4)
    assert not torch.allclose(here, predict(network, of(image)), atol=0.01 * float(here.std()))


def test_only_turns_that_were_learnt_are_averaged():
    assert averaged_turns(registry.task('orientation').head.turns) == TTA_FLIPS
    assert averaged_turns(registry.task('tissue').head.turns) == TTA_FLIPS[:2]
