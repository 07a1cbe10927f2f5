"""What restoring writes: volumes, a residual that is honest, and the fibres read from volumes."""

from __future__ import annotations

import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch

from bidsapp.bids.images import load_volume
from bidsapp.core import Case
from bidsapp.modalities.dwi.learn.input import brain_signal, canonical_sample
from bidsapp.modalities.dwi.learn.losses import six
from bidsapp.modalities.dwi.physics.diffusion import fit_tensor
from bidsapp.modalities.dwi.physics.gradients import GradientTable, to_fsl
from bidsapp.modalities.dwi.physics.harmonics import fibonacci_hemisphere
from bidsapp.modalities.dwi.physics.qspace import N_CHANNELS, N_SH, SLOT_CHANNELS
from bidsapp.modalities.dwi.tasks import orientation, restore

SHAPE, NOISE = (12, 13, 11), 0.03
AFFINE = np.array([[-2.0, 0, 0, 9], [0, 2.0, 0, -3], [0, 0, 2.0, 1], [0, 0, 0, 1]])


def write_case(folder, data, gtab):
    mask = np.zeros(SHAPE, np.uint8)
    mask[1:-1, 2:-1, 1:-2] = 1
    nib.save(nib.Nifti1Image(data.astype(np.float32), AFFINE), folder / 'dwi.nii.gz')
    nib.save(nib.Nifti1Image(mask, AFFINE), folder / 'mask.nii.gz')
    np.savetxt(folder / 'dwi.bvec', to_fsl(gtab, AFFINE))
    np.savetxt(folder / 'dwi.bval', gtab.bvals[None])
    files = {'dwi': 'dwi.nii.gz', 'mask': 'mask.nii.gz', 'bvec': 'dwi.bvec', 'bval': 'dwi.bval'}
    return Case({'subject': '01'}, {kind: folder / name for kind, name in files.items()})


def scan(rng, noise=NOISE):
    """Fibres along world x, 40 directions at b = 1000 and 3 volumes at b = 300; b = 0 twice."""
    vectors = np.vstack([np.zeros((2, 3)), fibonacci_hemisphere(40), np.eye(3)])
    gtab = GradientTable(vectors, np.r_[0, 0, np.full(40, 1000.0), np.full(3, 300.0)])
    signal = np.exp(-gtab.bvals * 1e-3 * (0.4 + 1.2 * gtab.bvecs[:, 0] ** 2))
    s0 = rng.uniform(0.8, 1.2, SHAPE)[..., None]
    return 500 * (s0 * signal + rng.normal(0, noise, (*SHAPE, len(gtab)))), gtab


@pytest.fixture
def finished(tmp_path, rng):
    data, gtab = scan(rng)
    case = write_case(tmp_path, data, gtab)
    sample = canonical_sample(case)
    nothing = torch.zeros(restore.task.head.channels, *sample.mask.shape[1:])
    return case, sample, nothing, restore.finish({'restore': nothing}, sample, case)


def test_only_the_main_shell_is_restored_and_the_rest_is_as_it_was(finished):
    case, sample, _, arrays = finished
    said = restore.details(arrays)['restored']
    assert said['PassedThrough'] == [0, 1, 42, 43, 44]
    assert said['RestoredVolumes'] == list(range(2, 42))
    inside = sample.mask[0].numpy()
    data = load_volume(case.files['dwi'])[::-1]  # stored from right to left
    own = data[1:-1, 2:-1, 1:-2]
    assert np.array_equal(arrays['restored'][inside][:, said['PassedThrough']],
                          own[inside][:, said['PassedThrough']])  # fmt: skip


def test_with_no_correction_the_residual_is_the_noise_that_harmonics_do_not_follow(finished):
    """And a little more: of a strong fibre the map, which trusts its prior, leaves some too."""
    arrays = finished[-1]
    said = restore.details(arrays)['residual']
    assert said['NoiseDeviation'] == pytest.approx(NOISE, rel=0.15)
    assert said['ExpectedLow'] < said['Median'] < 1.15 * said['ExpectedLow'] < 1
    assert said['ByVolume'][0] is None
    assert said['ByVolume'][5] == pytest.approx(said['Median'], rel=0.25)


def test_a_correction_that_the_data_do_not_support_stands_out_where_it_is(finished):
    case, sample, nothing, before = finished
    wrong = nothing.clone()
    wrong[0, 3:6, 3:6, 3:6] = 3
    after = restore.finish({'restore': wrong}, sample, case)['residual']
    changed = np.zeros(after.shape, bool)
    changed[3:6, 3:6, 3:6] = True
    assert after[changed].min() > 4
    assert np.array_equal(after[~changed], before['residual'][~changed])


def test_correction_towards_the_clean_scan_takes_noise_away(tmp_path, rng):
    """Given the correction that the clean scan's harmonics ask for, volumes come near the clean."""
    clean, gtab = scan(np.random.default_rng(1), 0)
    noisy = clean + 500 * rng.normal(0, NOISE, clean.shape)
    (tmp_path / 'clean').mkdir()
    truth = canonical_sample(write_case(tmp_path / 'clean', clean, gtab))
    case = write_case(tmp_path, noisy, gtab)
    sample = canonical_sample(case)
    correction = restore.input_harmonics(truth.image) - restore.input_harmonics(sample.image)
    arrays = restore.finish({'restore': correction}, sample, case)
    b1000 = slice(2, 42)
    inside = sample.mask[0].numpy()
    own, wanted = (array[::-1][1:-1, 2:-1, 1:-2][inside][:, b1000] for array in (noisy, clean))
    error = np.abs(arrays['restored'][inside][:, b1000] - wanted).mean()
    assert error < 0.75 * np.abs(own - wanted).mean()
    assert arrays['residual'][inside].mean() == pytest.approx(1, abs=0.15)
    assert arrays['restored_fa'][inside].std() < 0.05


def test_harmonics_are_those_at_the_head_of_each_slot():
    image = torch.arange(float(N_CHANNELS))[:, None, None, None]
    found = restore.input_harmonics(image)[:, 0, 0, 0]
    first = torch.arange(N_SH)
    assert torch.equal(found, torch.cat([first, first + SLOT_CHANNELS, first + 2 * SLOT_CHANNELS]))


def test_no_scan_has_a_label_for_it():
    assert restore.task.label is None
    assert restore.task.learnt == restore.task.labels('reference') == ()


def test_error_counts_filled_slots_only(finished):
    _, sample, nothing, _ = finished
    target = torch.zeros(restore.task.head.targets, *sample.mask.shape[1:])
    target[:N_SH] = 0.5
    target[N_SH : 3 * N_SH] = 100
    target[3 * N_SH] = 1
    rows = {m: v for m, _, v in restore.metrics(nothing, replace(sample, target=target))}
    assert rows == pytest.approx({'rmse': 0.5, 'rmse_uncorrected': 0.5})


def degrees_from_x(vectors):
    """(V, 3) axes → degrees from the world's first axis, along which the scan's fibres lie."""
    return np.degrees(np.arccos(np.clip(np.abs(vectors[:, 0]), 0, 1)))


def named(tilt, case, sample, **further):
    """Degrees by which the first fibre is wrong if the network names axes ``tilt`` degrees off.

    ``further``: outputs of other tasks of the network.
    """
    axis = torch.tensor([np.cos(np.deg2rad(tilt)), np.sin(np.deg2rad(tilt)), 0.0])
    output = torch.zeros(51, *sample.mask.shape[1:])
    output[:6] = six(torch.outer(axis, axis))[:, None, None, None]
    found = orientation.finish({'orientation': output, **further}, sample, case)['direction']
    return degrees_from_x(found[sample.mask[0].numpy()][:, :3])


def test_what_stands_in_a_predicted_slice_is_no_witness(tmp_path, rng):
    """Neither what is restored nor what a prediction leaves follows from it."""
    data, gtab = scan(rng, noise=0.02)
    found = []
    for value in (0.0, 900.0):
        data[:, :, 3, 7] = value
        case = write_case(tmp_path, data, gtab)
        said = {'MotionCorrection': {'ReplacedSlices': [[7, 3, 3]], 'SliceAxis': 'k'}}
        dwi = case.files['dwi']
        dwi.with_name(dwi.name.partition('.')[0] + '.json').write_text(json.dumps(said))
        sample = canonical_sample(case)
        nothing = torch.zeros(restore.CHANNELS, *sample.mask.shape[1:])
        found.append(restore.finish({'restore': nothing}, sample, case))
    for name in ('restored', 'residual', 'residual_by_volume', 'restored_fa'):
        assert np.array_equal(*(arrays[name] for arrays in found), equal_nan=True), name


def test_axes_that_the_whole_scan_contradicts_are_drawn_to_it(finished):
    case, sample, *_ = finished
    alone = Case(case.entities, {})
    assert named(30, alone, sample) == pytest.approx(30, abs=0.1)
    assert np.median(named(30, case, sample)) < 5


def test_axes_that_are_right_stay_better_than_what_a_voxel_shows(tmp_path, rng):
    data, gtab = scan(rng, noise=0.1)
    case = write_case(tmp_path, data, gtab)
    sample = canonical_sample(case)
    signal, table = brain_signal(case, sample)
    own = np.median(degrees_from_x(fit_tensor(signal, table).direction))
    assert np.median(named(0, case, sample)) < 0.6 * own


def test_with_its_own_restored_volumes_a_network_names_their_main_axes(finished):
    case, sample, nothing, arrays = finished
    volumes = arrays['restored'][sample.mask[0].numpy()].T
    _, table = brain_signal(case, sample)
    expected = degrees_from_x(fit_tensor(volumes, table).direction)
    assert 'restore' in orientation.task.uses
    assert np.allclose(named(90, case, sample, restore=nothing), expected, atol=0.02)


@pytest.mark.parametrize(('n', 'shown'), [(6, False), (19, False), (20, True), (64, True)])
def test_few_directions_name_no_crossings(n, shown):
    """Each twice: what counts are different directions of one shell."""
    vectors = np.vstack([np.zeros((1, 3)), *[fibonacci_hemisphere(n)] * 2, fibonacci_hemisphere(6)])
    bvals = np.r_[0, np.full(2 * n, 1000.0), np.full(6, 2500.0)]
    assert orientation.shows_crossings(GradientTable(vectors, bvals)) is shown
