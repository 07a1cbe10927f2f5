"""Scalar maps with their uncertainty: what is written, scored and calibrated."""

from __future__ import annotations

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch

from bidsapp.core import Case, Sample
from bidsapp.modalities.dwi.learn.scalars import (
    INTERVALS,
    Scalars,
    line_of,
    scalar_map,
    uncertainty_of,
)

ONE, TWO = (scalar_map(name, name, 'fit', f'Map {name}.', name) for name in ('one', 'two'))
MAPS = Scalars((ONE, TWO), -1.0, 4.0)
SHAPE = (5, 6, 7)


@pytest.fixture
def sample():
    mask = torch.zeros(1, *SHAPE, dtype=torch.bool)
    mask[:, 1:4, 1:5, 1:6] = True
    return Sample(torch.zeros(2, *SHAPE), mask, np.diag([2.0, 2.0, 2.0, 1.0]))


def test_each_map_has_an_uncertainty_of_its_own_name():
    assert [o.name for o in MAPS.writes] == ['one', 'two', 'one_uncertainty', 'two_uncertainty']
    assert MAPS.writes[2].entities == {**ONE.entities, 'desc': 'uncertainty'}
    assert uncertainty_of(ONE, ' And so on.').description.endswith('learnt. And so on.')


def test_what_is_written_lies_in_the_range_and_in_the_brain(sample):
    output = torch.zeros(4, *SHAPE)
    output[0], output[1], output[3] = 9, -9, 9
    arrays = MAPS.finish({'any': output}, sample, Case({}, {}))
    inside = sample.mask[0].numpy()
    for name, value in {'one': 4, 'two': -1, 'one_uncertainty': 1, 'two_uncertainty': 1}.items():
        assert (arrays[name][inside] == value).all()
        assert not arrays[name][~inside].any()


def test_a_label_is_loaded_where_all_its_maps_are_there(sample, tmp_path):
    values = np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)
    nib.save(nib.Nifti1Image(values, sample.affine), tmp_path / 'map.nii')
    files = {'one': tmp_path / 'map.nii', 'two': tmp_path / 'map.nii'}
    target = MAPS.load(sample, Case({}, files)).target
    assert np.array_equal(target[1], values)
    assert MAPS.load(sample, Case({}, {'one': files['one']})).target is None


def test_errors_count_where_the_label_is_known(sample):
    target = torch.full((2, *SHAPE), 2.0)
    target[1, 2] = 0
    output = torch.cat([target + 0.5, torch.zeros(2, *SHAPE)])
    output[1, 2] = 3
    rows = MAPS.metrics(output, replace(sample, target=target))
    assert [(name, value) for _, name, value in rows] == [('all', 0.5), ('one', 0.5), ('two', 0.5)]


def test_calibration_makes_two_thirds_of_the_errors_lie_within_one_deviation(sample):
    generator = torch.Generator().manual_seed(0)
    target = torch.ones(2, *SHAPE)
    target[1] = 0  # known nowhere
    output = torch.zeros(4, *SHAPE)
    output[:2] = 1 + 0.2 * torch.randn(2, *SHAPE, generator=generator)
    factor, shift = MAPS.calibrate([output], [replace(sample, target=target)])
    assert factor.tolist() == [1] * 4
    assert shift[[0, 1, 3]].tolist() == [0, 0, 0]
    assert np.exp(float(shift[2])) == pytest.approx(0.2, rel=0.3)


@pytest.mark.parametrize('tails', [np.inf, 8.0])
@pytest.mark.parametrize('power', [0.5, 1.0, 1.6])
def test_calibrated_intervals_hold_in_each_third_of_what_is_stated(power, tails, rng):
    n = 60_000
    log_sd = rng.normal(-3, 0.5, n)
    drawn = rng.normal(size=n) if np.isinf(tails) else rng.standard_t(tails, n)
    error = np.abs(drawn) * np.exp(power * log_sd + 0.4)
    factor, shift = line_of(torch.from_numpy(error), torch.from_numpy(log_sd))
    assert factor == pytest.approx(power, abs=0.15)
    stated = np.exp(factor * log_sd + shift)
    for third in np.array_split(np.argsort(stated), 3):
        for (share, within), slack in zip(INTERVALS, (0.05, 0.025), strict=True):
            found = (error <= within * stated)[third].mean()
            assert found == pytest.approx(share, abs=slack)


def test_few_errors_move_the_level_only(rng):
    log_sd = torch.from_numpy(rng.normal(-3, 0.5, 100))
    factor, _ = line_of(torch.from_numpy(np.abs(rng.normal(size=100))) * 0.1, log_sd)
    assert factor == 1
