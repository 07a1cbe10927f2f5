"""What does without a network sees what a network sees, and answers in the same channels."""

from __future__ import annotations

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch

from bidsapp import registry
from bidsapp.bids.prepared import find_prepared
from bidsapp.learn.inputs import Use
from bidsapp.modalities.dwi.learn.classical import first_direction, one_hot
from bidsapp.modalities.dwi.learn.input import brain_signal, parts, sample_of, volumes_of
from bidsapp.modalities.dwi.learn.losses import principal_axis
from bidsapp.physics.geometry import grid_axes
from bidsapp.problems import Unavailable
from tests.modalities.prepared import PREPARED

AXIS = np.array([[0.96, -0.28, 0], [0.28, 0.96, 0], [0, 0, 1]])


@pytest.fixture
def case(tmp_path):
    """A ball whose fibres run along world x, on an oblique grid."""
    affine = np.eye(4)
    affine[:3, :3] = AXIS @ np.diag([-2.0, 2, 2])
    PREPARED['dwi'](tmp_path, affine)
    (found,) = find_prepared(tmp_path, 'dwi')
    return found


def half(case):
    part = parts(case, Use(training=True))[0]
    return replace(case, part=part), sample_of(case, part)


def labelled(sample, target):
    return replace(sample, target=target * sample.mask)


def test_a_part_of_a_run_is_all_that_is_seen(case):
    whole, sample = volumes_of(case, sample_of(case, {})), sample_of(case, {})
    own, part = half(case)
    volumes, gtab = volumes_of(own, part)
    keep = own.part['volumes']
    assert len(keep) < len(whole[1])
    assert np.array_equal(volumes, whole[0][keep])
    assert np.array_equal(gtab.bvecs, whole[1].bvecs[keep])
    signal, _ = brain_signal(own, part)
    assert signal.shape == (len(keep), int(sample.mask.sum()))


def test_more_files_leave_the_part(case, tmp_path):
    own, _ = half(case)
    assert own.with_files(other=tmp_path).part == own.part


def test_direction_is_that_of_the_fibres(case):
    own, sample = half(case)
    white = sample.mask[0].numpy()
    found = first_direction(own, sample, white)[white]
    world = found @ grid_axes(sample.affine).T
    assert np.median(np.abs(world[:, 0])) > 0.99


def test_every_task_that_has_one_answers_in_the_channels_of_its_head(case):
    own, sample = half(case)
    shape = sample.mask.shape[1:]
    for name in ('tissue', 'orientation'):
        task = registry.task(name)
        target = torch.zeros(task.head.targets if name == 'orientation' else 1, *shape)
        target[0] = 1
        if name == 'tissue':
            target[0, : shape[0] // 2] = 2
        taught = labelled(sample, target)
        estimate = task.classical.fitted([(own, taught)])
        found = estimate(own, taught)
        assert found.shape == (task.head.channels, *shape)
        assert task.head.metrics(found, taught)


def test_what_an_input_does_not_carry_is_unavailable(case):
    own, sample = half(case)
    target = torch.ones(3, *sample.mask.shape[1:])
    for name in ('crossings', 'microstructure', 'kurtosis'):
        estimate = registry.task(name).classical.fitted([])
        with pytest.raises(Unavailable):
            estimate(own, labelled(sample, target))


def test_water_and_white_matter_are_told_by_thresholds(case):
    image = nib.load(case.files['dwi'])
    data = image.get_fdata(dtype=np.float32)
    bvals = np.loadtxt(case.files['bval'])
    water = np.zeros(data.shape[:3], bool)
    water[:, :6] = True
    data[water] = (400 * np.exp(-bvals * 3e-3)).astype(np.float32)
    nib.save(nib.Nifti1Image(data, image.affine), case.files['dwi'])
    sample = sample_of(case, {})
    own = replace(case, part=parts(case, Use())[0])
    volumes, gtab = volumes_of(own, sample)
    wet = volumes[~gtab.b0].mean(0) < 0.2 * volumes[gtab.b0].mean(0)
    target = torch.from_numpy(np.where(wet, 3, 2)[None].astype(np.float32))
    taught = labelled(sample, target)
    found = registry.task('tissue').classical.fitted([(own, taught)])(own, taught)
    rows = {(m, label): v for m, label, v in registry.task('tissue').head.metrics(found, taught)}
    assert rows['accuracy', 'all'] > 0.98


def test_what_is_judged_of_directions_is_what_is_written(case):
    """The network says y; the scan's volumes say x, and so does the file."""
    own, sample = half(case)
    task = registry.task('orientation')
    output = torch.zeros(task.head.channels, *sample.mask.shape[1:])
    output[1] = 1  # yy of the dyad, in the axes of the grid
    target = torch.zeros(9, *sample.mask.shape[1:])
    target[:3] = torch.from_numpy(grid_axes(sample.affine).T[:, 0]).float()[:, None, None, None]
    own_sample = labelled(sample, target)
    written = task.written({'orientation': output}, own_sample, own)
    world = task.finish({'orientation': output}, own_sample, own)['direction'][..., :3]
    where = sample.mask[0]
    axes = principal_axis(written[:6].movedim(0, -1)[where]).numpy() @ grid_axes(sample.affine).T
    same = np.abs((axes * world[where.numpy()]).sum(-1))
    assert same.min() > 0.999
    said, judged = (task.head.metrics(o, own_sample)[0][2] for o in (output, written))
    assert judged < said


def test_one_hot_has_its_maximum_at_the_class():
    classes = np.arange(8).reshape(2, 2, 2) % 4
    assert np.array_equal(one_hot(classes, 4).argmax(0).numpy(), classes)
