from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from bidsapp.physics import brain

AFFINE = np.diag([3.0, 3.0, 3.0, 1.0])


def head(shape=(64, 72, 48), affine=AFFINE):
    """(b0, weighted mean, truth): brain, ventricle, skull, scalp, and two eyes at the front."""
    x, y, z = np.indices(shape) * brain.voxel_sizes(affine)[:, None, None, None]
    x, y, z = (a - a.mean() for a in (x, y, z))
    radius = np.sqrt((x / 65) ** 2 + (y / 80) ** 2 + (z / 62) ** 2)
    b0, weighted = np.zeros(shape), np.zeros(shape)
    scalp = (radius > 1.1) & (radius < 1.2)
    b0[scalp], weighted[scalp] = 150, 40
    truth = radius < 1
    b0[truth], weighted[truth] = 500, 200
    inner = np.sqrt((x / 12) ** 2 + (y / 25) ** 2 + (z / 12) ** 2) < 1
    b0[inner], weighted[inner] = 1500, 30
    for side in (-1, 1):
        eye = (x - side * 30) ** 2 + (y - 85) ** 2 + (z + 30) ** 2 < 12**2
        b0[eye & ~truth], weighted[eye & ~truth] = 1500, 25
    coil = np.exp(0.5 * y / 80)
    noise = np.random.default_rng(0).normal(0, 8, (2, *shape))
    return np.abs(b0 * coil + noise[0]), np.abs(weighted * coil + noise[1]), truth


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def test_mask_is_the_brain_with_its_ventricle_and_without_the_eyes():
    b0, weighted, truth = head()
    mask = brain.brain_mask(b0, weighted, AFFINE)
    assert dice(mask, truth) > 0.96
    assert not (mask & ~brain.dilated(truth, AFFINE, 4)).any()
    assert ndimage.label(mask)[1] == 1
    assert np.array_equal(mask, ndimage.binary_fill_holes(mask))
    assert brain.plausible(mask, AFFINE) is None


def test_mask_depends_neither_on_units_nor_on_the_order_of_the_axes():
    b0, weighted, _ = head()
    mask = brain.brain_mask(b0, weighted, AFFINE)
    assert dice(brain.brain_mask(1e-3 * b0, 40 * weighted, AFFINE), mask) > 0.999
    turned = brain.brain_mask(
        b0[::-1].transpose(2, 0, 1), weighted[::-1].transpose(2, 0, 1), AFFINE
    )
    assert dice(turned.transpose(1, 2, 0)[::-1], mask) > 0.999


def test_a_ventricle_cut_open_by_the_field_of_view_is_filled():
    b0, weighted, truth = (a[..., 24:] for a in head())
    mask = brain.brain_mask(b0, weighted, AFFINE)
    assert mask[32, 36, 0]
    assert dice(mask, truth) > 0.95


def test_distances_are_in_millimetres_on_uneven_voxels():
    affine = np.diag([1.0, 2.0, 4.0, 1.0])
    mask = np.zeros((41, 41, 21), bool)
    mask[20, 20, 10] = True
    reach = np.argwhere(brain.dilated(mask, affine, 8)).max(0) - (20, 20, 10)
    assert reach.tolist() == [8, 4, 2]


@pytest.mark.parametrize(
    ('mask', 'word'),
    [
        (np.zeros((60, 60, 60), bool), 'empty'),
        (np.ones((60, 60, 60), bool), 'fills'),
        (np.arange(60**3).reshape(60, 60, 60) < 5000, '135 ml'),
    ],
)
def test_a_failed_mask_is_said(mask, word):
    assert word in brain.plausible(mask, AFFINE)


def test_a_slab_may_hold_less_of_a_brain():
    mask = np.zeros((60, 60, 14), bool)
    mask[10:50, 10:50, :8] = True  # 346 ml in 42 mm
    assert brain.plausible(mask, AFFINE) is None


def test_nothing_to_see_gives_an_empty_mask():
    assert not brain.brain_mask(np.zeros((20, 20, 20)), np.zeros((20, 20, 20)), AFFINE).any()


def test_bias_field_is_positive_has_mean_one_and_follows_the_coil():
    _, _, truth = head()
    y = np.indices(truth.shape)[1] / truth.shape[1] - 0.5
    coil = np.exp(y)
    image = (400 + 100 * (np.indices(truth.shape).sum(0) % 7 < 3)) * coil * truth
    field = brain.bias_field(image, truth, AFFINE)
    assert (field > 0).all()
    assert field[truth].mean() == pytest.approx(1, abs=1e-5)
    assert np.corrcoef(np.log(field[truth]), y[truth])[0, 1] > 0.95


def real(folder, name):
    stem = folder / name.split('_')[0] / 'dwi' / name
    image = nib.as_closest_canonical(nib.load(f'{stem}_dwi.nii.gz'))
    weighted = np.loadtxt(f'{stem}_dwi.bval') >= 50
    data = np.asarray(image.dataobj, np.float32)
    return data[..., ~weighted].mean(-1), data[..., weighted].mean(-1), image.affine


@pytest.mark.parametrize(
    ('name', 'low', 'high'),
    [
        ('sub-ds114', 1000, 1250),
        ('sub-galan_acq-ortho', 1150, 1450),
        ('sub-prisma_dir-AP', 1250, 1500),
        ('sub-prisma_dir-PA', 1250, 1500),
        ('sub-uih_dir-AP', 900, 1100),
    ],
)
def test_real_heads_of_four_vendors_have_the_volume_of_a_brain(multivendor, name, low, high):
    b0, weighted, affine = real(multivendor, name)
    mask = brain.brain_mask(b0, weighted, affine)
    assert brain.plausible(mask, affine) is None
    assert low < mask.sum() * abs(np.linalg.det(affine[:3, :3])) / 1000 < high


def test_blips_up_and_down_see_the_same_brain(multivendor):
    masks = [brain.brain_mask(*real(multivendor, f'sub-prisma_dir-{way}')) for way in ('AP', 'PA')]
    assert dice(*masks) > 0.92
