"""Volumes that carry nothing, part of a head or another gain: found among those that vary."""

from __future__ import annotations

import numpy as np
import pytest

from bidsapp.modalities.dwi.physics.gradients import GradientTable
from bidsapp.modalities.dwi.physics.harmonics import fibonacci_hemisphere
from bidsapp.modalities.dwi.physics.tables import examine, without
from bidsapp.modalities.dwi.physics.volumes import unusable, without_numbers

SHAPE = (20, 22, 16)


def run(n_b0=3, n=20, b=1000.0):
    """A ball of fibres, along each axis in a third of it, in noise at an SNR of 20."""
    rng = np.random.default_rng(1)
    vectors = np.vstack([np.zeros((n_b0, 3)), fibonacci_hemisphere(n)])
    gtab = GradientTable(vectors, np.r_[np.zeros(n_b0), np.full(n, b)])
    x, y, z = np.moveaxis((np.moveaxis(np.indices(SHAPE), 0, -1) - np.array(SHAPE) / 2), -1, 0)
    head = (x / 8) ** 2 + (y / 9) ** 2 + (z / 6) ** 2 < 1
    along = gtab.bvecs.T[np.indices(SHAPE).sum(0) % 3]
    decay = np.exp(-gtab.bvals * 1e-3 * (0.4 + 0.9 * along**2))
    noise = rng.normal(scale=1 / 20, size=(2, *SHAPE, len(gtab)))
    data = 500 * np.hypot(head[..., None] * decay + noise[0], noise[1])
    return data.astype(np.float32), gtab


def spoiled(name, v, data):
    rng = np.random.default_rng(2)
    if name == 'zeros':
        data[..., v] = 0
    elif name == 'dark':
        data[..., v] *= 0.01
    elif name == 'one value':
        data[..., v] = 7
    elif name == 'aborted':
        data[:, :, 9:, v] = 0
    elif name == 'aborted into noise':
        data[:, :, 9:, v] = 5 * np.abs(rng.normal(size=data[:, :, 9:, v].shape))
    elif name == 'every second slice':
        data[:, :, ::2, v] = 0
    elif name == 'half gain':
        data[..., v] *= 0.5
    elif name == 'three times the gain':
        data[..., v] *= 3
    elif name == 'noise alone':
        data[..., v] = np.abs(rng.normal(scale=300, size=SHAPE))
    elif name == 'elsewhere':
        data[..., v] = np.roll(data[..., v], SHAPE[0] // 2, axis=0)


@pytest.mark.parametrize('volume', [0, 2, 10, 22])
@pytest.mark.parametrize('name', [
    'zeros', 'dark', 'one value', 'aborted', 'aborted into noise', 'every second slice',
    'half gain', 'three times the gain', 'noise alone', 'elsewhere',
])  # fmt: skip
def test_one_bad_volume_is_found_and_no_other(name, volume):
    data, gtab = run()
    spoiled(name, volume, data)
    assert list(unusable(data, gtab)) == [volume]


@pytest.mark.parametrize(('n_b0', 'n', 'b'), [(1, 6, 1000), (2, 30, 3000), (7, 13, 700)])
def test_sound_runs_lose_nothing(n_b0, n, b):
    assert unusable(*run(n_b0, n, b)) == {}


def test_several_bad_volumes_do_not_hide_each_other():
    data, gtab = run()
    for volume, name in ((1, 'zeros'), (8, 'dark'), (15, 'aborted'), (20, 'half gain')):
        spoiled(name, volume, data)
    found = unusable(data, gtab)
    assert list(found) == [1, 8, 15, 20]
    assert 'missing' in found[15]
    assert 'gain' in found[20]


def test_the_only_other_b0_may_be_the_bad_one():
    data, gtab = run(n_b0=2)
    spoiled('dark', 0, data)
    assert list(unusable(data, gtab)) == [0]


def test_few_dropped_slices_of_a_large_shell_are_left_to_be_predicted():
    data, gtab = run()
    data[:, :, 8, 12] = 0
    assert unusable(data, gtab) == {}
    small, table = run(n=6)
    small[:, :, 8, 5] = 0
    assert list(unusable(small, table)) == [5]


def test_a_slice_of_nan_is_its_volumes_and_scattered_nan_are_not():
    data, _ = run()
    data[:, :, 3, 4] = np.nan
    data[2, 2, 2, 6] = np.inf
    assert list(without_numbers(data)) == [4]


def test_what_is_left_is_named_by_its_number_in_the_image_and_must_determine_a_tensor():
    _, gtab = run(n_b0=2, n=8)
    table = examine(gtab.bvecs.T, gtab.bvals, len(gtab), excluded=[3])
    left = without(table, {5: 'empty', 1: 'empty'})
    assert left.kept.tolist() == [0, 2, 4, 6, 7, 8, 9]
    assert not left.errors
    assert list(left.left_out) == [3, 5, 1]
    said = [f.message for f in left.findings if f.code == 'VOLUME_LEFT_OUT']
    assert said[1] == 'volumes 1, 5 (counted from 0), left out: empty'
    assert any('tensor' in error for error in without(left, {7: 'empty'}).errors)
    assert without(left, {0: 'empty'}).errors
