"""Where the brain is: by the magnitude of one run, however it comes; of a crop everywhere."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from bidsapp.modalities.gre.interfaces.signal import BrainMask, save_echoes
from bidsapp.modalities.gre.physics.quality import cut_from_a_brain
from tests.modalities.gre.skeletons import affine_of, image

SHAPE, EDGE = (34, 32, 30), 4.0


def head(rng, floor):
    """Two echoes of a ball of 48 mm in air, whose noise has a ``floor``."""
    place = np.stack(np.meshgrid(*(np.arange(n) - n / 2 for n in SHAPE), indexing='ij')) * EDGE
    tissue = np.linalg.norm(place, axis=0) < 48
    level = np.array([1.0, 0.7])[:, None, None, None] * tissue
    return tissue, np.maximum(np.abs(level + 0.01 * rng.standard_normal((2, *SHAPE))), floor)


def ran(folder, **inputs):
    folder.mkdir()
    found = BrainMask(**inputs).run(cwd=str(folder)).outputs
    return np.asanyarray(nib.load(found.mask).dataobj) > 0, found.warnings


def test_images_as_scanned_give_the_mask_of_their_echoes(tmp_path):
    tissue, magnitude = head(np.random.default_rng(0), 0.0)
    affine = affine_of((EDGE,) * 3)
    paths = [str(image(tmp_path / f'{n}.nii', echo, affine)) for n, echo in enumerate(magnitude)]
    stacked = save_echoes(tmp_path / 'all.nii', magnitude, tmp_path / '0.nii')
    one, _ = ran(tmp_path / 'one', magnitude=stacked)
    other, _ = ran(tmp_path / 'other', images=paths)
    assert (one == other).all()
    assert 2 * (one & tissue).sum() / (one.sum() + tissue.sum()) > 0.95


def test_of_a_crop_all_is_brain_and_that_is_said(tmp_path):
    magnitude = np.random.default_rng(0).uniform(0.6, 1.2, (2, *SHAPE))
    path = image(tmp_path / 'first.nii', magnitude[0], affine_of((0.5, 0.5, 1.0)))
    mask, warnings = ran(tmp_path / 'crop', images=[str(path)])
    assert mask.all()
    assert 'no air' in warnings[0]


@pytest.mark.parametrize('floor', [0.0, 0.05, 0.2])
def test_a_head_in_air_is_no_crop_whatever_the_coils_make_of_noise(floor):
    _, magnitude = head(np.random.default_rng(0), floor)
    assert not cut_from_a_brain(magnitude[0])
    assert cut_from_a_brain(magnitude[0, 12:22, 12:20, 10:20])
