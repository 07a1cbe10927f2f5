"""Whole participants, seeded, and at least one of each kind."""

from __future__ import annotations

import pytest

from bidsapp.learn.splits import make_split, read_split
from bidsapp.learn.tables import COLUMNS, explained, tsv
from bidsapp.problems import BadData, MissingInput


@pytest.mark.parametrize('n', [3, 4, 5, 10, 37])
def test_every_participant_once_and_every_kind_at_least_once(n):
    subjects = [f'{i:02}' for i in range(n)]
    split = make_split(subjects, 0)
    assert sorted(split) == subjects
    assert set(split.values()) == {'train', 'val', 'test'}


def test_the_seed_decides_and_the_order_does_not():
    subjects = [f'{i:02}' for i in range(20)]
    assert make_split(subjects, 1) == make_split(subjects[::-1], 1)
    assert make_split(subjects, 1) != make_split(subjects, 2)


def test_a_split_that_is_given(tmp_path):
    path = tmp_path / 'split.tsv'
    path.write_text('participant_id\tsplit\nsub-01\ttrain\n02\ttest\n')
    assert read_split(path) == {'01': 'train', '02': 'test'}


@pytest.mark.parametrize('text', ['who\tsplit\n01\ttrain\n', 'participant_id\tsplit\n01\tdev\n'])
def test_a_split_that_is_none_is_said(tmp_path, text):
    path = tmp_path / 'split.tsv'
    path.write_text(text)
    with pytest.raises(BadData, match='split'):
        read_split(path)
    with pytest.raises(MissingInput, match='does not exist'):
        read_split(tmp_path / 'other.tsv')


def test_table_has_its_columns_explained_and_says_what_is_missing():
    assert tuple(explained({'f1': 'F1'})) == COLUMNS
    assert explained({'f1': 'F1'})['metric'] == {'Levels': {'f1': 'F1'}}
    assert (
        tsv(('a', 'b'), [('x', float('nan')), ('y', 0.12345678)]) == 'a\tb\nx\tn/a\ny\t0.123457\n'
    )
