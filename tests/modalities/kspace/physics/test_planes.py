"""Slices and slabs become problems in two dimensions; none of them loses what was measured."""

from __future__ import annotations

import pytest
import torch

from bidsapp.modalities.kspace.physics import measured, sampling
from bidsapp.modalities.kspace.physics.fourier import BOTH
from bidsapp.modalities.kspace.physics.planes import planes_of
from bidsapp.physics.operators import Fourier
from tests.modalities.kspace.phantom import error, noise_of, scan_of

SHAPE, SIGMA = (40, 48), 0.02


@pytest.fixture
def whole(generator):
    """The phantom, and all of its k-space of 6 coils."""
    image, _, kspace = scan_of(6, SHAPE, SIGMA, generator)
    weights = torch.ones(1, SHAPE[1], 1)
    return image, measured.Measured(kspace[..., None], weights, kspace[..., None], SIGMA)


def test_a_full_scan_comes_back(whole):
    image, scan = whole
    planes = planes_of(scan)
    assert planes.count == 1
    assert not planes.held
    plane = planes.at(0)
    assert error(plane.zero_filled, image) < 0.04
    assert plane.residual() == pytest.approx(1, abs=0.1)
    assert not plane.left_out(torch.Generator())  # nothing is outside the middle


def test_lines_left_out_are_predicted_to_their_noise_by_all_but_zero_filling(whole, generator):
    image, scan = whole
    some = measured.undersampled(scan, sampling.retrospective((48, 1), 6, 2, generator))
    plane = planes_of(some).at(0)
    assert plane.axes == 1
    found, said = plane.classical(), plane.left_out(generator)
    assert set(said) == {'sense', 'tv', 'wavelet'} == set(found) - {'zerofilled'}
    for name, value in said.items():
        assert 0.5 < value < 3
        assert error(found[name], image) < error(found['zerofilled'], image)


def test_of_partial_fourier_the_held_phase_gives_back_what_is_missing(whole):
    """Maps are of the symmetric middle: off the origin they would be of nothing."""
    image, scan = whole
    some = measured.undersampled(scan, sampling.partial_fourier(48, 5 / 8)[None, :, None])
    planes = planes_of(some)
    assert planes.held
    plane = planes.at(0)
    assert plane.residual() == pytest.approx(1, abs=0.15)
    found = plane.classical()
    assert error(found['tv'], image) < 0.6 * error(found['zerofilled'], image)


def test_an_asymmetric_echo_is_a_mask_of_samples(whole):
    image, scan = whole
    weights = torch.ones(40, 48, 1)
    weights[:12] = 0
    block = measured.block_about_origin(scan.kspace * weights, weights)
    some = measured.Measured(scan.kspace * weights, weights, block, SIGMA)
    plane = planes_of(some).at(0)
    assert plane.axes == 2
    assert error(plane.classical()['tv'], image) < error(plane.zero_filled, image)


def test_a_slab_is_planes_along_readout(generator):
    """A point in each of two planes lies there, and nowhere else."""
    image = torch.zeros(10, 24, 20, dtype=torch.complex64)
    image[3, 10, 8], image[7, 14, 12] = 10, 5
    coils = torch.tensor([1.0, 0.5])[:, None, None, None] * image
    kspace = Fourier((-3,))(BOTH(coils)) + 1e-3 * noise_of(coils.shape, generator)
    planes = planes_of(measured.Measured(kspace, torch.ones(1, 24, 20), kspace, 1e-3))
    assert planes.count == 10
    found = torch.stack([planes.at(n).zero_filled.abs() for n in range(10)])
    size = (1 + 0.5**2) ** 0.5
    assert torch.allclose(found, size * image.abs(), atol=0.1)
