"""What a task is fine-tuned on: who cannot be read is named and left out, and stops nobody."""

from __future__ import annotations

import logging

import pytest

from bidsapp import registry
from bidsapp.core import Case
from bidsapp.learn import finetune
from bidsapp.learn.finetune import gather
from bidsapp.problems import BadData, MissingInput

TASK = registry.task('tissue')


@pytest.fixture
def cases(tmp_path, monkeypatch):
    """Five participants; the input of the third cannot be made."""
    monkeypatch.setattr(logging.getLogger('transfermri'), 'propagate', True)

    def inputs_of(task, case, use, folder):
        if case.subject == '03':
            raise BadData('its input is not made of numbers')
        return []

    monkeypatch.setattr(finetune, 'inputs_of', inputs_of)
    names = (f'{n:02d}' for n in range(1, 6))
    return [
        Case({'subject': n}, {'dwi': tmp_path / f'sub-{n}_desc-preproc_dwi.nii.gz'}) for n in names
    ]


def test_a_run_whose_input_cannot_be_made_is_named_and_left_out(cases, tmp_path, caplog):
    split = dict(zip(('01', '02', '03', '04', '05'), ('train', 'train', 'train', 'val', 'test'),
                     strict=True))  # fmt: skip
    groups = gather(TASK, cases, split, {}, tmp_path).groups
    assert [case.subject for case in groups['train']] == ['01', '02']
    assert 'sub-03 is left out: its input' in caplog.text


def test_a_split_that_has_nobody_else_is_refused(cases, tmp_path):
    split = {'01': 'train', '02': 'train', '03': 'val', '04': 'test'}
    with pytest.raises(MissingInput, match='no labelled participant is in val'):
        gather(TASK, cases, split, {}, tmp_path)
