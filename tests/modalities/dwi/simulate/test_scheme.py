"""Gradient schemes, and what each volume of one suffers: lost slices, eddy currents."""

from __future__ import annotations

import math

import pytest
import torch

from bidsapp.modalities.dwi.simulate.scheme import draw_dropout, draw_eddy, draw_scheme, eddy_shift
from bidsapp.simulate.acquisition import displaced
from bidsapp.simulate.grids import Grid


def block(shape=(20, 24, 18)):
    """A bright box in the middle of an empty volume, and the grid of 2 mm it stands on."""
    volume = torch.zeros(shape)
    volume[8:12, 9:15, 7:11] = 1
    affine = torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0]))
    affine[:3, 3] = torch.tensor([-19.0, -23.0, -17.0])
    return volume, Grid(shape, affine)


def test_scheme_has_its_shells_and_spreads_both_signs(generator):
    bvecs, bvals = draw_scheme(3, [(1000.0, 32), (2000.0, 20)], generator)
    assert bvals[0] == 0
    assert [(bvals == b).sum().item() for b in (0, 1000, 2000)] == [3, 32, 20]
    shell = bvecs[bvals == 1000]
    torch.testing.assert_close(shell.norm(dim=1), torch.ones(32))
    cosines = (shell @ shell.T).abs() - 2 * torch.eye(32)
    assert cosines.max() < math.cos(math.radians(12))
    assert shell.sum(0).norm() < 8  # all on one half sphere would give 16


def test_dropout_costs_a_share_of_the_weighted_slices_most_of_their_signal(generator):
    weighted = torch.arange(200) % 5 > 0
    factor = draw_dropout(weighted, 50, 0.1, generator)
    assert (factor[~weighted] == 1).all()
    lost = factor[weighted][factor[weighted] < 1]
    assert len(lost) / (160 * 50) == pytest.approx(0.1, abs=0.01)
    assert 0.1 <= lost.min() < 0.12 < 0.58 < lost.max() < 0.6


def test_eddy_displacement_of_a_scan_conserves_the_signal_and_follows_the_gradient(generator):
    volume, grid = block()
    coefficients = draw_eddy(1, generator, edge_hz=20)[0]
    hz = coefficients @ torch.tensor([0.6, 0.0, 0.8])
    shift = eddy_shift(grid.points(), hz, 0.05)
    opposite = eddy_shift(grid.points(), -hz, 0.05)
    torch.testing.assert_close(opposite, -shift)
    assert shift.abs().max() > 0.1
    assert float(displaced(volume, shift, 1).sum()) == pytest.approx(float(volume.sum()), rel=1e-5)
    constant = torch.zeros(4, 3)
    constant[0, 0] = 20.0  # Hz for a gradient along x: 20 Hz * 0.05 s = 1 voxel
    along_x = eddy_shift(grid.points(), constant @ torch.tensor([1.0, 0, 0]), 0.05)
    torch.testing.assert_close(along_x, torch.ones_like(along_x))
