"""The off-resonance of a simulated head."""

from __future__ import annotations

import pytest
import torch

from bidsapp.modalities.dwi.simulate.distortion import CAVITIES, draw_off_resonance
from bidsapp.simulate.t1w import field_of_view


@pytest.fixture(scope='module')
def grid(head):
    return field_of_view(head, torch.diag(torch.tensor([-1.0, 1, 1])), 4.0)


@pytest.fixture(scope='module')
def hz(head, grid):
    return draw_off_resonance(head, grid, torch.Generator().manual_seed(3))


def brain(head, grid):
    return head.tissues(grid.points())[:3].sum(0) > 0.5


def test_the_shim_leaves_neither_offset_nor_gradient(head, grid, hz):
    inside = brain(head, grid)
    points = grid.points()[:, inside]
    points = (points - points.mean(1, keepdim=True)) / 50
    assert abs(float(hz[inside].mean())) < 0.01
    assert (points @ hz[inside] / inside.sum()).abs().max() < 0.01


def test_it_peaks_above_the_cavities(head, grid, hz):
    """Air in water is less diamagnetic, so the field along z is raised above it."""
    inside = brain(head, grid)
    template = head.to_template(grid.points())
    (centre, _), *_ = CAVITIES
    offset = template - torch.tensor(centre)[:, None, None, None]
    above = inside & (offset[:2].norm(dim=0) < 12) & (offset[2] > 5) & (offset[2] < 35)
    assert float(hz[above].mean()) > 1.5 * float(hz[inside].std())
    assert 30 < float(hz[inside].max()) < 400
    assert float(hz[inside].abs().median()) < 25


def test_it_grows_with_the_main_field_and_follows_its_generator(head, grid, hz):
    same, weaker = (
        draw_off_resonance(head, grid, torch.Generator().manual_seed(3), tesla)
        for tesla in (3.0, 1.5)
    )
    assert torch.equal(same, hz)
    torch.testing.assert_close(2 * weaker, hz, rtol=1e-3, atol=1e-2)
