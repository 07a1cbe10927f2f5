"""What a network sees of a run is worked out once, and opened as it was kept."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

from bidsapp.core import Case, Sample
from bidsapp.learn.inputs import Input, Shape, Use, kept_inputs, open_input, save_input
from bidsapp.problems import BadData

KINDS = ('image', 'mask')


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
    for name in ('image.nii.gz', 'mask.nii.gz', 'image.json'):
        (tmp_path / name).write_bytes(b'x')
    files = {kind: tmp_path / f'{kind}.nii.gz' for kind in (*KINDS, 'label')}
    return Case({'subject': '01'}, files)


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


def test_a_target_that_an_input_brings_along_is_kept(tmp_path):
    whole = replace(sample(), target=torch.ones(2, *sample().image.shape[1:]))
    assert torch.equal(open_input(save_input(whole, tmp_path / 'kept')).target, whole.target)
    assert open_input(save_input(sample(), tmp_path / 'other')).target is None


def test_what_is_changed_in_memory_is_not_changed_on_disk(tmp_path):
    folder = save_input(sample(), tmp_path / 'kept')
    open_input(folder).image.zero_()
    assert open_input(folder).image.any()


def test_each_part_is_worked_out_once_and_a_changed_file_again(case, tmp_path):
    made = []
    own, folder = counting(made), tmp_path / 'inputs'
    learn = kept_inputs(own, case, KINDS, Use(training=True), folder)
    judge = kept_inputs(own, case, KINDS, Use(), folder)
    assert len(set(learn)) == 2
    assert judge == learn[:1]
    assert [part['half'] for part in made] == [0, 1]
    assert kept_inputs(own, case, KINDS, Use(options={'n': 6}), folder)[0] not in learn
    assert len(made) == 3


@pytest.mark.parametrize('changed', ['image.nii.gz', 'image.json', 'mask.nii.gz'])
def test_whatever_it_was_made_from_has_changed_it_is_made_again(case, tmp_path, changed):
    made = []
    own, folder = counting(made), tmp_path / 'inputs'
    first = kept_inputs(own, case, KINDS, Use(), folder)
    stat = (tmp_path / changed).stat()
    os.utime(tmp_path / changed, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))
    assert kept_inputs(own, case, KINDS, Use(), folder) != first
    (tmp_path / 'label.nii.gz').write_bytes(b'y')  # of some task
    kept_inputs(own, case, KINDS, Use(), folder)
    assert len(made) == 2


def test_several_calls_at_once_keep_one_whole_input_and_leave_nothing_else(case, tmp_path):
    """All are at work on the same input before one of them is done."""
    together = threading.Barrier(4, timeout=30)

    def worked_out(case, part):
        together.wait()
        return sample()

    own, folder = Input('x', worked_out, Shape('unet')), tmp_path / 'inputs'
    with ThreadPoolExecutor(4) as threads:
        calls = [
            threads.submit(kept_inputs, own, case, KINDS, Use(), folder)
            for _ in range(together.parties)
        ]
        places = {call.result()[0] for call in calls}
    assert [*folder.iterdir()] == [*places]
    assert torch.equal(open_input(*places).image, sample().image)


def test_an_input_that_is_not_made_of_numbers_is_refused_and_not_kept(case, tmp_path):
    lost = replace(sample(), image=torch.full((2, 3, 4, 5), float('nan')))
    own = Input('x', lambda case, part: lost, Shape('unet'))
    with pytest.raises(BadData, match='image'):
        kept_inputs(own, case, KINDS, Use(), tmp_path / 'inputs')
    assert not list(tmp_path.glob('inputs/*'))
