"""Volumes left out by hand."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from bidsapp.core import Case
from bidsapp.modalities.dwi.bids.exclusion import excluding, read_exclusions
from bidsapp.modalities.dwi.bids.runs import DwiRun
from bidsapp.problems import MissingInput, WrongUsage

SCAN = 'sub-01/dwi/sub-01_dwi.nii.gz'


@pytest.fixture
def root(tmp_path):
    (tmp_path / SCAN).parent.mkdir(parents=True)
    nib.save(nib.Nifti1Image(np.zeros((3, 3, 3, 10), np.uint8), np.eye(4)), tmp_path / SCAN)
    return tmp_path


def table(root, text):
    path = root / 'out.tsv'
    path.write_text(text, encoding='utf-8')
    return path


def test_numbers_and_spans_add_up(root):
    path = table(root, f'file\tvolumes\n{SCAN}\t3,7-9\n{SCAN}\t0, 1\n')
    assert read_exclusions(path, root) == {root / SCAN: frozenset((0, 1, 3, 7, 8, 9))}


@pytest.mark.parametrize(('text', 'problem', 'said'), [
    (f'path\tvolumes\n{SCAN}\t1\n', WrongUsage, 'no column file'),
    ('', WrongUsage, 'no column'),
    (f'file\tvolumes\n{SCAN}\t1;2\n', WrongUsage, 'line 2'),
    (f'file\tvolumes\n{SCAN}\t9-7\n', WrongUsage, '9-7'),
    (f'file\tvolumes\n{SCAN}\t-1\n', WrongUsage, 'counted from 0'),
    (f'file\tvolumes\n{SCAN}\n', WrongUsage, 'line 2'),
    ('file\tvolumes\nsub-02/dwi/sub-02_dwi.nii.gz\t1\n', MissingInput, 'sub-02'),
])  # fmt: skip
def test_what_cannot_be_meant_is_refused(root, text, problem, said):
    with pytest.raises(problem, match=said):
        read_exclusions(table(root, text), root)


def test_a_table_that_is_not_there_is_missing(root):
    with pytest.raises(MissingInput, match='no such file'):
        read_exclusions(root / 'none.tsv', root)


def test_a_run_without_the_volume_that_is_named_is_its_own_problem(root):
    run = DwiRun('dwi', Case({'subject': '01'}, {'dwi': root / SCAN}))
    assert excluding(run, {root / SCAN: frozenset((9, 3))}).excluded == (3, 9)
    wrong = excluding(run, {root / SCAN: frozenset((10,))})
    assert isinstance(wrong.problem, WrongUsage)
    assert 'expected 0 to 9' in str(wrong.problem)
    assert excluding(run, {}) is run
