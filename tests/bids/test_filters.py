"""A query of a filter file means one thing; what cannot be one is refused with what to write."""

from __future__ import annotations

import json
import logging

import pytest

from bidsapp.bids.filters import matches, read_filters
from bidsapp.problems import WrongUsage

NAMED = {'subject': '01', 'session': 'a', 'run': '02', 'extension': '.nii.gz', 'suffix': 'dwi'}


@pytest.mark.parametrize(
    ('query', 'answer'),
    [
        ({}, True),
        ({'session': 'a'}, True),
        ({'session': 'A'}, False),
        ({'session': 'ses-a'}, True),
        ({'session': ['b', 'a']}, True),
        ({'session': None}, False),
        ({'session': [None, 'a']}, True),
        ({'session': 'Query.NONE'}, False),
        ({'acquisition': None}, True),
        ({'acquisition': 'Query.NONE'}, True),
        ({'acquisition': '*'}, False),
        ({'acquisition': ['*', None]}, True),
        ({'acquisition': 'Query.OPTIONAL'}, True),
        ({'session': '*', 'run': 'Query.ANY'}, True),
        ({'run': 2}, True),
        ({'run': '2'}, True),
        ({'run': [1, 3]}, False),
        ({'subject': '1'}, False),
        ({'extension': 'nii.gz'}, True),
        ({'extension': '.nii'}, False),
    ],
)
def test_what_a_query_means(query, answer):
    assert matches(query, NAMED) is answer


@pytest.mark.parametrize(
    ('content', 'said'),
    [
        ({'dwi': {'acq': 'x'}}, "write 'acquisition'"),
        ({'dwi': {'ses': '01'}}, "write 'session'"),
        ({'dwi': {'Session': '01'}}, "write 'session'"),
        ({'dwi': {'return_type': 'id'}}, 'no entity; known are subject'),
        ({'DWI': {'session': '01'}}, "write 'dwi'"),
        ({'T1w': {'session': '01'}}, "write 't1w'"),
        ({'dwi': {'run': True}}, 'True cannot be asked for'),
        ({'dwi': {'run': {'a': 1}}}, 'cannot be asked for'),
        ({'dwi': {'session': 'Query.SOME'}}, 'cannot be asked for'),
        ({'dwi': {'session': []}}, 'selects nothing'),
        ({'dwi': None}, 'object of queries'),
    ],
)
def test_what_is_no_query_is_refused_with_what_to_write(tmp_path, content, said):
    (path := tmp_path / 'filter.json').write_text(json.dumps(content))
    with pytest.raises(WrongUsage, match=said):
        read_filters(path)


def test_what_is_understood_or_not_used_is_said(tmp_path, caplog):
    content = {'dwi': {'session': 'ses-01'}, 'bold': {'task': 'rest'}}
    (path := tmp_path / 'filter.json').write_text(json.dumps(content), encoding='utf-8-sig')
    with caplog.at_level(logging.INFO, 'transfermri'):
        assert read_filters(path) == content
    assert "'ses-01' is taken as '01'" in caplog.text
    assert 'no file here is asked for by bold' in caplog.text
