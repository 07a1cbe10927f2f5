"""Bad input of some kinds, one of each; ``make robustness`` tries several of every kind."""

from __future__ import annotations

import os

import pytest

from tests.robustness.fuzz import KINDS, VOXELS, tried

SOME = (*KINDS[::4], *(kind for kind in VOXELS if kind not in KINDS[::4]))


@pytest.fixture(autouse=True)
def own_environment(monkeypatch):
    """The app sets variables of its process; other tests shall not see them."""
    monkeypatch.setattr('os.environ', os.environ.copy())


@pytest.mark.parametrize('kind', SOME, ids=[kind.name.replace(' ', '-') for kind in SOME])
def test_bad_input_has_its_code_and_one_message(kind, tmp_path):
    assert tried(kind, tmp_path, examples=1)[1] == ''
