"""Stated uncertainty of an axis is what the predicted distribution says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bidsapp.modalities.dwi.learn.losses import axis_and_spread, dyad, spread_about


def test_spread_of_a_cone_is_its_angle():
    """Vectors 20 degrees around an axis: the mean dyad gives the axis back, and the 20 degrees."""
    generator = torch.Generator().manual_seed(0)
    frame = torch.linalg.qr(torch.randn(3, 3, generator=generator)).Q
    phi = torch.linspace(0, 2 * np.pi, 101)[:-1]
    angle = np.deg2rad(20)
    local = torch.stack(
        [np.sin(angle) * phi.cos(), np.sin(angle) * phi.sin(), torch.full_like(phi, np.cos(angle))]
    )
    mean = dyad((frame @ local).T).mean(0, keepdim=True)
    axis, spread = axis_and_spread(mean)
    assert abs(float(axis[0] @ frame[:, 2])) == pytest.approx(1, abs=1e-5)
    assert float(spread) == pytest.approx(20, abs=0.01)


def test_one_direction_has_no_spread_and_a_ball_the_largest():
    one = dyad(torch.tensor([[0.6, 0.0, 0.8]]))
    ball = torch.tensor([[1 / 3, 1 / 3, 1 / 3, 0, 0, 0]])
    nothing = torch.zeros(1, 6)
    _, spread = axis_and_spread(torch.cat([one, ball, nothing]))
    assert spread.tolist() == pytest.approx([0, 54.7356, 54.7356], abs=0.05)


def test_scale_of_the_dyad_says_nothing():
    dyads = torch.randn(50, 6, generator=torch.Generator().manual_seed(1)).abs()
    assert torch.allclose(axis_and_spread(dyads)[1], axis_and_spread(3 * dyads)[1], atol=1e-3)


def test_spread_about_the_main_axis_is_the_least_and_any_other_has_its_own():
    generator = torch.Generator().manual_seed(2)
    v = torch.randn(30, 40, 3, generator=generator) * torch.tensor([3.0, 1.0, 1.0])
    dyads = dyad(v / v.norm(dim=-1, keepdim=True)).mean(1)
    axes, spread = axis_and_spread(dyads)
    about = spread_about(dyads, axes)
    torch.testing.assert_close(torch.rad2deg(about.sqrt().asin()).float(), spread)
    other = torch.randn(30, 3, generator=generator)
    assert (spread_about(dyads, other / other.norm(dim=1, keepdim=True)) >= about - 1e-6).all()
    one = dyad(torch.tensor([[1.0, 0.0, 0.0]]))
    assert float(spread_about(one, torch.tensor([[0.0, 1.0, 0.0]]))) == pytest.approx(1)
    assert float(spread_about(torch.zeros(1, 6), axes[:1])) == pytest.approx(2 / 3)
