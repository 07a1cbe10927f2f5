"""Sidecars as people write them: what is clear is understood, the rest is left out and said."""

from __future__ import annotations

import json

import pytest

from bidsapp.bids.metadata import understood
from bidsapp.bids.scans import read_object, read_scan
from bidsapp.bids.write import write_json
from bidsapp.problems import BadData


@pytest.mark.parametrize(
    ('said', 'meant'),
    [
        ('y-', 'j-'), ('j+', 'j'), ('-j', 'j-'), ('J-', 'j-'), ('x', 'i'), ('z-', 'k-'),
        ('k -', 'k-'), (['j-'], 'j-'),
    ],
)  # fmt: skip
@pytest.mark.parametrize('key', ['PhaseEncodingDirection', 'SliceEncodingDirection'])
def test_a_direction_in_another_spelling_is_understood_and_said(key, said, meant):
    clean, (note,) = understood({key: said})
    assert clean == {key: meant}
    assert key in note


@pytest.mark.parametrize('said', ['AP', 'A>>P', '', '+j-', 'jj', ['i', 'j'], [], 2, True, {'a': 1}])
@pytest.mark.parametrize('key', ['PhaseEncodingDirection', 'SliceEncodingDirection'])
def test_a_direction_that_is_not_clear_is_taken_as_not_said(key, said):
    clean, (note,) = understood({key: said, 'Other': 1})
    assert clean == {'Other': 1}
    assert note.startswith(key)


def test_an_axis_has_no_sign():
    assert understood({'PhaseEncodingAxis': 'y-'})[0] == {'PhaseEncodingAxis': 'j'}


def test_what_bids_would_write_is_left_alone_in_silence():
    said = {
        'PhaseEncodingDirection': 'j-', 'EchoTime': 0.08, 'TotalReadoutTime': 0.05,
        'FlipAngle': [10, 20], 'Manufacturer': 'Somebody', 'IntendedFor': [], 'Own': {'a': [1]},
    }  # fmt: skip
    assert understood(said) == (said, [])


@pytest.mark.parametrize(
    'text',
    ['NaN', 'Infinity', '-Infinity', 'null', '1e999', '[1, NaN]', '{"a": {"b": [null]}}'],
)
def test_what_is_no_value_is_left_out_and_said(text, tmp_path):
    path = tmp_path / 'x.json'
    path.write_text(f'{{"A": {text}, "B": 1}}')
    clean, (note,) = understood(read_object(path))
    assert clean == {'B': 1}
    assert note.startswith('A ')


@pytest.mark.parametrize(
    'value', ['fast', '', [], [0.1], {}, True, 0, -0.05, float('nan'), 10**400]
)
def test_a_time_that_is_none_is_left_out(value):
    clean, notes = understood({'TotalReadoutTime': value})
    assert clean == {}
    assert len(notes) == 1


def test_a_number_written_as_a_text_is_a_number():
    clean, notes = understood({'EchoTime': '0.08'})
    assert clean == {'EchoTime': 0.08}
    assert len(notes) == 1


def test_an_image_tells_what_of_its_metadata_is_doubtful(tmp_path):
    scan = tmp_path / 'sub-01_dwi.nii.gz'
    (tmp_path / 'sub-01_dwi.json').write_text('{"PhaseEncodingDirection": "y", "EchoTime": null}')
    read = read_scan(tmp_path, scan)
    assert read.metadata == {'PhaseEncodingDirection': 'j'}
    assert len(read.doubts) == 2
    assert not read.trouble


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16'])
def test_a_mark_at_the_start_is_skipped(encoding, tmp_path):
    (tmp_path / 'x.json').write_text('{"A": "ä"}', encoding=encoding)
    assert read_object(tmp_path / 'x.json') == {'A': 'ä'}


def test_nesting_without_end_is_no_sidecar(tmp_path):
    (tmp_path / 'x.json').write_text('{"a":' * 200_000)
    with pytest.raises(BadData, match='not valid JSON'):
        read_object(tmp_path / 'x.json')


def test_what_is_written_is_json_of_every_reader(tmp_path):
    path = write_json(tmp_path / 'x.json', {'A': [1.5, float('nan')], 'B': float('inf'), 'C': 'é'})

    def refuse(name):
        raise AssertionError(name)

    said = json.loads(path.read_text(encoding='utf-8'), parse_constant=refuse)
    assert said == {'A': [1.5, None], 'B': None, 'C': 'é'}
