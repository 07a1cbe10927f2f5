"""A brain in patches is the brain in one piece; turned and turned back it is averaged."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bidsapp.core import Head, Sample
from bidsapp.learn import predict as module
from bidsapp.learn.predict import (
    PATCH,
    TTA_FLIPS,
    averaged_turns,
    predict,
    predict_tta,
    resolve_device,
    turns_of,
)
from bidsapp.networks.base import Network
from bidsapp.networks.registry import build
from bidsapp.physics.geometry import ALL_TURNS, MIRRORED, turned_voxels
from bidsapp.problems import WrongUsage


@pytest.fixture
def exact(monkeypatch):
    """float32, whatever the processor has."""
    monkeypatch.setattr(module, 'precision', lambda device: None)


def of(image, **context):
    """A sample whose every voxel counts."""
    mask = torch.ones(1, *image.shape[1:], dtype=torch.bool)
    return Sample(image, mask, np.eye(4), context=context)


@pytest.mark.usefixtures('exact')
def test_patches_and_whole_agree_within_the_stated_tolerance():
    """Root mean square difference below 2 % of the output's standard deviation, in float32."""
    torch.manual_seed(0)
    network = build('dwi', 'unet', 4, {'a': 3}, widths=(8, 8, 16, 16)).eval()
    sample = of(torch.randn(4, 120, 104, 40))
    whole = predict(network, sample, whole=True)
    pieces = predict(network, sample, whole=False)
    difference = (whole - pieces).square().mean().sqrt()
    assert difference < 0.02 * whole.std()


def test_bfloat16_changes_little(monkeypatch):
    torch.manual_seed(0)
    network = build('dwi', 'unet', 4, {'a': 3}).eval()
    sample = of(torch.randn(4, 24, 24, 24))
    monkeypatch.setattr(module, 'precision', lambda device: None)
    exact = predict(network, sample)
    monkeypatch.setattr(module, 'precision', lambda device: torch.bfloat16)
    assert (predict(network, sample) - exact).abs().mean() < 0.05 * exact.std()


class Scaled(Network):
    """The image times what is told of the sample; notes the sizes that it is shown."""

    def __init__(self, cut=(True, True, True), bytes_per_voxel=100):
        super().__init__()
        self.cut, self.bytes_per_voxel, self.seen = cut, bytes_per_voxel, []

    def forward(self, image, context):
        self.seen.append(tuple(image.shape[2:]))
        assert context['scale'].shape == (1, 1)
        return image * context['scale'][..., None, None, None]


@pytest.mark.usefixtures('exact')
@pytest.mark.parametrize('whole', [True, False])
def test_what_is_told_of_a_sample_is_told_with_every_patch(whole):
    sample = of(torch.randn(2, 130, 20, 20), scale=torch.tensor([3.0]))
    network = Scaled()
    assert torch.allclose(predict(network, sample, whole=whole), 3 * sample.image, atol=1e-5)
    assert len(network.seen) == (1 if whole else 2)


@pytest.mark.usefixtures('exact')
def test_an_image_is_cut_only_along_axes_that_may_be_cut():
    network = Scaled(cut=(True, False, False))
    predict(network, of(torch.zeros(1, 130, 110, 20), scale=torch.ones(1)), whole=False)
    assert set(network.seen) == {(PATCH, 110, 20)}


@pytest.mark.usefixtures('exact')
@pytest.mark.parametrize(
    ('needed', 'cut', 'pieces'), [(100, True, 1), (10**12, True, 2), (10**12, False, 1)]
)
def test_the_networks_need_of_memory_decides_whether_it_is_cut(needed, cut, pieces):
    network = Scaled((cut,) * 3, needed)
    predict(network, of(torch.zeros(1, 130, 20, 20), scale=torch.ones(1)))
    assert len(network.seen) == pieces


@pytest.mark.skipif(torch.cuda.is_available(), reason='a CUDA device is there')
def test_explicit_cuda_that_is_not_there_names_the_remedy():
    with pytest.raises(WrongUsage, match=r'--gpus all.*--nv'):
        resolve_device('cuda')
    assert resolve_device('auto') == 'cpu'


def by_turn(values, turn):
    """Vectors (B, 3, X, Y, Z) of a head that is turned."""
    return torch.einsum('dc,bcxyz->bdxyz', values.new_tensor(turn), values)


def turned(image, context, turn):
    """A scan of one vector a voxel, whose axes are turned, and the edges of its voxels."""
    image = by_turn(turned_voxels(image, turn)[None], turn)[0]
    order = np.abs(np.array(turn)).argmax(1).tolist()
    return image, {name: value[order] for name, value in context.items()}


def vector(turns):
    return Head(3, 3, None, None, 'x', True, turns=turns, turn_output=by_turn, name='vector')


@pytest.mark.usefixtures('exact')
def test_the_mean_over_mirrors_is_the_same_for_a_head_and_its_image():
    """Mirrored along an axis of the mean, a head gives the mirrored answer, exactly."""
    torch.manual_seed(0)
    network = build('dwi', 'unet', 3, {'vector': 3}, widths=(4, 4, 8, 8)).eval()
    sample, mirror, heads = of(torch.randn(3, 8, 9, 10)), TTA_FLIPS[1], [vector(ALL_TURNS)]
    other = of(turned(sample.image, {}, mirror)[0])
    here, there = (predict_tta(network, s, heads, TTA_FLIPS[:2], turned) for s in (sample, other))
    back = by_turn(turned_voxels(there, mirror)[None], mirror)[0]
    assert torch.allclose(here, back, atol=1e-3 * float(here.std()) + 1e-4)
    assert not torch.allclose(here, predict(network, sample), atol=0.01 * float(here.std()))


class Shrunk(Network):
    """The vectors in voxels: components along edges that it is told."""

    bytes_per_voxel = 100

    def forward(self, image, context):
        return image / context['voxel_mm'][..., None, None, None]


@pytest.mark.usefixtures('exact')
def test_context_is_turned_with_the_image():
    """Where the network does as it is told, the mean over any turns is what one pass gives."""
    sample = of(torch.randn(3, 4, 5, 6), voxel_mm=torch.tensor([1.0, 2.0, 4.0]))
    turns = [ALL_TURNS[k] for k in (0, 9, 22, 41)]
    mean = predict_tta(Shrunk(), sample, [vector(ALL_TURNS)], turns, turned)
    assert torch.allclose(mean, predict(Shrunk(), sample), atol=1e-5)


def test_only_turns_that_were_learnt_are_averaged():
    assert averaged_turns(ALL_TURNS) == TTA_FLIPS
    assert averaged_turns(MIRRORED) == TTA_FLIPS[:2]
    assert averaged_turns(()) == TTA_FLIPS[:1]
    assert turns_of({}) == TTA_FLIPS[:1]
    assert turns_of({'averaged_turns': [[[1, 0, 0], [0, 1, 0], [0, 0, 1]]]}) == TTA_FLIPS[:1]
