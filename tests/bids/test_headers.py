"""Headers as old tools write them: read as they were meant, or refused with the reason."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from bidsapp.bids.images import doubts_of, load_volume, open_image
from bidsapp.bids.write import write_image
from bidsapp.problems import BadData

AFFINE = np.array([[-2.0, 0, 0, 9], [0, 2, 0, -3], [0, 0, 3, 1], [0, 0, 0, 1]])
DATA = np.arange(3 * 4 * 5 * 2, dtype=np.float32).reshape(3, 4, 5, 2)


@pytest.fixture
def saved(tmp_path):
    """Voxels and what to change in a sound header → the file."""

    def save(data=DATA, qform=AFFINE, sform=AFFINE, **fields):
        image = nib.Nifti1Image(data, None, nib.Nifti1Header())
        image.header.set_data_dtype(data.dtype)
        image.header.set_qform(qform, 1)
        image.header.set_sform(sform, 1)
        for name, value in fields.items():
            image.header[name] = value
        nib.save(image, tmp_path / 'x.nii.gz')
        return tmp_path / 'x.nii.gz'

    return save


def test_a_sound_header_gives_no_doubt(saved):
    assert doubts_of(saved()) == []


@pytest.mark.parametrize('value', [0.0, np.nan, np.inf])
def test_the_qform_stands_in_for_an_sform_that_is_none(saved, value, tmp_path):
    path = saved(**{f'srow_{a}': np.full(4, value) for a in 'xyz'})
    assert [(f.severity, f.code) for f in doubts_of(path)] == [('warning', 'SFORM')]
    np.testing.assert_allclose(open_image(path).affine, AFFINE)
    np.testing.assert_array_equal(load_volume(path), DATA)
    written = nib.load(write_image(tmp_path / 'out.nii.gz', DATA, path, 'float32'))
    np.testing.assert_allclose(written.get_sform(), AFFINE)


def test_an_affine_whose_axes_lie_in_one_plane_is_none(saved):
    flat = AFFINE.copy()
    flat[2, 2] = 0
    assert [f.code for f in doubts_of(saved(sform=flat))] == ['SFORM']


@pytest.mark.parametrize(
    'fields',
    [
        {'srow_x': 0, 'srow_y': 0, 'srow_z': 0, 'qform_code': 0},
        {'quatern_b': np.nan, 'sform_code': 0},
        {'quatern_b': 5.0, 'sform_code': 0},
        {'pixdim': np.array([1, np.nan, 2, 3, 1, 1, 1, 1]), 'qform_code': 0, 'sform_code': 0},
    ],
)
def test_where_nothing_says_how_the_voxels_lie_the_image_is_refused(saved, fields):
    with pytest.raises(BadData, match=r'x\.nii\.gz'):
        open_image(saved(**fields))


def test_codes_of_zero_are_said(saved):
    (doubt,) = doubts_of(saved(qform_code=0, sform_code=0))
    assert doubt.severity == 'warning'
    assert 'left and right are not known' in doubt.message


@pytest.mark.parametrize('axis', range(3))
def test_opposite_handedness_is_said_and_the_sform_is_used(saved, axis):
    other = AFFINE.copy()
    other[:, axis] *= -1
    path = saved(sform=other)
    assert [f.code for f in doubts_of(path)] == ['ORIENTATION']
    np.testing.assert_allclose(open_image(path).affine, other)


def test_a_few_degrees_between_them_are_nothing(saved):
    c, s = np.cos(0.1), np.sin(0.1)
    turned = np.array([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]) @ AFFINE
    assert doubts_of(saved(sform=turned)) == []


@pytest.mark.parametrize(
    ('shape', 'seen'),
    [
        ((3, 4, 5, 2, 1), (3, 4, 5, 2)),
        ((3, 4, 5, 1, 2), (3, 4, 5, 2)),
        ((3, 4, 5, 1, 1, 2), (3, 4, 5, 2)),
        ((3, 4, 10, 1, 1), (3, 4, 10)),
    ],
)
def test_dimensions_of_length_one_are_dropped_and_said(saved, shape, seen):
    path = saved(DATA.reshape(shape))
    assert [f.code for f in doubts_of(path)] == ['DIMENSIONS']
    assert open_image(path).shape == seen
    np.testing.assert_array_equal(load_volume(path), DATA.reshape(seen))
    last = open_image(path).dataobj[..., 1]
    np.testing.assert_array_equal(last, DATA.reshape(seen)[..., 1])


def test_two_dimensions_beyond_space_are_refused(saved):
    with pytest.raises(BadData, match='2 dimensions beyond the three of space'):
        open_image(saved(DATA.reshape(3, 4, 5, 2, 1).repeat(3, 4)))


@pytest.mark.parametrize(
    ('dtype', 'words'),
    [
        (np.complex64, 'complex'),
        (np.complex128, 'complex'),
        ([('R', 'u1'), ('G', 'u1'), ('B', 'u1')], 'colours'),
        ([('R', 'u1'), ('G', 'u1'), ('B', 'u1'), ('A', 'u1')], 'colours'),
    ],
)
def test_voxels_that_are_no_plain_numbers_are_refused(saved, dtype, words):
    with pytest.raises(BadData, match=words):
        open_image(saved(np.zeros((3, 4, 5, 2), dtype)))
