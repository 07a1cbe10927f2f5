"""What labels and filters select, the choice of a T1w, and what is no dataset."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bidsapp.bids.dataset import check_dataset, choose_t1w, select, subjects_of
from bidsapp.bids.filters import read_filters
from bidsapp.problems import InvalidDataset, WrongUsage


def test_sessions_and_filters_select_images_of_which_phases_are_none(tmp_path):
    names = [
        f'sub-01/ses-{session}/anat/sub-01_ses-{session}{rest}_MEGRE.nii.gz'
        for session in 'ab'
        for rest in ('_part-mag', '_part-phase', '_acq-x')
    ]
    for name in ('dataset_description.json', 'derivatives/x/sub-01/anat/sub-01_MEGRE.nii', *names):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text('{"Name": "x", "BIDSVersion": "1.10.0"}')

    def found(**options):
        raw = select(tmp_path, ['01'], **options)
        return [str(p.relative_to(tmp_path)) for p in raw.files('gre', suffix='MEGRE')]

    assert found() == sorted(name for name in names if 'phase' not in name)
    assert found(sessions=['b']) == [names[5], names[3]]
    assert found(filters={'gre': {'acquisition': 'x', 'session': 'a'}}) == [names[2]]
    assert len(found(filters={'gre': {'acquisition': None}})) == 2
    assert len(found(filters={'dwi': {'acquisition': 'x'}})) == 4


def test_filter_file_that_is_no_object_is_said(tmp_path):
    path = tmp_path / 'filter.json'
    path.write_text('[1]')
    with pytest.raises(WrongUsage, match='object of queries'):
        read_filters(path)
    path.write_text('{')
    with pytest.raises(WrongUsage, match='not valid JSON'):
        read_filters(path)


@pytest.mark.parametrize(
    ('entities', 'chosen'),
    [
        ({'subject': '01', 'session': 'a'}, 'sub-01_ses-a_T1w.nii.gz'),
        ({'subject': '02', 'session': 'b'}, 'sub-02_ses-a_T1w.nii.gz'),
        ({'subject': '01', 'session': 'c'}, None),
        ({'subject': '03'}, None),
    ],
)
def test_t1w_of_the_same_session_else_the_only_one(entities, chosen):
    anatomies = [
        Path(f'{name}_T1w.nii.gz')
        for name in ('sub-01_ses-a', 'sub-01_ses-b', 'sub-01_ses-a_acq-z', 'sub-02_ses-a')
    ]
    found, notes = choose_t1w(entities, anatomies)
    assert (found.name if found else None) == chosen
    assert bool(notes) == (entities['subject'] != '03')


@pytest.mark.parametrize('content', ['{', '[]', json.dumps({'Name': 'x'})])
def test_description_that_is_not_one(tmp_path, content):
    (tmp_path / 'dataset_description.json').write_text(content)
    with pytest.raises(InvalidDataset):
        check_dataset(tmp_path)


def test_no_subject_folder(tmp_path):
    with pytest.raises(InvalidDataset, match='sub-'):
        subjects_of(tmp_path)
