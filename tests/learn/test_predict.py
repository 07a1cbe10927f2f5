"""A brain in patches is the brain in one piece; an absent device is said."""

from __future__ import annotations

import pytest
import torch

from bidsapp import registry
from bidsapp.learn import predict as module
from bidsapp.learn.patches import in_patches
from bidsapp.learn.predict import (
    AVERAGED,
    averaged_turns,
    predict,
    predict_turned,
    resolve_device,
    turns_of,
)
from bidsapp.modalities.dwi.physics.qspace import LAYOUT, N_CHANNELS
from bidsapp.modalities.dwi.physics.turns import turned_channels
from bidsapp.networks.registry import build
from bidsapp.physics.geometry import turned_voxels
from bidsapp.problems import WrongUsage


def test_identity_in_patches_is_the_image():
    image = torch.randn(2, 37, 50, 29)
    blended = in_patches(lambda x: x, image, 16, 8, 'cpu')
    assert torch.allclose(blended, image, atol=1e-5)


def test_patches_and_whole_agree_within_the_stated_tolerance(monkeypatch):
    """Root mean square difference below 2 % of the output's standard deviation, in float32."""
    monkeypatch.setattr(module, 'precision', lambda device: None)
    torch.manual_seed(0)
    network = build('unet3d', 4, {'a': 3}, widths=(8, 8, 16, 16)).eval()
    image = torch.randn(4, 120, 104, 40)
    whole = predict(network, image, whole=True)
    pieces = predict(network, image, whole=False)
    difference = (whole - pieces).square().mean().sqrt()
    assert difference < 0.02 * whole.std()


def test_bfloat16_changes_little(monkeypatch):
    torch.manual_seed(0)
    network = build('unet3d', 4, {'a': 3}).eval()
    image = torch.randn(4, 24, 24, 24)
    monkeypatch.setattr(module, 'precision', lambda device: None)
    exact = predict(network, image)
    monkeypatch.setattr(module, 'precision', lambda device: torch.bfloat16)
    assert (predict(network, image) - exact).abs().mean() < 0.05 * exact.std()


@pytest.mark.skipif(torch.cuda.is_available(), reason='a CUDA device is there')
def test_explicit_cuda_that_is_not_there_names_the_remedy():
    with pytest.raises(WrongUsage, match=r'--gpus all.*--nv'):
        resolve_device('cuda')
    assert resolve_device('auto') == 'cpu'


def test_the_mean_over_mirrors_is_the_same_for_a_head_and_its_image(monkeypatch):
    """Mirrored along the axis of its turns, a head gives the mirrored answer, exactly."""
    monkeypatch.setattr(module, 'precision', lambda device: None)
    torch.manual_seed(0)
    task = registry.get('orientation')
    network = build('unet3d', N_CHANNELS, task.heads, **LAYOUT, widths=(4, 4, 8, 8)).eval()
    image = torch.randn(N_CHANNELS, 8, 9, 10)
    mirror = AVERAGED[1]
    pair = (AVERAGED[0], mirror)
    here = predict_turned(network, image, [task], pair)
    there = predict_turned(network, turned_channels(image, mirror), [task], pair)
    back = task.turn_output(turned_voxels(there, mirror)[None], mirror)[0]
    assert torch.allclose(here, back, atol=1e-3 * float(here.std()) + 1e-4)
    assert not torch.allclose(here, predict(network, image), atol=0.01 * float(here.std()))


def test_only_turns_that_were_learnt_are_averaged():
    assert averaged_turns(registry.get('orientation')) == AVERAGED
    assert averaged_turns(registry.get('tissue')) == AVERAGED[:2]
    assert turns_of({}) == AVERAGED[:1]
    assert turns_of({'averaged_turns': [[[1, 0, 0], [0, 1, 0], [0, 0, 1]]]}) == AVERAGED[:1]
