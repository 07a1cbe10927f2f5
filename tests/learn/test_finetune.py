"""What a task is fine-tuned on: who cannot be read is named and left out, and stops nobody."""

from __future__ import annotations

import logging
import math

import pytest

from bidsapp import registry
from bidsapp.core import Case
from bidsapp.learn import finetune
from bidsapp.learn.finetune import gather, rows_of
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


def test_a_run_without_what_stands_for_it_is_left_out(cases, tmp_path):
    split = dict(zip(('01', '02', '04', '05'), ('train', 'train', 'val', 'test'), strict=True))
    instead = {f'sub-{n}': Case({'subject': n}, {}) for n in ('02', '04', '05')}
    groups = gather(TASK, cases, split, {}, tmp_path, instead).groups
    assert [case.subject for case in groups['train']] == ['02']


def test_figures_of_a_run_are_means_over_its_inputs():
    case = Case({'subject': '07'}, {})
    inputs = [
        [('mae', 'all', 1.0), ('mae', 'x', math.nan)],
        [('mae', 'all', 3.0), ('mae', 'x', 2.0)],
    ]
    rows = rows_of(case, 'test', 'classical', inputs)
    assert rows == [
        ('sub-07', 'test', 'classical', 'mae', 'all', 2.0),
        ('sub-07', 'test', 'classical', 'mae', 'x', 2.0),
    ]


@pytest.mark.parametrize(('name', 'training'), [('tissue', False), ('orientation', True)])
def test_only_what_was_derived_from_the_run_is_judged_by_parts_of_it(
    name, training, cases, tmp_path, monkeypatch
):
    asked = []
    monkeypatch.setattr(
        finetune, 'inputs_of', lambda task, case, use, folder: asked.append(use) or []
    )
    split = dict(zip(('01', '02', '04', '05'), ('train', 'train', 'val', 'test'), strict=True))
    gather(registry.task(name), [c for c in cases if c.subject != '01'], split, {}, tmp_path)
    assert {use.training for use in asked} == {training, True}
