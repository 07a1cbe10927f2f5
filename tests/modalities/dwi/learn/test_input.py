"""Grids survive the way to a Sample and back; a fibre keeps its direction through any affine."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch

from bidsapp.bids.images import load_volume, onto_run, onto_sample, to_ras
from bidsapp.core import Case
from bidsapp.learn.inputs import open_canonical, save_canonical
from bidsapp.modalities.dwi.bids.tables import read_numbers
from bidsapp.modalities.dwi.learn.input import canonical_sample, load_directions, load_sample
from bidsapp.modalities.dwi.physics.gradients import GradientTable, to_fsl
from bidsapp.modalities.dwi.physics.harmonics import fibonacci_hemisphere
from bidsapp.modalities.dwi.physics.qspace import N_CHANNELS
from bidsapp.physics.geometry import grid_axes
from bidsapp.problems import BadData

OBLIQUE = np.array([[0.96, -0.2, 0.19], [0.21, 0.98, 0.02], [-0.19, 0.02, 0.98]])


def affine_of(codes: str, oblique: bool) -> np.ndarray:
    """An affine with voxels of 2, 3 and 4 mm in the orientation of ``codes``."""
    turn = nib.orientations.axcodes2ornt(codes)
    matrix = np.zeros((3, 3))
    for axis, (world, sign) in enumerate(turn):
        matrix[int(world), axis] = sign
    rotation = np.linalg.qr(OBLIQUE)[0] if oblique else np.eye(3)
    rotation *= np.sign(np.diag(rotation))
    affine = np.eye(4)
    affine[:3, :3] = rotation @ matrix @ np.diag([2, 3, 4])
    affine[:3, 3] = [-20, 5, 9]
    return affine


def written_case(folder, affine, rng, shape=(9, 10, 11)):
    """A run of one fibre along world x everywhere, in a box that is brain."""
    table = GradientTable(
        np.vstack([np.zeros((1, 3)), fibonacci_hemisphere(30)]), np.r_[0.0, np.full(30, 1000.0)]
    )
    signal = np.where(table.b0, 1, np.exp(-(0.3 + 1.4 * table.bvecs[:, 0] ** 2)))
    data = 1000 * signal * np.ones((*shape, 1)) * rng.uniform(0.9, 1.1, (*shape, 1))
    mask = np.zeros(shape, np.uint8)
    mask[2:7, 1:9, 3:9] = 1
    nib.save(nib.Nifti1Image(data.astype(np.float32), affine), folder / 'dwi.nii.gz')
    nib.save(nib.Nifti1Image(mask, affine), folder / 'mask.nii.gz')
    np.savetxt(folder / 'bvec', to_fsl(table, affine))
    np.savetxt(folder / 'bval', table.bvals[None])
    files = {'dwi': 'dwi.nii.gz', 'mask': 'mask.nii.gz', 'bvec': 'bvec', 'bval': 'bval'}
    return Case({'subject': '01'}, {kind: folder / name for kind, name in files.items()})


@pytest.mark.parametrize('codes', ['RAS', 'LAS', 'PIR', 'SLP', 'ILA'])
@pytest.mark.parametrize('oblique', [False, True])
def test_there_and_back(codes, oblique, tmp_path, rng):
    case = written_case(tmp_path, affine_of(codes, oblique), rng)
    sample = canonical_sample(case)
    values = load_volume(case.files['dwi'])[..., :2] * load_volume(case.files['mask'])[..., None]
    there = np.moveaxis(onto_sample(values, nib.load(case.files['dwi']).affine, sample), 0, -1)
    assert np.array_equal(onto_run(there, sample, case.files['dwi']), values)
    assert nib.aff2axcodes(sample.affine) == ('R', 'A', 'S')


@pytest.mark.parametrize('codes', ['RAS', 'LAS', 'PIR', 'SLA'])
@pytest.mark.parametrize('oblique', [False, True])
def test_input_of_a_fibre_along_world_x_is_the_same_in_every_storage(codes, oblique, tmp_path, rng):
    """Left-handed, permuted or oblique: brought to the grid's axes it is the grid's direction."""
    affine = affine_of(codes, oblique)
    sample = canonical_sample(written_case(tmp_path, affine, rng))
    local_x = grid_axes(sample.affine).T @ [1, 0, 0]
    directions = fibonacci_hemisphere(500)
    from bidsapp.modalities.dwi.physics import qspace
    from bidsapp.modalities.dwi.physics.harmonics import basis, degrees

    voxel = sample.image[: qspace.N_SH, 2, 2, 2].numpy()
    weights = qspace.prior_deviation(1000)[degrees(qspace.ORDER) // 2]
    signal = basis(directions, qspace.ORDER) @ (voxel * weights)
    darkest = directions[signal.argmin()]
    assert abs(darkest @ local_x) > np.cos(np.deg2rad(8))


def test_direction_label_turns_with_the_grid(tmp_path, rng):
    affine = affine_of('LAS', True)
    case = written_case(tmp_path, affine, rng)
    world = np.zeros((9, 10, 11, 9), np.float32)
    world[..., 0] = world[..., 4] = 1  # along x, and a second one along y
    for volumes in (9, 3):
        nib.save(nib.Nifti1Image(world[..., :volumes], affine), tmp_path / 'direction.nii.gz')
        sample = load_directions(load_sample(case), tmp_path / 'direction.nii.gz')
        assert sample.target.shape[0] == 9
        axes = torch.from_numpy(grid_axes(sample.affine)).float()
        back = torch.einsum('wg,ngxyz->nwxyz', axes, sample.target.unflatten(0, (3, 3)))
        assert torch.allclose(back[0, 0], torch.ones_like(back[0, 0]), atol=1e-5)
        second = torch.full_like(back[1, 1], float(volumes == 9))
        assert torch.allclose(back[1, 1], second, atol=1e-5)
        assert not back[2].any()


def test_input_has_its_channels_and_is_zero_outside_the_brain(tmp_path, rng):
    sample = canonical_sample(written_case(tmp_path, affine_of('RAS', False), rng))
    assert sample.image.shape[0] == N_CHANNELS
    assert not sample.image[:, ~sample.mask[0]].any()
    assert torch.isfinite(sample.image).all()


def test_kept_and_opened_it_is_the_same(tmp_path, rng):
    sample = canonical_sample(written_case(tmp_path, affine_of('LAS', False), rng))
    again = open_canonical(save_canonical(sample, tmp_path / 'kept'))
    assert torch.equal(again.image, sample.image)
    assert torch.equal(again.mask, sample.mask)
    assert np.array_equal(again.affine, sample.affine)
    assert torch.equal(again.context, sample.context)


def test_a_sample_says_how_large_its_voxels_are_and_how_noisy(tmp_path, rng):
    case = written_case(tmp_path, affine_of('RAS', False), rng)
    *sizes, nothing = canonical_sample(case).context.tolist()
    assert sizes == pytest.approx([2, 3, 4])
    image = nib.load(case.files['dwi'])
    noisy = image.get_fdata() + rng.normal(0, 50, image.shape)  # the signal at b=0 is about 1000
    nib.save(nib.Nifti1Image(noisy.astype(np.float32), image.affine), case.files['dwi'])
    variance = float(canonical_sample(case).context[3])
    assert variance**0.5 == pytest.approx(0.05, rel=0.15)
    assert nothing < 0.01 * variance


def test_truncated_image_is_bad_data(tmp_path, rng):
    case = written_case(tmp_path, affine_of('RAS', False), rng)
    data = case.files['dwi'].read_bytes()
    case.files['dwi'].write_bytes(data[: len(data) // 2])
    with pytest.raises(BadData, match=r'dwi\.nii\.gz'):
        load_volume(case.files['dwi'])


def test_text_that_is_no_table(tmp_path):
    path = tmp_path / 'x.bvec'
    path.write_text('0 1 2\n3 4\n')
    with pytest.raises(BadData, match='different lengths'):
        read_numbers(path)
    path.write_text('0 a 2\n')
    with pytest.raises(BadData, match='not a number'):
        read_numbers(path)


def test_to_ras_moves_affine_with_array(rng):
    affine = affine_of('ILA', True)
    array = rng.normal(size=(4, 5, 6))
    turned, ras = to_ras(array, affine)
    for index in ((0, 0, 0), (3, 1, 5)):
        world = affine @ [*index, 1]
        where = np.round(np.linalg.inv(ras) @ world)[:3].astype(int)
        assert turned[tuple(where)] == array[index]
