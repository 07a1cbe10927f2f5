"""A model has seen a scan if it has seen its content: labels of people say nothing elsewhere."""

from __future__ import annotations

import json
import math

import pytest

from bidsapp.learn.seen import about_seen, ancestry, flagged, flags, identity, seen_scans, was_seen

START = {'name': 'start', 'version': 'v3', 'sha256': 'ab' * 32}


@pytest.fixture
def scan(tmp_path):
    """Content → a file of it; the same content in another file is the same scan."""

    def write(content, lab='here', label='01'):
        path = tmp_path / lab / content / f'sub-{label}_dwi.nii.gz'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        return path

    return write


def test_another_labs_participant_of_the_same_label_was_not_seen(scan):
    card = about_seen({'train': [scan('mine')], 'val': [scan('hers', label='02')]}, None)
    assert was_seen(card, [scan('theirs', 'there')]) is False
    assert was_seen(card, [scan('mine', 'there', '77')]) is True
    assert was_seen(card, [scan('hers', 'there')]) is True
    assert 'sub-' not in json.dumps(card)


def test_who_was_held_out_was_not_seen(scan):
    card = about_seen({'train': [scan('a')], 'val': [scan('b')], 'test': [scan('c')]}, None)
    assert was_seen(card, [scan('c')]) is False
    assert card['scans']['test'] == [identity(scan('c'))]


def test_a_person_was_seen_if_any_of_the_persons_scans_was(scan):
    card = about_seen({'train': [scan('first visit')]}, None)
    visits = [scan('second visit', 'there', '5'), scan('first visit', 'there', '6')]
    assert was_seen(card, visits) is True


def test_whom_the_start_had_seen_its_children_have_seen_too(scan):
    grandmother = {**START, 'version': 'v1', **about_seen({'train': [scan('a')]}, None)}
    mother = {**START, 'version': 'v2', **about_seen({'train': [scan('b')]}, grandmother)}
    child = about_seen({'train': [scan('c')], 'test': [scan('a')]}, mother)
    assert all(was_seen(child, [scan(x)]) for x in 'abc')
    assert [model['version'] for model in child['ancestry']] == ['v2', 'v1']
    (row,) = flags('finetuned', mother, {'01': [scan('a')], '02': [scan('z')]})
    assert row[:3] == ('sub-01', 'test', 'finetuned')
    assert flagged([row]) == {'finetuned': (['sub-01'], [])}
    assert flags('scratch', None, {'01': [scan('a')]}) == []


def test_what_cannot_be_told_is_not_told(scan, tmp_path):
    """Cards of before they held scans, files that are not there: unknown, not unseen."""
    old = {**START, 'task': 'tissue', 'started_from': {**START, 'version': 'v1'}}
    assert was_seen(old, [scan('a')]) is None
    known = about_seen({'train': [scan('a'), None]}, None)
    assert was_seen(known, [scan('a')]) is True
    assert was_seen(known, [scan('b')]) is None
    child = about_seen({'train': [scan('a')]}, old)
    assert was_seen(child, [scan('b')]) is None
    assert [model['version'] for model in ancestry(old)] == ['v3', 'v1']
    whole = about_seen({'train': [scan('a')]}, None)
    assert was_seen(whole, [tmp_path / 'not fetched.nii.gz']) is None
    assert was_seen(whole, []) is None
    (row,) = flags('finetuned', old, {'01': [scan('b')]})
    assert math.isnan(row[5])
    assert flagged([row]) == {'finetuned': ([], ['sub-01'])}


def test_pretraining_on_simulated_scans_has_seen_nobody(scan):
    bundled = {'objective': 'supervised', 'training': {'brains': 'simulated'}}
    assert seen_scans(bundled) == (frozenset(), True)
    assert was_seen(bundled, []) is False
    auxiliary = {'objective': 'restore', 'training': {'participants': {'train': 4}}}
    assert was_seen(auxiliary, [scan('a')]) is None
    assert was_seen({'task': 'tissue', 'participants': {'train': 4}}, [scan('a')]) is None
