"""What every room's tests share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

SHARED = Path(__file__).resolve().parents[1].parent / 'shared' / 'data'


@pytest.fixture
def rng():
    return np.random.default_rng(20261121)


@pytest.fixture(scope='session')
def multivendor() -> Path:
    """The real dataset of five heads from four vendors; never copied into the project."""
    folder = SHARED / 'multivendor'
    if not folder.is_dir():
        pytest.skip('the real scans are not beside this checkout (../shared/data/multivendor)')
    return folder
