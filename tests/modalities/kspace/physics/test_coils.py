"""Laws of coils: whitening, compression, and maps from nothing but calibration samples."""

from __future__ import annotations

import pytest
import torch

from bidsapp.modalities.kspace.physics import coils
from bidsapp.modalities.kspace.physics.fourier import ALONG_READOUT, hybrid, middle
from tests.modalities.kspace.phantom import image_of, maps_of, noise_of, scan_of

SHAPE = (33, 40)


def calibration_of(kspace, lines):
    return middle(kspace, lines, -1)


def agreement(found, true, image):
    """Of each voxel of the object: |⟨found, true⟩|, 1 where they differ by a phase only."""
    return (found.conj() * true).sum(0).abs()[image.abs() > 0]


def test_whitened_noise_is_independent_and_of_one():
    generator = torch.Generator().manual_seed(1)
    mix = noise_of((5, 5), generator)
    noise = mix @ noise_of((5, 200_000), generator)
    white = coils.whitening(noise[:, :100_000]) @ noise[:, 100_000:]
    covariance = white @ white.mH / 100_000
    assert (covariance - torch.eye(5)).abs().max() < 0.02


def test_noise_that_two_coils_share_wholly_cannot_be_whitened(generator):
    noise = noise_of((1, 100), generator).expand(2, 100)
    with pytest.raises(ValueError, match='singular'):
        coils.whitening(noise)


@pytest.mark.parametrize('along_readout', [False, True])
def test_compression_keeps_the_energy_that_it_says_and_leaves_noise_white(along_readout, generator):
    *_, kspace = scan_of(12, SHAPE, 0.002, generator)
    calibration = calibration_of(kspace, 16)
    fewer, less, share = coils.compressed(kspace, calibration, along_readout)
    assert share >= coils.KEPT
    assert len(fewer) == len(less) < 12
    energy = less.norm() ** 2 / calibration.norm() ** 2
    assert float(energy) == pytest.approx(share, abs=1e-3)
    noise = noise_of(kspace.shape, generator)
    if along_readout:
        matrix, _ = coils.compression_along_readout(hybrid(calibration))
        assert matrix.shape == (SHAPE[0], len(fewer), 12)
    else:
        matrix, _ = coils.compression(calibration)
    rows = matrix @ matrix.mH
    assert torch.allclose(rows, torch.eye(len(fewer)).to(rows).expand_as(rows), atol=1e-5)
    assert float(coils.mixed(matrix, noise).abs().square().mean()) == pytest.approx(1, abs=0.05)


def test_compression_along_readout_needs_no_more_coils_and_stays_smooth(generator):
    *_, kspace = scan_of(12, SHAPE, 0.002, generator)
    columns = hybrid(calibration_of(kspace, 16))
    matrix, _ = coils.compression_along_readout(columns)
    assert matrix.shape[1] <= len(coils.compression(calibration_of(kspace, 16))[0])
    seen = maps_of(12, SHAPE) * image_of(SHAPE)
    virtual = coils.mixed(matrix, seen)
    plain = seen.diff(dim=-2).norm() / seen.norm()
    assert virtual.diff(dim=-2).norm() / virtual.norm() < 1.1 * plain


@pytest.mark.parametrize('shape', [(33, 40), (32, 41)])
def test_espirit_finds_the_coils_where_there_is_an_object(shape, generator):
    image, maps, kspace = scan_of(6, shape, 0.01, generator)
    found = coils.espirit(calibration_of(kspace, 20), shape)
    assert float(agreement(found, maps, image).mean()) > 0.999
    assert float(agreement(found, maps, image).min()) > 0.99


def test_windowed_images_are_better_from_few_lines_and_espirit_from_more(generator):
    image, maps, kspace = scan_of(8, (32, 64), 0.01, generator)
    worst = {}
    for lines in (7, 13):
        calibration = calibration_of(kspace, lines)
        for method in (coils.espirit, coils.low_resolution_maps):
            found = method(calibration, (32, 64))
            worst[lines, method.__name__] = float(agreement(found, maps, image).min())
    assert worst[7, 'espirit'] < worst[7, 'low_resolution_maps']
    assert worst[13, 'espirit'] > worst[13, 'low_resolution_maps']
    assert coils.coil_maps(calibration_of(kspace, 7), (32, 64))[1] == 'low-resolution images'
    assert coils.coil_maps(calibration_of(kspace, 13), (32, 64))[1] == 'ESPIRiT'


@pytest.mark.parametrize('method', [coils.espirit, coils.low_resolution_maps])
@pytest.mark.parametrize('n', [1, 4])
def test_squares_of_maps_sum_to_one_everywhere(method, n, generator):
    *_, kspace = scan_of(n, SHAPE, 0.01, generator)
    found = method(calibration_of(kspace, 14), SHAPE)
    assert found.shape == (n, *SHAPE)
    assert torch.allclose(found.abs().square().sum(0), torch.ones(SHAPE), atol=1e-5)


@pytest.mark.parametrize('method', [coils.espirit, coils.low_resolution_maps])
def test_scale_and_phase_of_a_scan_are_none_of_its_coils(method, generator):
    *_, kspace = scan_of(4, SHAPE, 0.01, generator)
    calibration = calibration_of(kspace, 14)
    here = method(calibration, SHAPE)
    there = method(1000 * torch.exp(torch.tensor(2.1j)) * calibration, SHAPE)
    assert (here - there).abs().max() < 1e-3


@pytest.mark.parametrize('method', [coils.espirit, coils.low_resolution_maps])
def test_maps_move_with_the_object(method, generator):
    shape = (32, 36)
    *_, kspace = scan_of(4, shape, 0.0, generator)
    step = torch.exp(-2j * torch.pi * (torch.arange(36) - 18) / 36)  # by one voxel
    here = method(calibration_of(kspace, 14), shape).roll(1, -1)
    there = method(calibration_of(kspace * step, 14), shape)
    image = image_of(shape).roll(1, -1)
    assert float(agreement(here, there, image).min()) > 0.9999


def test_an_empty_calibration_gives_coils_that_see_alike():
    found = coils.low_resolution_maps(torch.zeros(4, 9, 8, dtype=torch.complex64), (16, 15))
    assert torch.allclose(found, torch.full_like(found, 0.5))


def test_the_phase_of_the_middle_is_that_of_the_object_where_it_turns_slowly(generator):
    image, maps, kspace = scan_of(4, (48, 48), 0.0, generator)
    phase = coils.low_resolution_phase(calibration_of(kspace, 15), maps)
    inside = image.abs() > 0
    off = (phase * image.conj())[inside].angle().abs()
    assert torch.allclose(phase.abs(), torch.ones(48, 48), atol=1e-5)
    assert float(off.mean()) < 0.05


def test_hybrid_space_is_what_is_left_of_k_space_along_readout(generator):
    kspace = noise_of((3, *SHAPE), generator)
    assert torch.allclose(ALONG_READOUT(hybrid(kspace)), kspace, atol=1e-5)
