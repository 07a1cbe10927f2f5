from __future__ import annotations

import math

import pytest
import torch

from bidsapp.simulate.acquisition import (
    averaged,
    displaced,
    draw_bias,
    draw_motion,
    oblique,
    pushed,
    rician,
    turned,
)
from bidsapp.simulate.grids import Grid, rigid


def block(shape=(20, 24, 18)):
    """A bright box in the middle of an empty volume, and the grid of 2 mm it stands on."""
    volume = torch.zeros(shape)
    volume[8:12, 9:15, 7:11] = 1
    affine = torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0]))
    affine[:3, 3] = torch.tensor([-19.0, -23.0, -17.0])
    return volume, Grid(shape, affine)


def centre(volume, axis):
    positions = torch.arange(volume.shape[axis], dtype=torch.float32)
    profile = volume.movedim(axis, 0).flatten(1).sum(1)
    return float((profile * positions).sum() / profile.sum())


def test_positive_shift_moves_signal_to_higher_indices():
    volume, _ = block()
    moved = displaced(volume, torch.full_like(volume, 1.5), 1)
    assert centre(moved, 1) - centre(volume, 1) == pytest.approx(1.5, abs=1e-4)
    assert centre(moved, 0) == pytest.approx(centre(volume, 0), abs=1e-4)


def test_no_shift_changes_nothing(generator):
    volume = torch.rand(6, 9, 7, generator=generator)
    torch.testing.assert_close(displaced(volume, torch.zeros_like(volume), 2), volume)


@pytest.mark.parametrize('axis', [0, 1, 2])
def test_displacement_conserves_the_signal(generator, axis):
    volume = torch.rand(12, 16, 14, generator=generator)
    shift = torch.randn(12, 16, 14, generator=generator) * 0.2 + 1
    assert float(displaced(volume, shift, axis).sum()) == pytest.approx(
        float(volume.sum()), rel=1e-5
    )


@pytest.mark.parametrize('axis', [0, 1, 2])
@pytest.mark.parametrize('size', [0.2, 3.0])
def test_pushing_conserves_the_signal_even_where_it_folds(generator, axis, size):
    volume = torch.rand(12, 16, 14, generator=generator)
    shift = torch.randn(12, 16, 14, generator=generator) * size + 1
    received = pushed(volume, shift, axis)
    assert received.min() > -1e-5
    assert float(received.sum()) == pytest.approx(float(volume.sum()), rel=1e-5)


def test_pushed_signal_goes_where_the_shift_of_its_own_place_sends_it():
    volume = torch.zeros(3, 40, 3)
    volume[1, 10] = 1
    shift = 0.4 * torch.arange(40.0)[None, :, None].expand(3, 40, 3)
    received = pushed(volume, shift, 1)
    assert centre(received, 1) == pytest.approx(14, abs=1e-3)
    assert received.max() == pytest.approx(1 / 1.4, abs=0.02)  # stretched, hence dimmer
    constant = torch.full_like(volume, 1.5)
    torch.testing.assert_close(pushed(volume, constant, 1), displaced(volume, constant, 1))
    torch.testing.assert_close(pushed(volume, torch.zeros_like(volume), 1), volume)


def test_motion_of_4_mm_along_x_is_two_voxels_to_the_right():
    volume, grid = block()
    shift = rigid(torch.zeros(3), torch.tensor([4.0, 0.0, 0.0]), torch.zeros(3))
    moved = turned(volume, grid, shift)
    assert centre(moved, 0) - centre(volume, 0) == pytest.approx(2, abs=1e-3)
    torch.testing.assert_close(turned(volume, grid, torch.eye(4)), volume, atol=1e-5, rtol=0)


def test_a_quarter_turn_about_z_takes_x_to_y():
    volume, grid = torch.zeros(21, 21, 5), Grid((21, 21, 5), torch.eye(4))
    volume[16, 10, 2] = 1
    middle = torch.tensor([10.0, 10.0, 2.0])
    moved = turned(volume, grid, rigid(torch.tensor([0.0, 0, 90]), torch.zeros(3), middle))
    assert moved[10, 16, 2] > 0.99


def test_the_first_volume_does_not_move(generator):
    motion = draw_motion(200, torch.tensor([5.0, 6.0, 7.0]), generator)
    torch.testing.assert_close(motion[0], torch.eye(4))
    angle = torch.rad2deg(torch.acos((motion[1:, :3, :3].diagonal(0, 1, 2).sum(-1) - 1) / 2))
    assert float(angle.square().mean().sqrt()) == pytest.approx(0.5 * 3**0.5, rel=0.15)


def test_a_head_that_walks_takes_equal_steps_and_goes_far():
    middle = torch.zeros(3)
    from_rest, walk = (
        draw_motion(400, middle, torch.Generator().manual_seed(8), 0.2, 0.0, walk)[:, :3, 3]
        for walk in (False, True)
    )
    torch.testing.assert_close(walk.diff(dim=0), from_rest[1:], atol=1e-4, rtol=0)
    assert walk.abs().max() > 2 > 1 > from_rest.abs().max()


def test_noise_has_the_rician_floor_and_no_bias_where_signal_is_strong(generator):
    air = rician(torch.zeros(200_000), 3.0, generator)
    assert float(air.mean()) == pytest.approx(3 * math.sqrt(math.pi / 2), rel=0.01)
    assert float(air.square().mean()) == pytest.approx(2 * 9, rel=0.02)
    bright = rician(torch.full((200_000,), 300.0), 3.0, generator)
    assert float(bright.std()) == pytest.approx(3, rel=0.02)


def test_averaging_keeps_the_mean(generator):
    volume = torch.rand(2, 8, 8, 8, generator=generator)
    coarse = averaged(volume, 2)
    assert coarse.shape == (2, 4, 4, 4)
    torch.testing.assert_close(coarse.mean(), volume.mean())


def test_bias_is_smooth_and_positive(generator):
    bias = draw_bias(block()[1], generator)
    assert bias.min() > 0
    assert bias.diff(dim=1).abs().max() < 0.05


def test_axis_codes_name_where_the_axes_point():
    still = torch.zeros(3)
    torch.testing.assert_close(oblique(still, 'LAS'), torch.diag(torch.tensor([-1.0, 1, 1])))
    assert torch.equal(oblique(still, 'PSR')[:, 0], torch.tensor([0.0, -1.0, 0.0]))
    tilted = oblique(torch.tensor([7.0, 2.0, -3.0]), 'RAS')
    torch.testing.assert_close(tilted @ tilted.T, torch.eye(3))
