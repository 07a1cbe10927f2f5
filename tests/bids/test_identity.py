"""Which raw scan a prepared run was made from, wherever the datasets stand."""

from __future__ import annotations

import json

import pytest

from bidsapp import registry
from bidsapp.bids.identity import raw_scan, roots_of, scans_of_person
from bidsapp.core import Case

PREPARED = registry.files('dwi').prepared


@pytest.fixture
def raw(tmp_path):
    root = tmp_path / 'raw'
    for name in ('01/ses-a/dwi/sub-01_ses-a_dwi', '01/ses-b/dwi/sub-01_ses-b_dwi',
                 '01/ses-a/anat/sub-01_ses-a_T1w', '02/dwi/sub-02_dwi'):  # fmt: skip
        path = root / f'sub-{name}.nii.gz'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def test_a_persons_scans_are_of_all_sessions_and_of_nobody_else(raw):
    scan = raw / 'sub-01/ses-b/dwi/sub-01_ses-b_dwi.nii.gz'
    assert scans_of_person(scan, raw) == [scan, raw / 'sub-01/ses-a/dwi/sub-01_ses-a_dwi.nii.gz']


@pytest.mark.parametrize(
    ('sidecar', 'found'),
    [
        ({'Sources': ['bids:raw:sub-02/dwi/sub-02_dwi.nii.gz', 'bids:raw:x']}, True),
        ({'Sources': ['bids:raw:sub-03/dwi/sub-03_dwi.nii.gz']}, False),
        ({'Sources': ['bids:other:sub-02/dwi/sub-02_dwi.nii.gz']}, False),
        ({'Sources': []}, False), ({'Sources': [3]}, False), ({}, False), ([], False),
        (None, False),
    ],
)  # fmt: skip
def test_the_sidecar_says_it_or_nobody_knows(raw, tmp_path, sidecar, found):
    case = Case({'subject': '02'}, {'dwi': tmp_path / 'sub-02_desc-preproc_dwi.nii.gz'})
    if sidecar is not None:
        (tmp_path / 'sub-02_desc-preproc_dwi.json').write_text(json.dumps(sidecar))
    scan = raw / 'sub-02/dwi/sub-02_dwi.nii.gz'
    assert raw_scan(case, PREPARED, {'raw': raw}) == ((scan, raw) if found else None)


def test_datasets_are_where_they_are_given_else_where_they_are_linked(tmp_path):
    links = {'raw': 'file:///gone', 'qsiprep': (tmp_path / 'q p').as_uri(), 'here': '../x',
             'web': 'https://example.org'}  # fmt: skip
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / 'dataset_description.json').write_text(json.dumps({'DatasetLinks': links}))
    found = roots_of(tmp_path / 'out', {'raw': tmp_path})
    assert found == {'raw': tmp_path, 'qsiprep': tmp_path / 'q p', 'here': tmp_path / 'x'}
