"""What every room's tests share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

SHARED = Path(__file__).resolve().parents[1].parent / 'shared' / 'data'


#: Folders and files of tests that start the app or take a head through it: marked ``whole``.
WHOLE = ('app', 'modalities/test_toy.py', 'platforms/test_adapters.py')


def pytest_collection_modifyitems(items):
    here = Path(__file__).parent
    for item in items:
        place = item.path.relative_to(here).as_posix()
        if place.startswith(WHOLE):
            item.add_marker(pytest.mark.whole)


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


@pytest.fixture
def generator():
    import torch

    return torch.Generator().manual_seed(20261121)


@pytest.fixture(scope='session')
def template():
    """A coarse template of a head."""
    import torch

    from bidsapp.physics.template import template_maps
    from bidsapp.simulate.anatomy import head_template

    _, gm, wm, csf, affine = template_maps(3.0)
    return head_template(*(torch.from_numpy(a) for a in (gm, wm, csf, affine)))


@pytest.fixture(scope='session')
def head(template):
    """One coarse head."""
    import torch

    from bidsapp.simulate.anatomy import draw_head

    return draw_head(template, torch.Generator().manual_seed(1))
