"""A block's harmonics are the signal of its fibres, and its truth is what it was made of."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from bidsapp.modalities.dwi.physics.harmonics import harmonics_at
from bidsapp.modalities.dwi.physics.qspace import prior_deviation
from bidsapp.modalities.dwi.simulate import blocks, model_mismatch, tissue_parameters
from bidsapp.modalities.dwi.simulate.microstructure import (
    FREE_WATER,
    evaluate,
    fibre_coefficients,
    powers,
)
from bidsapp.modalities.dwi.simulate.protocol import S0
from bidsapp.simulate.anatomy import CSF, GM, WM
from bidsapp.simulate.grids import Grid


@pytest.fixture(scope='module')
def block(head, bundles):
    grid = blocks.draw_block_grid(head, 24, torch.Generator().manual_seed(4))
    return blocks.make_block(head, bundles, grid)


def uniform_block(white, directions, shape=(2, 2, 2)):
    """Voxels of white matter with the given orientation density (K,)."""
    tissues = torch.zeros(9, *shape)
    tissues[WM] = 1
    density = white[:, None, None, None].expand(-1, *shape)
    vectors = torch.zeros(9, *shape)
    vectors[:3] = directions[:, None, None, None]
    grid = Grid(shape, torch.eye(4))
    return blocks.Block(grid, tissues, density, torch.zeros_like(density), vectors)


def neurites(icvf, od, isovf=0.0, shape=(2, 2, 2)):
    return tissue_parameters.Neurites(*(
        torch.full(shape, float(v)) for v in (icvf, od, isovf, 1.8, 1.8 * (1 - icvf))
    ))  # fmt: skip


def made_of(white):
    return tissue_parameters.TissueParameters(white, white, torch.tensor(S0))


@pytest.mark.parametrize('b', [800.0, 3000.0])
def test_one_dispersed_fibre_gives_its_own_signal(b):
    """The product of density and kernel is the Legendre series of the fibre (Funk and Hecke)."""
    axis = torch.nn.functional.normalize(torch.tensor([1.0, 2.0, -0.5]), dim=0)
    made = uniform_block(harmonics_at(axis, blocks.ORDER), axis)
    harmonics = tissue_parameters.signal_harmonics(made, made_of(neurites(0.6, 0.2)), b)[:, 0, 0, 0]
    g = torch.nn.functional.normalize(torch.randn(3, 40, generator=torch.Generator()), dim=0)
    seen = harmonics_at(g, blocks.ORDER).T @ harmonics
    values = [torch.tensor([v]) for v in (0.6, 0.2, 1.8)]
    series = powers(fibre_coefficients(b * 1e-3, *values))
    expected = S0[WM] * evaluate(series.expand(-1, 40), axis @ g)
    # What is missing are the degrees above ORDER.
    assert torch.allclose(seen, expected, atol=0.01 * S0[WM])


def test_water_decays_as_water_and_nothing_at_b_zero():
    axis = torch.tensor([0.0, 0.0, 1.0])
    made = uniform_block(harmonics_at(axis, blocks.ORDER), axis)
    wet = made_of(neurites(0.5, 0.3, isovf=1.0))
    for b in (0.0, 1000.0):
        mean = tissue_parameters.signal_harmonics(made, wet, b)[0] / (4 * torch.pi) ** 0.5
        expected = S0[WM] * torch.exp(torch.tensor(-b * 1e-3 * FREE_WATER))
        assert torch.allclose(mean, expected.expand_as(mean), rtol=1e-4)


def test_signal_falls_with_b_everywhere(block):
    what = tissue_parameters.draw_tissue_parameters(block, torch.Generator().manual_seed(1))
    at_rest = tissue_parameters.signal_at_rest(block, what)
    means = [tissue_parameters.signal_harmonics(block, what, b)[0] / (4 * torch.pi) ** 0.5
             for b in (0.0, 700.0, 1500.0, 3000.0)]  # fmt: skip
    # Fine voxels that hold next to none of a tissue are passed by.
    assert torch.allclose(means[0], at_rest, rtol=0.01, atol=2 * blocks.SOME)
    for lower, higher in pairwise(means):
        assert (higher <= lower + 1e-5).all()


def test_directions_are_in_the_axes_of_the_grid(head, bundles):
    """The same box with its axes permuted has its fibres permuted."""
    grid = blocks.draw_block_grid(head, 16, torch.Generator().manual_seed(4))
    turned = grid.affine.clone()
    turned[:, :3] = grid.affine[:, [1, 2, 0]]
    first = blocks.make_block(head, bundles, grid).directions[:3]
    second = blocks.make_block(head, bundles, Grid(grid.shape, turned)).directions[:3]
    back = second.permute(0, 3, 1, 2)[[2, 0, 1]]
    both = (first.norm(dim=0) > 0.5) & (back.norm(dim=0) > 0.5)
    assert both.sum() > 50
    cosine = (first * back).sum(0).abs()[both]
    assert cosine.median() > 0.999


def test_dispersion_of_one_fibre_is_its_own_and_a_crossing_disperses():
    x, y = torch.eye(3)[0], torch.eye(3)[1]
    one = uniform_block(harmonics_at(x, blocks.ORDER), x)
    two = uniform_block((harmonics_at(x, blocks.ORDER) + harmonics_at(y, blocks.ORDER)) / 2, x)
    what = made_of(neurites(0.6, 0.15))
    alone, crossing = (tissue_parameters.parameters(b, what)[1, 0, 0, 0] for b in (one, two))
    assert abs(float(alone) - 0.15) < 0.01
    assert crossing > 0.4


def test_density_and_water_are_what_the_tissue_was_given():
    axis = torch.eye(3)[2]
    made = uniform_block(harmonics_at(axis, blocks.ORDER), axis)
    maps = tissue_parameters.parameters(made, made_of(neurites(0.55, 0.2, 0.3)))
    icvf, _, isovf = maps[:, 0, 0, 0]
    assert float(icvf) == pytest.approx(0.55, abs=1e-3)
    assert float(isovf) == pytest.approx(0.3, abs=1e-3)
    half = replace(made, tissues=made.tissues.clone())
    half.tissues[WM], half.tissues[CSF] = 0.5, 0.5
    water = tissue_parameters.parameters(half, made_of(neurites(0.55, 0.2)))[2, 0, 0, 0]
    assert float(water) == pytest.approx(S0[CSF] / (S0[CSF] + S0[WM]), abs=1e-3)


def test_grey_matter_is_weakly_ordered_across_the_cortex(block):
    """Neurites of the cortex stand on it: their density has mass and an axis."""
    grey = block.tissues[GM] > 0.7
    if grey.sum() < 20:
        pytest.skip('no cortex in this block')
    mass = block.grey[0, grey] * (4 * torch.pi) ** 0.5
    assert torch.allclose(mass, block.tissues[GM][grey], atol=0.05)
    assert (block.grey[1:6, grey].norm(dim=0) > 0.05).float().mean() > 0.8


def test_model_mismatch_is_of_the_stated_strength_and_can_be_none(block):
    what = tissue_parameters.draw_tissue_parameters(block, torch.Generator().manual_seed(1))
    harmonics = tissue_parameters.signal_harmonics(block, what, 1000.0)
    s0 = tissue_parameters.signal_at_rest(block, what)
    nothing = model_mismatch.ModelMismatch(None, (0.0, 0.0, 0.0))
    assert torch.equal(
        model_mismatch.with_model_mismatch(harmonics, s0, 1000.0, nothing), harmonics
    )
    surplus = torch.zeros(28, *block.mask.shape)
    surplus[3] = 0.5
    more = model_mismatch.with_model_mismatch(
        harmonics, s0, 1000.0, model_mismatch.ModelMismatch(surplus, (0.0, 0.0, 0.0))
    )
    added = (more - harmonics)[3] / s0.clamp_min(1e-6)
    inside = block.mask
    spread = float(prior_deviation(1000.0)[1])
    assert torch.allclose(added[inside], torch.full_like(added[inside], 0.5 * spread), atol=1e-3)
    assert torch.equal(more[4:], harmonics[4:])


def test_most_scans_hold_structure_that_no_fibre_explains(block):
    drawn = [
        model_mismatch.draw_model_mismatch(block, torch.Generator().manual_seed(s))
        for s in range(40)
    ]
    assert 0.6 < sum(t.surplus is not None for t in drawn) / 40 < 0.95
    assert not any(t.surplus[:, ~block.mask].any() for t in drawn if t.surplus is not None)
