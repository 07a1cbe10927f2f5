"""The bundles of one coarse head."""

from __future__ import annotations

import pytest
import torch

from bidsapp.modalities.dwi.simulate.fibres import draw_bundles


@pytest.fixture(scope='session')
def bundles(template):
    return draw_bundles(template, torch.Generator().manual_seed(2))
