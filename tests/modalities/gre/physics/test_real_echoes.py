"""A real crop of a brain: three echoes, of which nobody says the times; 4, 8, 12 ms are a guess."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from bidsapp.modalities.gre.physics import echoes, maps, relaxation

FOLDER = Path(__file__).resolve().parents[4].parent / 'shared/data/extras/multiecho_gre'
TIMES, MHZ = (0.004, 0.008, 0.012), 297.2

pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir(), reason='the real crop is not beside this checkout'
)


@pytest.fixture(scope='module')
def crop():
    """(phase, magnitude, affine, field, mask)."""
    images = [nib.load(FOLDER / f'{name}.nii') for name in ('Phase', 'Mag')]
    phase, magnitude = (np.moveaxis(image.get_fdata(), -1, 0) for image in images)
    radians, words = echoes.phase_radians(phase)
    assert 'taken for one turn' in words  # -0.0037 to 0.0037
    mask = np.ones(phase.shape[1:], bool)
    affine = images[0].affine
    return radians, magnitude, affine, echoes.total_field(
        radians, magnitude, TIMES, mask, affine
    ), mask  # fmt: skip


def test_no_wrap_is_left(crop):
    _, _, _, field, _ = crop
    for echo, allowed in zip(field.unwrapped, (0, 1e-5, 5e-4), strict=True):
        steps = np.concatenate([np.abs(np.diff(echo, axis=axis)).ravel() for axis in range(3)])
        assert (steps > np.pi).mean() <= allowed


def test_decay_is_that_of_tissue(crop):
    _, magnitude, _, field, mask = crop
    rate = relaxation.r2star(magnitude, TIMES, mask, field.sigma)
    assert 15 < np.median(rate) < 60
    assert (rate[mask] < 150).mean() > 0.98


def test_veins_are_positive(crop):
    """Thin, dark in the last echo, and paramagnetic."""
    _, magnitude, affine, field, mask = crop
    local, known = maps.local_field(field.hertz / MHZ, mask, affine)
    chi = maps.susceptibility(local, field.noise / MHZ, known, affine)
    last = ndimage.gaussian_filter(magnitude[-1], 0.5)
    dark = ndimage.grey_closing(last, (7, 7, 3)) - last
    veins = known & (dark >= np.quantile(dark[known], 0.995))
    assert chi[veins].mean() > 2 * np.std(chi[known & ~veins]) / np.sqrt(veins.sum() / 8)
    assert chi[veins].mean() > 0.005
