"""Grids survive the way to a Sample and back; a fibre keeps its direction through any affine."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
import torch

from bidsapp.bids.images import load_volume, onto_run, onto_sample
from bidsapp.core import Case
from bidsapp.learn.inputs import Use, open_input, save_input
from bidsapp.modalities.dwi.learn.input import (
    canonical_sample,
    noise_variance_of,
    parts,
    sample_of,
    turned,
    with_directions,
)
from bidsapp.modalities.dwi.physics.gradients import GradientTable, to_fsl
from bidsapp.modalities.dwi.physics.harmonics import fibonacci_hemisphere
from bidsapp.modalities.dwi.physics.qspace import N_CHANNELS, N_SH
from bidsapp.physics.geometry import ALL_TURNS, grid_axes


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
def test_there_and_back(codes, oblique, affine_of, tmp_path, rng):
    case = written_case(tmp_path, affine_of(codes, oblique), rng)
    sample = canonical_sample(case)
    values = load_volume(case.files['dwi'])[..., :2] * load_volume(case.files['mask'])[..., None]
    there = np.moveaxis(onto_sample(values, nib.load(case.files['dwi']).affine, sample), 0, -1)
    assert np.array_equal(onto_run(there, sample, case.files['dwi']), values)
    assert nib.aff2axcodes(sample.affine) == ('R', 'A', 'S')


@pytest.mark.parametrize('codes', ['RAS', 'LAS', 'PIR', 'SLA'])
@pytest.mark.parametrize('oblique', [False, True])
def test_input_of_a_fibre_along_world_x_is_the_same_in_every_storage(
    codes, oblique, affine_of, tmp_path, rng
):
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


@pytest.mark.parametrize('box', [(4, 5, 6), (slice(2, 6), 5, slice(3, 7)), (4, slice(1, 9), 5)])
def test_a_brain_that_is_one_voxel_wide_has_an_input_of_numbers(box, affine_of, tmp_path, rng):
    """A phantom, a cut-out, one slice; the noise is what is usual where there is no plane."""
    case = written_case(tmp_path, affine_of('LAS', False), rng)
    thin = np.zeros((9, 10, 11), np.uint8)
    thin[box] = 1
    nib.save(nib.Nifti1Image(thin, affine_of('LAS', False)), case.files['mask'])
    sample = canonical_sample(case)
    assert sample.mask.sum() == thin.sum()
    assert torch.isfinite(sample.image).all()
    assert sample.image[:, sample.mask[0]].any()
    assert 0 < noise_variance_of(sample) < 1


def with_replaced(case, rows, value, axis='k'):
    """The run says that it holds predictions in ``rows`` (volume, first, last): ``value``."""
    image = nib.load(case.files['dwi'])
    data = image.get_fdata(dtype=np.float32)
    for volume, first, last in rows:
        np.moveaxis(data[..., volume], 'ijk'.index(axis), 0)[first : last + 1] = value
    nib.save(nib.Nifti1Image(data, image.affine), case.files['dwi'])
    said = {'MotionCorrection': {'ReplacedSlices': rows, 'SliceAxis': axis}}
    case.files['dwi'].with_name('dwi.json').write_text(json.dumps(said))
    return case


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize(('codes', 'axis'), [('RAS', 'k'), ('PIR', 'i'), ('SLP', 'j')])
def test_what_stands_in_a_predicted_slice_has_no_part_in_the_input(
    training, codes, axis, affine_of, tmp_path, rng
):
    """It was predicted from all other volumes, those of the other half among them."""
    case = written_case(tmp_path, affine_of(codes, True), rng)
    rows = [[4, 4, 5], [9, 4, 4], [17, 6, 7]]
    samples = []
    for value in (3.0, 5000.0):
        with_replaced(case, rows, value, axis)
        samples += [[sample_of(case, part) for part in parts(case, Use(training))]]
    for one, other in zip(*samples, strict=True):
        assert torch.equal(one.image, other.image)
        assert one.mask.sum() == one.image[N_SH].sum()  # whole: enough volumes were measured
    case.files['dwi'].with_name('dwi.json').unlink()
    measured = [sample_of(case, part) for part in parts(case, Use(training))]
    assert not all(
        torch.allclose(one.image, other.image)
        for one, other in zip(samples[1], measured, strict=True)
    )


def test_elsewhere_the_input_is_what_it_would_be_without_predicted_slices(affine_of, tmp_path, rng):
    case = written_case(tmp_path, affine_of('RAS', False), rng)
    before = canonical_sample(case)
    after = canonical_sample(with_replaced(case, [[4, 4, 4]], 7.0))
    far = [k for k in range(before.mask.shape[3]) if k != 4 - 3]  # the crop begins at slice 3
    assert torch.allclose(before.image[..., far], after.image[..., far], atol=1e-3)


def test_where_a_half_has_too_few_measured_volumes_it_is_not_learnt_from(affine_of, tmp_path, rng):
    case = written_case(tmp_path, affine_of('RAS', False), rng)
    half = parts(case, Use(training=True))[0]['volumes']
    with_replaced(case, [[volume, 5, 5] for volume in half[1:11]], 7.0)
    first, other = (sample_of(case, part) for part in parts(case, Use(training=True)))
    assert not first.mask[..., 2].any()
    assert other.mask[..., 2].any()
    assert canonical_sample(case).mask[..., 2].any()


def test_direction_label_turns_with_the_grid(affine_of, tmp_path, rng):
    affine = affine_of('LAS', True)
    case = written_case(tmp_path, affine, rng)
    world = np.zeros((9, 10, 11, 9), np.float32)
    world[..., 0] = world[..., 4] = 1  # along x, and a second one along y
    for volumes in (9, 3):
        nib.save(nib.Nifti1Image(world[..., :volumes], affine), tmp_path / 'direction.nii.gz')
        sample = with_directions(canonical_sample(case), tmp_path / 'direction.nii.gz')
        assert sample.target.shape[0] == 9
        axes = torch.from_numpy(grid_axes(sample.affine)).float()
        back = torch.einsum('wg,ngxyz->nwxyz', axes, sample.target.unflatten(0, (3, 3)))
        assert torch.allclose(back[0, 0], torch.ones_like(back[0, 0]), atol=1e-5)
        second = torch.full_like(back[1, 1], float(volumes == 9))
        assert torch.allclose(back[1, 1], second, atol=1e-5)
        assert not back[2].any()


def test_input_has_its_channels_and_is_zero_outside_the_brain(affine_of, tmp_path, rng):
    sample = canonical_sample(written_case(tmp_path, affine_of('RAS', False), rng))
    assert sample.image.shape[0] == N_CHANNELS
    assert not sample.image[:, ~sample.mask[0]].any()
    assert torch.isfinite(sample.image).all()


def test_kept_and_opened_it_is_the_same(affine_of, tmp_path, rng):
    sample = canonical_sample(written_case(tmp_path, affine_of('LAS', False), rng))
    again = open_input(save_input(sample, tmp_path / 'kept'))
    assert torch.equal(again.image, sample.image)
    assert torch.equal(again.mask, sample.mask)
    assert np.array_equal(again.affine, sample.affine)
    assert again.context.keys() == sample.context.keys() == {'voxel_mm', 'noise_variance'}
    assert all(torch.equal(again.context[name], sample.context[name]) for name in again.context)


def test_a_sample_says_how_large_its_voxels_are_and_how_noisy(affine_of, tmp_path, rng):
    case = written_case(tmp_path, affine_of('RAS', False), rng)
    context = canonical_sample(case).context
    assert context['voxel_mm'].tolist() == pytest.approx([2, 3, 4])
    nothing = float(context['noise_variance'])
    image = nib.load(case.files['dwi'])
    noisy = image.get_fdata() + rng.normal(0, 50, image.shape)  # the signal at b=0 is about 1000
    nib.save(nib.Nifti1Image(noisy.astype(np.float32), image.affine), case.files['dwi'])
    variance = noise_variance_of(canonical_sample(case))
    assert variance**0.5 == pytest.approx(0.05, rel=0.15)
    assert nothing < 0.01 * variance


@pytest.mark.parametrize('turn', [ALL_TURNS[k] for k in (0, 5, 17, 30, 47)])
def test_voxel_edges_turn_with_the_axes_and_the_noise_stays(turn, affine_of, tmp_path, rng):
    sample = canonical_sample(written_case(tmp_path, affine_of('RAS', False), rng))
    batch = {name: value[None] for name, value in sample.context.items()}
    image, context = turned(sample.image[None], batch, turn)
    moved = torch.tensor(turn).abs()
    edges = moved.float() @ sample.context['voxel_mm']
    assert torch.equal(context['voxel_mm'], edges[None])
    assert torch.equal(context['noise_variance'][0], sample.context['noise_variance'])
    sides = moved @ torch.tensor(sample.image.shape[1:])
    assert image.shape[2:] == tuple(sides.tolist())


def test_a_run_is_learnt_from_in_halves_and_judged_whole_or_by_few_directions(
    affine_of, tmp_path, rng
):
    case = written_case(tmp_path, affine_of('RAS', False), rng)
    (whole,) = parts(case, Use())
    assert whole == {'volumes': list(range(31))}
    halves = [part['volumes'] for part in parts(case, Use(training=True))]
    assert [len(half) for half in halves] == [16, 16]
    assert set(halves[0]) | set(halves[1]) == set(whole['volumes'])
    assert set(halves[0]) & set(halves[1]) == {0}
    for training in (True, False):
        (few,) = parts(case, Use(training, {'input_directions': 6}))
        assert len(few['volumes']) == 7
