"""Grids survive the way to a Sample and back, whichever way the sample's axes point."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from nibabel.orientations import (
    apply_orientation,
    axcodes2ornt,
    inv_ornt_aff,
    io_orientation,
    ornt_transform,
)

from bidsapp.bids.images import (
    load_volume,
    onto_run,
    onto_sample,
    to_ras,
    with_label,
    with_maps,
)
from bidsapp.core import Sample
from bidsapp.problems import BadData

SHAPE = (9, 10, 11)


def written(folder, array, affine):
    """The array as a NIfTI file."""
    path = folder / f'{len(list(folder.iterdir()))}.nii.gz'
    nib.save(nib.Nifti1Image(np.asarray(array, np.float32), affine), path)
    return path


def turned(array, affine, codes):
    """An array (X, Y, Z[, K]) and its affine with the axes permuted and flipped to ``codes``."""
    turn = ornt_transform(io_orientation(affine), axcodes2ornt(codes))
    return apply_orientation(array, turn), affine @ inv_ornt_aff(turn, array.shape[:3])


def part_of(array, affine, codes):
    """A box in the array turned to ``codes``, (X', Y', Z'[, K]), and an empty sample on it."""
    moved, moved_affine = turned(array, affine, codes)
    box = tuple(slice(1 + k, n - 2 + k // 2) for k, n in enumerate(moved.shape[:3]))
    part, own = moved[box], moved_affine.copy()
    own[:3, 3] = (moved_affine @ [*(s.start for s in box), 1])[:3]
    mask = torch.ones((1, *part.shape[:3]), dtype=torch.bool)
    return part, Sample(torch.zeros(1, *part.shape[:3]), mask, own)


@pytest.mark.parametrize('codes', ['RAS', 'LAS', 'PIR', 'SLP'])
@pytest.mark.parametrize('own', ['RAS', 'LPS', 'SAR', 'ILA', 'PSL'])
@pytest.mark.parametrize('oblique', [False, True])
@pytest.mark.parametrize('further', [(), (3,)])
def test_there_and_back_by_the_two_affines(codes, own, oblique, further, affine_of, tmp_path, rng):
    """A sample may be flipped and permuted in any way against its run; RAS is nothing special."""
    affine = affine_of(codes, oblique)
    array = rng.normal(size=(*SHAPE, *further)).astype(np.float32)
    part, sample = part_of(array, affine, own)
    there = onto_sample(array, affine, sample)
    assert np.array_equal(there, np.moveaxis(part, -1, 0) if further else part[None])
    back = onto_run(part, sample, written(tmp_path, array, affine))
    inside = back != 0
    assert back.shape == array.shape
    assert inside.sum() == part.size
    assert np.array_equal(back[inside], array[inside])
    assert np.array_equal(onto_sample(back, affine, sample), there)


def test_a_voxel_keeps_its_place_in_the_world(affine_of, tmp_path):
    """Told by positions, not by any convention of axes: each voxel holds where it is."""
    affine = affine_of('PIR', True)
    index = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing='ij'), -1)
    world = (nib.affines.apply_affine(affine, index) + 100).astype(np.float32)
    _, sample = part_of(world, affine, 'SAR')
    there = onto_sample(world, affine, sample)
    at = np.stack(np.meshgrid(*map(np.arange, there.shape[1:]), indexing='ij'), -1)
    expected = nib.affines.apply_affine(sample.affine, at) + 100
    assert np.allclose(np.moveaxis(there, 0, -1), expected, atol=1e-3)
    back = onto_run(np.moveaxis(there, 0, -1), sample, written(tmp_path, world, affine))
    inside = back.any(-1)
    assert np.array_equal(back[inside], world[inside])


@pytest.mark.parametrize('own', ['RAS', 'LPS', 'SAR'])
def test_what_of_a_sample_lies_beyond_its_run_is_left_out(own, affine_of, tmp_path, rng):
    affine = affine_of('LPI', True)
    wide = rng.normal(size=SHAPE).astype(np.float32)
    part, sample = part_of(wide, affine, own)
    corner = np.eye(4)
    corner[:3, 3] = 2, 0, 1
    run = wide[2:, :-2, 1:-1]
    back = onto_run(part, sample, written(tmp_path, run, affine @ corner))
    assert np.array_equal(back, np.where(np.isin(run, part), run, 0))
    assert back.any()


SHIFT, FINER = np.eye(4), np.diag([0.5, 1, 1, 1])
SHIFT[0, 3] = 0.4
TILT = np.eye(4)
TILT[:2, :2] = [[np.cos(0.1), -np.sin(0.1)], [np.sin(0.1), np.cos(0.1)]]


@pytest.mark.parametrize('change', [SHIFT, FINER, TILT], ids=['shifted', 'finer', 'tilted'])
def test_a_sample_that_is_not_on_the_grid_is_refused(change, affine_of, tmp_path):
    affine, array = affine_of('LAS', False), np.ones(SHAPE, np.float32)
    part, sample = part_of(array, affine @ change, 'RAS')
    with pytest.raises(ValueError, match='same voxel grid'):
        onto_sample(array, affine, sample)
    with pytest.raises(ValueError, match='same voxel grid'):
        onto_run(part, sample, written(tmp_path, array, affine))


def test_labels_and_maps_become_the_target_and_without_them_there_is_none(affine_of, tmp_path, rng):
    affine = affine_of('LPI', True)
    one, other = rng.normal(size=(2, *SHAPE)).astype(np.float32)
    paths = [written(tmp_path, array, affine) for array in (one, other)]
    (first, sample), (second, _) = (part_of(a, affine, 'RAS') for a in (one, other))
    assert np.array_equal(with_label(sample, paths[0]).target, first[None])
    assert np.array_equal(with_maps(sample, paths).target, np.stack([first, second]))
    assert with_label(sample, None).target is None
    assert with_maps(sample, [paths[0], None]).target is None


def test_to_ras_moves_affine_with_array(affine_of, rng):
    affine = affine_of('ILA', True)
    array = rng.normal(size=(4, 5, 6))
    moved, ras = to_ras(array, affine)
    for index in ((0, 0, 0), (3, 1, 5)):
        world = affine @ [*index, 1]
        where = np.round(np.linalg.inv(ras) @ world)[:3].astype(int)
        assert moved[tuple(where)] == array[index]


def test_truncated_image_is_bad_data(tmp_path, rng):
    path = written(tmp_path, rng.normal(size=SHAPE), np.eye(4))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(BadData, match=path.name):
        load_volume(path)
