"""What a network sees of a run is worked out once, and opened as it was kept."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from bidsapp.core import Case, Sample
from bidsapp.learn.inputs import Input, Shape, Use, kept_inputs, open_input, save_input


def sample(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Sample(
        torch.randn(2, 3, 4, 5, generator=generator),
        torch.rand(1, 3, 4, 5, generator=generator) > 0.5,
        np.diag([2.0, 3, 4, 1]),
        context={'voxel_mm': torch.tensor([2.0, 3, 4]), 'coil_maps': torch.randn(8, 3, 4, 5)},
    )


@pytest.fixture
def case(tmp_path):
    (tmp_path / 'image.nii.gz').write_bytes(b'x')
    return Case({'subject': '01'}, {'image': tmp_path / 'image.nii.gz'})


def counting(made):
    """An input of one part, or of two to learn from; ``made`` notes each that is worked out."""

    def parts(case, use):
        return [{'half': k, **use.options} for k in range(2 if use.training else 1)]

    def worked_out(case, part):
        made.append(part)
        return sample(part['half'])

    return Input('x', worked_out, Shape('unet'), parts)


def test_kept_and_opened_it_is_the_same(tmp_path):
    whole = sample()
    again = open_input(save_input(whole, tmp_path / 'kept'))
    assert torch.equal(again.image, whole.image)
    assert torch.equal(again.mask, whole.mask)
    assert np.array_equal(again.affine, whole.affine)
    assert again.context.keys() == whole.context.keys()
    assert all(torch.equal(again.context[name], whole.context[name]) for name in whole.context)
    assert [path.name for path in tmp_path.iterdir()] == ['kept']


def test_what_is_changed_in_memory_is_not_changed_on_disk(tmp_path):
    folder = save_input(sample(), tmp_path / 'kept')
    open_input(folder).image.zero_()
    assert open_input(folder).image.any()


def test_each_part_is_worked_out_once_and_a_changed_file_again(case, tmp_path):
    made = []
    own, folder = counting(made), tmp_path / 'inputs'
    learn = kept_inputs(own, case, 'image', Use(training=True), folder)
    judge = kept_inputs(own, case, 'image', Use(), folder)
    assert len(set(learn)) == 2
    assert judge == learn[:1]
    assert [part['half'] for part in made] == [0, 1]
    assert kept_inputs(own, case, 'image', Use(options={'n': 6}), folder)[0] not in learn
    stat = case.files['image'].stat()
    os.utime(case.files['image'], ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))
    assert kept_inputs(own, case, 'image', Use(), folder)[0] not in learn
    assert len(made) == 4
