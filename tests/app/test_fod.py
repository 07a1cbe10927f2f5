"""Densities of fibres that are written: MRtrix3's harmonics, whose peaks are the directions."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
from dipy.reconst.shm import real_sh_tournier

from bidsapp.modalities.dwi.physics.harmonics import fibonacci_hemisphere

#: Directions, and more degrees than any is from its nearest; a density that shows a fibre well.
LOOKED_AT, APART, SURE = fibonacci_hemisphere(4000), 2.5, 1.5


@pytest.fixture(scope='module', params=['csd', 'unet'])
def written(request, quick_done):
    """(values in the directions that are looked at (V, N), first fibre (V, 3), image, sidecar)."""
    stem = quick_done / f'sub-01/dwi/sub-01_model-{request.param}_param'
    image = nib.load(f'{stem}-fod_dwimap.nii.gz')
    theta = np.arccos(LOOKED_AT[:, 2])
    phi = np.arctan2(LOOKED_AT[:, 1], LOOKED_AT[:, 0])
    said = json.loads(stem.with_name(f'{stem.name}-fod_dwimap.json').read_text())
    order = said['OrientationEncoding']['SphericalHarmonicDegree']
    harmonics = real_sh_tournier(order, theta, phi, legacy=False)[0]
    first = nib.load(f'{stem}-direction_dwimap.nii.gz').get_fdata()[..., :3]
    return image.get_fdata() @ harmonics.T, first, image, said, request.param


def test_the_sidecar_says_how_to_read_it(written):
    *_, image, said, source = written
    degree = {'csd': 6, 'unet': 8}[source]  # 30 directions carry 28 coefficients
    assert said['OrientationEncoding'] == {
        'Type': 'sh', 'EncodingAxis': 3, 'Reference': 'xyz', 'AntipodalSymmetry': True,
        'SphericalHarmonicBasis': 'MRtrix3', 'SphericalHarmonicDegree': degree,
    }  # fmt: skip
    assert image.shape[3] == (degree + 1) * (degree + 2) // 2
    assert image.get_data_dtype() == np.float32
    assert said['Units'] == 'arbitrary'
    assert np.isfinite(image.get_fdata()).all()


def test_the_highest_value_is_along_the_first_fibre(written):
    """Of a network, whose first fibre is refitted to the scan, about, where it is sure of one."""
    values, first, *_, source = written
    fibres = np.linalg.norm(first, axis=-1) > 0.5
    if source == 'unet':
        fibres &= values.max(-1) > SURE
    assert fibres.sum() > 1000
    highest = LOOKED_AT[values[fibres].argmax(1)]
    cosine = np.abs((highest * first[fibres]).sum(1)).clip(0, 1)
    apart = np.rad2deg(np.arccos(cosine))
    assert np.median(apart) < 5
    assert source == 'unet' or apart.max() < APART


def test_it_is_positive_but_for_ripples_and_zero_outside_the_brain(written, quick_done):
    values, first, image, _, source = written
    mask = nib.load(quick_done / 'sub-01/dwi/sub-01_desc-brain_mask.nii.gz').get_fdata() > 0
    there = image.get_fdata().any(-1)
    assert np.array_equal(there, mask) if source == 'unet' else not (there & ~mask).any()
    assert there[np.linalg.norm(first, axis=-1) > 0.5].all()
    sure = values.max(-1) > (SURE if source == 'unet' else 0)
    ripple = values[sure].min(1) / values[sure].max(1)
    assert np.median(ripple) > {'csd': -0.05, 'unet': -0.2}[source]
