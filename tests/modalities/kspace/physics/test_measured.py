"""Laws of samples in their place: averages, crops along readout, noise, what is left out."""

from __future__ import annotations

import pytest
import torch

from bidsapp.modalities.kspace.physics import measured, sampling
from bidsapp.modalities.kspace.physics.fourier import BOTH, around, middle
from tests.modalities.kspace.phantom import noise_of, scan_of


@pytest.fixture
def whole(generator):
    *_, kspace = scan_of(3, (20, 24), 0.1, generator)
    kspace = kspace[..., None]
    return measured.Measured(kspace, torch.ones(1, 24, 1), kspace[..., 0], 0.1)


@pytest.mark.parametrize(('wide', 'n'), [(40, 20), (41, 20), (40, 21), (30, 30)])
def test_a_crop_along_readout_is_the_crop_of_the_image_and_keeps_sigma(wide, n, generator):
    image = noise_of((2, wide, 9), generator)
    found = measured.without_oversampling(BOTH(image), n)
    assert torch.allclose(BOTH.H(found), middle(image, n, -2), atol=1e-5)
    size = measured.without_oversampling(noise_of((8, wide, 99), generator), n).abs().square()
    assert float(size.mean()) == pytest.approx(1, abs=0.03)
    inside = around(image[:, :n], wide, -2)
    assert torch.allclose(
        BOTH.H(measured.without_oversampling(BOTH(inside), n)), image[:, :n], atol=1e-5
    )


def test_means_are_weighted_so_that_all_samples_have_one_sigma(generator):
    count = torch.tensor([0.0, 1, 2, 4])[None, :, None]
    total = count.sqrt() * noise_of((500, 10, 4, 1), generator)  # sums of noise of 1
    kspace, weights, factor = measured.averaged(total, count)
    assert factor == 0.5
    assert weights.flatten().tolist() == pytest.approx([0, 0.5, 0.5**0.5, 1])
    size = kspace.abs().square().mean((0, 1, 3)).sqrt()
    assert size[0] == 0
    assert torch.allclose(size[1:], torch.full((3,), factor), rtol=0.05)
    # Signal s, summed as often as it was measured, is s times the weight.
    signal, _, _ = measured.averaged(3 * count + 0j, count)
    assert torch.allclose(signal.real, 3 * weights)


def test_what_is_left_out_makes_no_maps(whole, generator):
    mask = sampling.random_lines(24, 2, 6, generator)[None, :, None]
    some = measured.undersampled(whole, mask)
    changed = whole.kspace + (1 - mask) * noise_of(whole.kspace.shape, generator)
    other = measured.undersampled(
        measured.Measured(changed, whole.weights, whole.calibration, 0.1), mask
    )
    assert torch.equal(some.kspace, other.kspace)
    assert torch.equal(some.calibration, other.calibration)
    assert 6 <= some.calibration.shape[2] < 24
    assert some.sigma == whole.sigma


def test_corners_show_the_noise_of_what_was_measured(generator):
    kspace = 0.3 * noise_of((4, 60, 60, 1), generator)
    away = (torch.arange(60) - 30).abs()
    kspace[:, :, away < 15] += 50  # signal about the origin
    weights = ((away < 25) * (torch.arange(60) % 2 == 0)).float()[None, :, None]
    assert measured.corner_noise(kspace * weights, weights) == pytest.approx(0.3, rel=0.1)


def test_a_block_of_samples_ends_where_readouts_do(whole):
    weights = torch.ones(20, 24, 1)
    weights[:4] = 0
    weights[:, 20:] = 0
    block = measured.block_about_origin(whole.kspace * weights, weights)
    assert torch.equal(block, whole.kspace[:, 4:17, 4:20])  # the origin (10, 12) amid it
