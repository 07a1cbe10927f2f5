"""A coarse template, and one coarse head with its bundles."""

from __future__ import annotations

import pytest
import torch

from bidsapp.modalities.dwi.simulate.fibres import draw_bundles
from bidsapp.physics.template import template_maps
from bidsapp.simulate.anatomy import draw_head, head_template


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(20261121)


@pytest.fixture(scope='session')
def template():
    _, gm, wm, csf, affine = template_maps(3.0)
    return head_template(*(torch.from_numpy(a) for a in (gm, wm, csf, affine)))


@pytest.fixture(scope='session')
def head(template):
    return draw_head(template, torch.Generator().manual_seed(1))


@pytest.fixture(scope='session')
def bundles(template):
    return draw_bundles(template, torch.Generator().manual_seed(2))
