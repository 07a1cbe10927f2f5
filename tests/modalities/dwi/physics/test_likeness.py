"""A scan made like another: measured volumes, longer voxels, the noise that was asked for."""

from __future__ import annotations

import numpy as np
import pytest

from bidsapp.modalities.dwi.physics.gradients import GradientTable
from bidsapp.modalities.dwi.physics.harmonics import fibonacci_hemisphere
from bidsapp.modalities.dwi.physics.likeness import (
    coarse_grid,
    interpolated,
    mean_fibres,
    nearest_volumes,
    noise_of,
    noisier,
    out_of_reach,
    world_order,
)
from bidsapp.physics.geometry import voxel_sizes


def table(*shells, b0=3):
    """Shells of (b, directions) after ``b0`` volumes without weighting."""
    vectors = [np.zeros((b0, 3)), *(fibonacci_hemisphere(n) for _, n in shells)]
    values = [np.zeros(b0), *(np.full(n, float(b)) for b, n in shells)]
    return GradientTable(np.concatenate(vectors), np.concatenate(values))


def turned(gtab, rng):
    """The same scheme at another angle, every other vector reversed."""
    rotation, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    signs = np.where(np.arange(len(gtab)) % 2, -1.0, 1.0)[:, None]
    return GradientTable(signs * gtab.bvecs @ rotation.T, gtab.bvals)


def tissue(gtab, shape=(22, 24, 20), s0=500.0):
    """One fibre along x in all voxels, brighter to one side."""
    diffusivity = 0.3e-3 + 1.4e-3 * gtab.bvecs[:, 0] ** 2
    bright = s0 * (1 + 0.2 * np.linspace(-1, 1, shape[0]))[:, None, None, None]
    signal = bright * np.exp(-gtab.bvals * diffusivity)
    return np.broadcast_to(signal, (*shape, len(gtab))).astype(np.float32)


def magnitude(clean, sigma, rng):
    return np.hypot(clean + sigma * rng.standard_normal(clean.shape),
                    sigma * rng.standard_normal(clean.shape)).astype(np.float32)  # fmt: skip


class TestVolumes:
    def test_each_is_taken_once_and_of_its_shell(self, rng):
        gtab = table((1000, 40), (2000, 60))
        wanted = turned(table((990, 12), (2050, 20), b0=2), rng)
        chosen = nearest_volumes(gtab, wanted)
        assert not chosen.missing
        assert len(set(chosen.volumes.tolist())) == len(chosen.volumes) == len(wanted)
        assert [n for _, n in _shells(gtab[chosen.volumes])] == [12, 20]
        assert gtab.b0[chosen.volumes].sum() == 2

    def test_what_was_measured_is_found_again_up_to_sign(self, rng):
        gtab = table((1000, 40), (2000, 60))
        some = np.sort(rng.permutation(np.arange(3, 103))[:30])
        wanted = GradientTable(-gtab.bvecs[some], gtab.bvals[some])
        chosen = nearest_volumes(gtab, wanted)
        assert chosen.volumes.tolist() == some.tolist()
        assert chosen.degrees.max() < 1e-3

    def test_together_they_lie_nearer_than_one_after_the_other(self, rng):
        """Two wanted directions that share a nearest one: the assignment minds both."""
        own = np.array([[1, 0, 0], [0.94, 0.34, 0], [0, 1, 0], [0, 0, 1.0]])
        gtab = GradientTable(own / np.linalg.norm(own, axis=1)[:, None], np.full(4, 1000.0))
        asked = np.array([[0.999, 0.04, 0], [0.98, -0.2, 0]])
        wanted = GradientTable(asked / np.linalg.norm(asked, axis=1)[:, None], np.full(2, 1e3))
        assert nearest_volumes(gtab, wanted).volumes.tolist() == [0, 1]

    def test_what_is_not_to_be_taken_is_not(self):
        gtab = table((1000, 30))
        usable = np.ones(len(gtab), bool)
        usable[[0, 5, 6]] = False
        chosen = nearest_volumes(gtab, table((1000, 27), b0=3), usable)
        assert not set(chosen.volumes.tolist()) & {0, 5, 6}

    def test_too_few_and_no_shell_are_said(self):
        gtab = table((1000, 10), (2000, 30))
        chosen = nearest_volumes(gtab, table((1000, 12), (1500, 6), (2000, 6)))
        assert len(chosen.missing) == 2
        assert 'the run has 10' in chosen.missing[0]
        assert 'b=1500' in chosen.missing[1]

    def test_only_between_what_was_measured_is_anything_interpolated(self):
        gtab = table((1000, 30), (2000, 30))
        assert not out_of_reach(gtab, table((980, 6), (1500, 6), (2050, 6)))
        assert out_of_reach(gtab, table((700, 6), (3000, 6))) == [700.0, 3000.0]

    def test_interpolation_gives_the_signal_of_directions_that_were_not_measured(self, rng):
        gtab, wanted = table((1000, 60), (2000, 60)), turned(table((1400, 8), b0=1), rng)
        found, made = interpolated(tissue(gtab), gtab, wanted, 1e-4)
        assert len(made) == found.shape[-1] == 9
        assert np.array_equal(made.bvecs[1:], wanted.bvecs[1:])
        expected = tissue(made)
        error = np.abs(found - expected)[..., 1:] / expected[..., :1]
        assert error.mean() < 0.03


class TestVoxels:
    @pytest.mark.parametrize('codes', ['RAS', 'LAS', 'PSR'])
    def test_they_measure_what_is_asked_in_the_world(self, affine_of, codes):
        affine, shape = affine_of(codes, True), (20, 22, 18)
        own = voxel_sizes(affine)[list(world_order(affine))]
        wanted = own * [1.5, 1.0, 1.8]
        grid = coarse_grid(shape, affine, wanted)
        assert np.allclose(voxel_sizes(grid.affine)[list(world_order(grid.affine))], wanted)

    def test_a_mean_lies_where_its_affine_says(self, affine_of):
        """Coordinates averaged over longer voxels are the coordinates of these."""
        affine, shape = affine_of('LAS', True), (20, 22, 18)
        grid = coarse_grid(shape, affine, voxel_sizes(affine)[list(world_order(affine))] * 1.7)
        place = np.stack(np.meshgrid(*map(np.arange, shape), indexing='ij'), -1)
        world = place @ affine[:3, :3].T + affine[:3, 3]
        mean, share = grid(world.astype(np.float32), np.ones(shape, np.float32))
        index = np.stack(np.meshgrid(*map(np.arange, mean.shape[:3]), indexing='ij'), -1)
        expected = index @ grid.affine[:3, :3].T + grid.affine[:3, 3]
        inner = share > 0.99
        assert inner.sum() > 100
        assert np.abs(mean - expected)[inner].max() < 0.02

    def test_the_last_digits_of_an_affine_make_no_other_grid(self):
        affine = np.diag([6.0, 6, 6, 1])
        shapes = {
            tuple(len(k) for k in coarse_grid((30, 30, 30), affine, (edge,) * 3).kernels)
            for edge in (8.0, 8.0 - 1e-6, 8.0 + 1e-6)
        }
        assert len(shapes) == 1

    def test_never_shorter_and_a_hair_longer_is_the_same(self, affine_of):
        affine, shape = affine_of('RAS', False), (20, 22, 18)
        grid = coarse_grid(shape, affine, voxel_sizes(affine) * [0.5, 1.01, 1])
        assert grid.same
        values = np.random.default_rng(0).random(shape).astype(np.float32)
        assert np.array_equal(grid(values, np.ones(shape, np.float32))[0], values)
        assert np.allclose(grid.affine, affine)


class TestNoise:
    @pytest.mark.parametrize(('wanted', 'directions'), [(0.05, 30), (0.10, 12)])
    def test_it_is_reached(self, wanted, directions, rng):
        gtab = table((1000, directions))
        data, brain = magnitude(tissue(gtab), 8.0, rng), np.ones((22, 24, 20), bool)
        made = noisier(data, gtab, brain, wanted**2, 'sub-01')
        assert np.sqrt(noise_of(made.data, gtab, brain)) == pytest.approx(wanted, rel=0.1)
        assert made.before < made.after == noise_of(made.data, gtab, brain)
        assert (made.data >= 0).all()

    def test_it_is_the_same_twice_and_another_of_another_run(self, rng):
        gtab = table((1000, 12))
        data, brain = magnitude(tissue(gtab), 8.0, rng), np.ones((22, 24, 20), bool)
        first, again, other = (
            noisier(data, gtab, brain, 0.08**2, name).data for name in ('a', 'a', 'b')
        )
        assert np.array_equal(first, again)
        assert not np.array_equal(first, other)

    def test_a_scan_that_is_noisier_stays_as_it_is(self, rng):
        gtab = table((1000, 12))
        data, brain = magnitude(tissue(gtab), 60.0, rng), np.ones((22, 24, 20), bool)
        made = noisier(data, gtab, brain, 0.05**2, 'a')
        assert np.array_equal(made.data, data)
        assert made.sigma == 0
        assert made.after > 0.05**2


class TestFibres:
    """Four voxels along x become two."""

    def grid(self):
        affine = np.diag([1.0, 2, 2, 1])
        return coarse_grid((24, 6, 6), affine, (2.0, 2.0, 2.0))

    def fibres(self, *vectors):
        """The run's left half holds the first vector, the right the second."""
        found = np.zeros((24, 6, 6, 9), np.float32)
        for half, vector in zip((slice(0, 12), slice(12, 24)), vectors, strict=True):
            found[half, ..., :3] = np.array(vector, np.float32) / np.linalg.norm(vector)
        return found

    def test_directions_are_means_up_to_sign(self):
        fibres = self.fibres((1, 0.3, 0), (1, 0.3, 0))
        fibres[1::2] *= -1
        found = mean_fibres(fibres, np.ones((24, 6, 6), bool), self.grid())
        axis = np.array([1, 0.3, 0]) / np.linalg.norm([1, 0.3, 0])
        assert found.shape == (12, 6, 6, 9)
        assert np.abs(found[..., :3] @ axis).min() > 0.9999
        assert not found[..., 3:].any()

    def test_bundles_side_by_side_cross_in_a_long_voxel(self):
        fibres = self.fibres((1, 0, 0), (0, 1, 0))
        affine = np.diag([1.0, 2, 2, 1])
        grid = coarse_grid((24, 6, 6), affine, (8.0, 2.0, 2.0))
        found = mean_fibres(fibres, np.ones((24, 6, 6), bool), grid)
        count = (np.linalg.norm(found.reshape(3, 6, 6, 3, 3), axis=-1) > 0.5).sum(-1)
        assert (count[[0, 2]] == 1).all()
        assert (count[1] == 2).all()

    def test_none_where_most_of_a_voxel_holds_none(self):
        fibres = self.fibres((1, 0, 0), (1, 0, 0))
        fibres[12:] = 0
        found = mean_fibres(fibres, np.ones((24, 6, 6), bool), self.grid())
        assert found[:5].any(-1).all()
        assert not found[7:].any()


def _shells(gtab):
    return [(b, len(members)) for b, members in gtab.shells()]
