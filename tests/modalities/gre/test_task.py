"""The task of susceptibility: what is written of a network's output, and what label it learns."""

from __future__ import annotations

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch

from bidsapp import registry
from bidsapp.bids.prepared import find_prepared
from bidsapp.core import Sample
from bidsapp.modalities.gre.bids.prepared import load_fields
from tests.modalities.gre.skeletons import affine_of, image
from tests.modalities.prepared import PREPARED


@pytest.fixture
def task():
    return registry.task('susceptibility')


@pytest.fixture
def case(tmp_path):
    PREPARED['gre'](tmp_path, affine_of())
    (found,) = find_prepared(tmp_path, 'gre')
    return found


@pytest.fixture
def sample(case):
    """Of the mask of ``case``, cut to a box and turned, as inputs may be."""
    mask = nib.load(case.files['mask'])
    inside = np.asanyarray(mask.dataobj)[::-1, :, 1:] > 0
    affine = mask.affine @ np.array(
        [[-1, 0, 0, inside.shape[0] - 1], [0, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 1.0]]
    )
    kept = torch.from_numpy(inside.copy())[None]
    return Sample(kept.float(), kept, affine)


def test_a_prediction_is_0_in_the_mask_and_its_deviation_in_ppm(task, case, sample):
    shape = sample.mask.shape[1:]
    output = torch.stack([torch.full(shape, 0.7), torch.full(shape, np.log(0.02))])
    output[0, 5, 6, 5] += 0.1
    arrays = task.finish({'susceptibility': output}, sample, case)
    inside = sample.mask[0].numpy()
    assert arrays['chi'][inside].mean() == pytest.approx(0, abs=1e-6)
    assert not arrays['chi'][~inside].any()
    assert arrays['chi_uncertainty'][inside] == pytest.approx(0.02)
    said = task.details(arrays)['chi']
    assert said['SusceptibilityReference'] == 'mean of the mask'
    assert said['ReferenceOffset'] == pytest.approx(0.7, abs=0.01)


def test_a_prediction_is_0_where_the_reference_is(task, case, sample, tmp_path):
    """The region lies on the grid of the run, the sample on one that is turned and cut."""
    labels = np.zeros(nib.load(case.files['mask']).shape)
    labels[3:6, 5:8, 4:7] = 2
    path = image(tmp_path / 'sub-01_dseg.nii.gz', labels)
    case = replace(case.with_files(dseg=path), part={'reference': 'Fluid', 'index': 2})
    output = torch.zeros(2, *sample.mask.shape[1:])
    region = torch.from_numpy(labels[::-1, :, 1:].copy() == 2) & sample.mask[0]
    output[0, region] = 0.3
    arrays = task.finish({'susceptibility': output}, sample, case)
    assert arrays['chi'][region.numpy()] == pytest.approx(0, abs=1e-6)
    assert arrays['chi'][(sample.mask[0] & ~region).numpy()] == pytest.approx(-0.3)
    assert task.details(arrays)['chi']['SusceptibilityReference'] == 'mean of Fluid'


def test_the_classical_way_sees_the_iron_in_the_field(task, case, sample):
    """Without a network: total variation, in the channels of the head."""
    found = task.classical.fitted([])(case, sample)
    assert found.shape == (2, *sample.mask.shape[1:])
    fields = load_fields(case)
    centre = tuple(n // 2 for n in fields.mask.shape)
    known = sample.mask[0] & (found[0] != 0)
    assert found[0, centre[0], centre[1], centre[2] - 1] > found[0][known].mean()


def test_the_label_is_three_maps_of_one_image(task, case, tmp_path):
    stack = np.stack([np.full((4, 4, 4), v) for v in (0.1, 0.2, 0.3)], -1)
    arrays = task.label.derive(case.with_files(chimaps=image(tmp_path / 'maps.nii', stack)))
    assert {k: float(v.mean()) for k, v in arrays.items()} == pytest.approx(
        {'chi': 0.1, 'tkd': 0.2, 'tikhonov': 0.3}
    )
    assert not task.details(arrays)
