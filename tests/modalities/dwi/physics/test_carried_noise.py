"""Noise is scaled as the signal is, on its way to the corrected run."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from bidsapp.bids.images import load_volume
from bidsapp.modalities.dwi.interfaces.noise import CarryNoise

SHAPE = (6, 12, 5)


@pytest.fixture
def saved(tmp_path):
    def save(name, array):
        path = tmp_path / f'{name}.nii'
        nib.save(nib.Nifti1Image(np.asarray(array, np.float32), np.diag([2, 2, 2, 1])), path)
        return str(path)

    return save


def carried(folder, **inputs):
    return load_volume(folder / CarryNoise(**inputs).step(folder)['noise'])


def test_it_is_divided_by_the_receive_field(saved, tmp_path):
    noise = saved('levels', np.stack([np.full(SHAPE, 3.0), np.ones(SHAPE)], -1))
    field = np.linspace(0.5, 2, SHAPE[0])[:, None, None] * np.ones(SHAPE)
    got = carried(tmp_path, noise=noise, field=saved('by', field))
    np.testing.assert_allclose(got[..., 0], 3 / field, rtol=1e-6)
    np.testing.assert_allclose(got[..., 1], 1 / field, rtol=1e-6)


def test_where_signal_was_spread_out_its_noise_is_scaled_up_with_it(saved, tmp_path):
    """A stretch by a tenth along y: even noise stays even and grows by as much."""
    shift = 0.1 * np.arange(SHAPE[1])[None, :, None] * np.ones(SHAPE)
    got = carried(
        tmp_path, noise=saved('levels', np.full((*SHAPE, 2), 2.0)),
        field=saved('by', np.ones(SHAPE)),
        displacement=saved('shift', shift), axis=1,
    )  # fmt: skip
    np.testing.assert_allclose(got, 2.2, rtol=1e-4)


def test_unknown_noise_stays_unknown(saved, tmp_path):
    assert CarryNoise(field=saved('by', np.ones(SHAPE))).step(tmp_path) == {}
