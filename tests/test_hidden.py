"""What is being written has a name that no other process has, and is taken away by age alone."""

from __future__ import annotations

import os

import pytest

from bidsapp.hidden import OLD, hidden, put, remove_old, whole_folder


def test_two_jobs_of_the_same_number_and_host_have_different_names(tmp_path):
    names = {hidden(tmp_path / 'v1') for _ in range(50)}
    assert len(names) == 50
    assert all(path.name.startswith('.') and path.parent == tmp_path for path in names)


def test_who_comes_second_leaves_the_first_as_it_is(tmp_path):
    for content in ('first', 'second'):
        with whole_folder(tmp_path / 'kept') as staging:
            (staging / 'x').write_text(content)
    assert (tmp_path / 'kept' / 'x').read_text() == 'first'
    assert [path.name for path in tmp_path.iterdir()] == ['kept']


def test_what_failed_leaves_nothing(tmp_path):
    def fail():
        with whole_folder(tmp_path / 'kept') as staging:
            (staging / 'x').touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_taken_is_an_error(tmp_path):
    (tmp_path / 'kept').touch()
    (tmp_path / 'staging').mkdir()
    with pytest.raises(OSError, match='kept'):
        put(tmp_path / 'staging', tmp_path / 'kept')


def test_only_the_old_is_taken_away_whoever_lives(tmp_path):
    """That no process of this number lives here says nothing of other machines."""
    young, old, other = hidden(tmp_path / 'a'), hidden(tmp_path / 'b'), tmp_path / '.bidsignore'
    for path in (young, old):
        path.mkdir()
        (path / 'x').touch()
    other.touch()
    for path in (old, other):
        then = path.stat().st_mtime - OLD - 60
        os.utime(path, (then, then))
    remove_old(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([young, other])
