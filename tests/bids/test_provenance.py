"""What an output was made from: what counts as a change, and what does not."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest

from bidsapp.bids.provenance import FIELD, UNKNOWN, Basis, basis, changed, digest, record


@pytest.fixture
def scan(tmp_path):
    path = tmp_path / 'sub-01_dwi.bvec'
    path.write_text('1 0 0')
    return path


@pytest.fixture
def made_from(scan):
    return Basis({'bids:raw:sub-01/dwi/sub-01_dwi.bvec': scan}, {'Denoise': 1}, {'seed': 0})


@pytest.fixture
def sidecar(tmp_path, made_from):
    return written(tmp_path / 'out.json', made_from)


def written(path, made_from):
    path.write_text(json.dumps({FIELD: record(made_from)}))
    return path


def test_nothing_has_changed(sidecar, made_from):
    assert changed(sidecar, made_from) is None
    assert changed(sidecar, basis(json.loads(json.dumps(made_from.plain())))) is None


def test_a_file_that_was_only_touched_or_copied_is_the_same(sidecar, made_from, scan):
    os.utime(scan, (1, 1))
    assert changed(sidecar, made_from) is None


def test_other_content_of_the_same_size_is_a_change(sidecar, made_from, scan):
    scan.write_text('0 1 0')
    os.utime(scan, (1, 1))
    assert changed(sidecar, made_from) == 'sub-01_dwi.bvec has changed'


def test_a_source_that_came_or_went_is_a_change(sidecar, made_from, scan):
    more = replace(made_from, sources={**made_from.sources, 'bids:raw:sub-01/T1w.nii': scan})
    assert changed(sidecar, more) == 'T1w.nii is new'
    assert changed(sidecar, replace(made_from, sources={})) == ('sub-01_dwi.bvec is no longer used')
    scan.unlink()
    assert changed(sidecar, made_from) == 'sub-01_dwi.bvec has changed'


def test_versions_of_steps_and_options_count(sidecar, made_from):
    raised = replace(made_from, steps={'Denoise': 2})
    assert changed(sidecar, raised) == 'the step Denoise gives other results in this version'
    assert changed(sidecar, replace(made_from, options={'seed': 1})) == 'seed is 1, and was 0'


@pytest.mark.parametrize('text', ['{}', '[]', 'no JSON', f'{{"{FIELD}": 3}}', None])
def test_an_output_without_a_record_is_said_to_have_none(tmp_path, made_from, text):
    path = tmp_path / 'old.json'
    if text is not None:
        path.write_text(text)
    assert changed(path, made_from) == UNKNOWN


def test_what_rests_on_an_output_that_was_made_again_is_stale(tmp_path, sidecar, made_from, scan):
    label = Basis(steps={'tissue label': 1}, rests_on=sidecar)
    derived = written(tmp_path / 'label.json', label)
    assert changed(derived, label) is None
    written(sidecar, made_from)  # made again from the same
    assert changed(derived, label) is None
    scan.write_text('0 1 0')
    written(sidecar, made_from)
    assert changed(derived, label) == 'out was made again'


def test_a_digest_follows_content_and_not_the_time_of_change(made_from, scan):
    before = digest(record(made_from))
    os.utime(scan, (1, 1))
    assert digest(record(made_from)) == before
    scan.write_text('0 1 0')
    assert digest(record(made_from)) != before
