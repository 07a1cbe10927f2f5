"""Coarser voxels keep what is conserved and average noise; directions come from measured shells."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from bidsapp.modalities.dwi.physics.downsampling import (
    N_HARMONICS,
    ORDER,
    coarser,
    coarser_noddi,
    sampling,
    signal_harmonics,
)
from bidsapp.modalities.dwi.physics.gradients import GradientTable
from bidsapp.modalities.dwi.physics.harmonics import basis, fibonacci_hemisphere
from bidsapp.modalities.dwi.physics.qspace import interpolation

RATIO = 1.92


def kernels(shape, ratio=RATIO, first=-2.0):
    counts = [math.ceil((n + 4) / ratio) for n in shape]
    return [sampling(n, ratio, c, first) for n, c in zip(shape, counts, strict=True)]


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(4)


@pytest.fixture
def ball():
    grid = torch.stack(torch.meshgrid(*[torch.arange(24.0)] * 3, indexing='ij'))
    return ((grid - 11.5).norm(dim=0) < 9).float()


class TestSpace:
    def test_a_constant_stays_constant_to_the_edge_of_the_brain(self, ball):
        volume = torch.where(ball > 0, 7.0, 1000.0)[None]
        values, share = coarser(volume, ball, kernels(ball.shape))
        assert torch.allclose(values[0][share >= 0.5], torch.tensor(7.0), rtol=1e-5)
        assert share.min() >= 0
        assert share.max() <= 1 + 1e-5

    def test_the_weighted_sum_is_kept(self, ball, generator):
        """Each coarse voxel stands for ratio³ fine ones."""
        volume = 1 + torch.rand(1, 24, 24, 24, generator=generator)
        values, share = coarser(volume, ball, kernels(ball.shape))
        before, after = (volume[0] * ball).sum(), (values[0] * share).sum() * RATIO**3
        assert after == pytest.approx(float(before), rel=5e-3)
        assert share.sum() * RATIO**3 == pytest.approx(float(ball.sum()), rel=5e-3)

    @pytest.mark.parametrize('ratio', [1.5, 2.0, 3.0])
    def test_noise_falls_as_a_gaussian_of_that_width_averages(self, generator, ratio):
        """Σ w² of a Gaussian of standard deviation s voxels is 1 / (2 s √π) along each axis."""
        noise = torch.randn(1, 60, 60, 60, generator=generator)
        values, share = coarser(noise, torch.ones(60, 60, 60), kernels(noise.shape[1:], ratio))
        inside = values[0][share > 0.999]
        s = ratio / math.sqrt(8 * math.log(2))
        assert float(inside.std()) == pytest.approx((2 * s * math.sqrt(math.pi)) ** -1.5, rel=0.1)

    def test_a_point_becomes_as_wide_as_the_new_voxel(self):
        line = torch.zeros(1, 41, 1, 1)
        line[0, 20] = 1
        one = sampling(1, 1, 1, 0)
        fine = [sampling(41, 4, 1, first) for first in torch.arange(10, 28, 0.5).tolist()]
        profile = [float(coarser(line, torch.ones(41, 1, 1), [k, one, one])[0]) for k in fine]
        above = sum(value >= 0.5 * max(profile) for value in profile) * 0.5
        assert above == pytest.approx(4, abs=0.5)

    def test_places_are_kept(self):
        """A ramp in mm is the same ramp on the coarse grid."""
        ramp = torch.arange(30.0)[:, None, None].expand(30, 3, 3)[None]
        one = sampling(3, 1, 3, 0)
        values, share = coarser(ramp, torch.ones(30, 3, 3), [sampling(30, 2.5, 12, 0), one, one])
        places = (torch.arange(12) + 0.5) * 2.5 - 0.5
        inside = share[:, 1, 1] > 0.999
        assert torch.allclose(values[0, inside, 1, 1], places[inside], atol=0.02)

    def test_an_axis_that_is_not_made_coarser_is_left_alone(self, generator):
        volume = torch.rand(2, 5, 6, 7, generator=generator)
        same = [sampling(n, 1, n, 0) for n in (5, 6, 7)]
        assert torch.equal(coarser(volume, torch.ones(5, 6, 7), same)[0], volume)

    @pytest.mark.parametrize('ratio', [1, 1.6])
    def test_what_lies_beyond_the_line_is_missing(self, ratio):
        """A block may begin before the first voxel and end after the last."""
        line = torch.ones(1, 10, 1, 1)
        one = sampling(1, 1, 1, 0)
        kernel = sampling(10, ratio, 30, -8 * ratio)
        values, share = coarser(line, torch.ones(10, 1, 1), [kernel, one, one])
        assert share[:4].max() < 1e-3
        assert share[-4:].max() < 1e-3
        assert float(share.sum()) == pytest.approx(10 / ratio, rel=1e-2)
        assert torch.allclose(values[0][share > 0.5], torch.tensor(1.0))

    def test_shorter_voxels_are_refused(self):
        with pytest.raises(ValueError, match='only become longer'):
            sampling(10, 0.9, 5, 0)


class TestLabels:
    def test_water_does_not_dilute_the_tissue_beside_it(self):
        """Half tissue of density 0.6, half free water: 0.6, and half of the signal is water."""
        maps = torch.zeros(3, 8, 8, 8)
        maps[0, :4], maps[1, :4] = 0.6, 0.2
        maps[2, 4:] = 1
        whole = [torch.full((1, 8), 1 / 8)] * 3
        found = coarser_noddi(maps, torch.ones(8, 8, 8), torch.ones(8, 8, 8), whole)
        assert found.flatten().tolist() == pytest.approx([0.6, 0.2, 0.5], abs=1e-5)

    def test_free_water_has_no_density_and_the_outside_nothing(self):
        maps = torch.zeros(3, 8, 8, 8)
        maps[2] = 1
        whole = [torch.full((1, 8), 1 / 8)] * 3
        one = torch.ones(8, 8, 8)
        assert coarser_noddi(maps, one, one, whole).flatten().tolist() == pytest.approx([-1, -1, 1])
        assert (coarser_noddi(maps, one, 0 * one, whole) == -1).all()


def tensor_signal(gtab, axis=(0.6, 0.0, 0.8)):
    """S of one fibre population with S0 = 500."""
    along = (gtab.bvecs @ np.array(axis)) ** 2
    return 500 * np.exp(-gtab.bvals * 1e-3 * (0.3 + 1.4 * along))


def scheme(n, shells=(1000.0, 2000.0), turn=None):
    turn = np.eye(3) if turn is None else turn
    vectors = [np.zeros((2, 3))] + [fibonacci_hemisphere(n) @ turn for _ in shells]
    return GradientTable(np.concatenate(vectors), np.r_[0.0, 0.0, np.repeat(shells, n)])


class TestDirections:
    def test_harmonics_are_the_dictionarys_interpolation_at_any_direction(self, rng):
        gtab = scheme(30)
        signal = tensor_signal(gtab) * (1 + 0.05 * rng.standard_normal(len(gtab)))
        other = GradientTable(fibonacci_hemisphere(17)[:, [2, 0, 1]], np.full(17, 2000.0))
        s0 = signal[:2].mean()
        expected = s0 * interpolation(gtab[2:], other, 1e-3, 2)(signal[2:] / s0)
        harmonics = signal_harmonics(gtab, 1e-3)[2000.0] @ signal
        assert np.allclose(basis(other.bvecs, ORDER) @ harmonics, expected, rtol=1e-4, atol=0.05)

    def test_a_noise_free_fibre_is_found_at_directions_never_measured(self):
        gtab = scheme(60)
        maps = signal_harmonics(gtab, 1e-6)
        turn = np.linalg.qr(np.arange(9.0).reshape(3, 3) ** 2 + np.eye(3))[0]
        other = scheme(21, turn=turn)
        for b in (1000.0, 2000.0):
            there = other[other.bvals == b]
            found = basis(there.bvecs, ORDER) @ (maps[b] @ tensor_signal(gtab))
            assert np.abs(found - tensor_signal(there)).max() < 0.01 * 500

    def test_only_shells_that_were_measured(self):
        assert list(signal_harmonics(scheme(20, (700.0, 2600.0)), 1e-3)) == [700.0, 2600.0]

    def test_twice_the_signal_is_twice_the_harmonics(self):
        matrix = signal_harmonics(scheme(12), 1e-3)[1000.0]
        assert matrix.shape == (N_HARMONICS, 26)
        signal = tensor_signal(scheme(12))
        assert np.allclose(matrix @ (2 * signal), 2 * (matrix @ signal))
