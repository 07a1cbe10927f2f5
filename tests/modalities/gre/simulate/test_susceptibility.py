"""Training blocks: what is in them, what is left out of them, the same from the same seed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from bidsapp.modalities.gre.physics.dipole import dipole
from bidsapp.modalities.gre.simulate import geometry, susceptibility
from bidsapp.modalities.gre.simulate.geometry import Geometry, draw_geometry
from bidsapp.modalities.gre.simulate.susceptibility import (
    Blocks,
    clean,
    draw_block,
    filtered,
    measured,
    single,
)

SIDE = 24
OBLIQUE = Geometry((1.0, 1.0, 2.0), (0.0, 0.28, 0.96))


@pytest.fixture(scope='module')
def block():
    return draw_block(OBLIQUE, SIDE, torch.Generator().manual_seed(4))


def test_geometries_are_of_all_kinds_but_those_that_test():
    generator = torch.Generator().manual_seed(0)
    drawn = [draw_geometry(generator) for _ in range(500)]
    assert not any(g.unseen for g in drawn)
    edges = np.array([g.voxel_mm for g in drawn])
    assert edges.min() >= geometry.EDGES[0]
    assert edges.max() <= geometry.EDGES[1]
    assert max(g.anisotropy for g in drawn) <= geometry.MOST_ANISOTROPIC
    tilts = np.array([g.tilt_deg for g in drawn])
    assert (tilts < 1).any()
    assert (tilts > 45).any()
    assert np.allclose([np.linalg.norm(g.b) for g in drawn], 1)
    axes = np.bincount(np.abs([g.b for g in drawn]).argmax(1))
    assert axes.min() > 100  # B0 lies along each axis
    cubes = sum(g.anisotropy == 1 for g in drawn)
    assert 100 < cubes < 400


@pytest.mark.parametrize(
    'unseen',
    [
        Geometry((1.5, 1.5, 1.5), (0, 0, 1)),
        Geometry((0.8, 0.8, 2.2), (0, 0, 1)),
        Geometry((1, 1, 1), (0, np.sin(0.6), np.cos(0.6))),
    ],
)
def test_what_tests_is_known_as_unseen(unseen):
    assert unseen.unseen
    assert not OBLIQUE.unseen


def test_all_sources_of_the_local_field_lie_in_the_mask():
    """With no unexplained part the field is that of χ, but for what the finer grid knows better."""
    block = draw_block(OBLIQUE, SIDE, torch.Generator().manual_seed(4), 0.0)
    assert not block.chi[~block.mask].any()
    assert block.chi[block.mask].mean() == pytest.approx(0, abs=1e-6)
    field = dipole(block.mask.shape, OBLIQUE.voxel_mm, OBLIQUE.b, exact=True)
    again = field(torch.from_numpy(block.chi)).numpy()
    inside = block.mask
    assert np.corrcoef(again[inside], block.local[inside])[0, 1] > 0.97


def test_a_part_of_the_field_is_explained_by_no_susceptibility():
    without, with_it = (
        draw_block(OBLIQUE, SIDE, torch.Generator().manual_seed(4), amount) for amount in (0.0, 0.2)
    )
    assert np.array_equal(without.chi, with_it.chi)
    part = (with_it.local - without.local)[without.mask]
    assert part.std() == pytest.approx(0.2 * without.chi[without.mask].std(), rel=0.35)


def test_noise_follows_the_magnitude(block):
    assert block.noise[block.mask].std() > 0
    assert not block.noise[~block.mask].any()
    seen = clean(block, torch.Generator().manual_seed(0))
    z = (seen.field - block.local)[block.mask] / block.noise[block.mask]
    assert z.std() == pytest.approx(1, abs=0.05)


def test_a_filter_leaves_something_of_what_is_outside(block):
    generator = torch.Generator().manual_seed(0)
    found = filtered(block, generator)
    assert found.mask.sum() < block.mask.sum()
    inside = found.mask
    left = (found.field - block.local)[inside]
    assert block.noise[inside].mean() < left.std()
    assert left.std() < block.outside[inside].std()
    total = single(block, generator)
    assert total.radius > max(OBLIQUE.voxel_mm)
    assert np.array_equal(total.mask, block.mask)


def test_what_is_outside_is_harmonic_inside(block):
    """The mean of the six neighbours, by their distance, is the value between them."""
    f, (x, _, z) = block.outside, OBLIQUE.voxel_mm
    bent = [np.roll(f, 1, k) + np.roll(f, -1, k) - 2 * f for k in range(3)]
    inside = ndimage.binary_erosion(block.mask, iterations=3)
    total = (bent[0] + bent[1]) / x**2 + bent[2] / z**2
    assert np.abs(total[inside]).mean() < 0.1 * np.abs(bent[0] / x**2)[inside].mean()


def test_a_block_follows_from_its_seed_and_number():
    one, other = Blocks(3, SIDE), Blocks(3, SIDE)
    other.scan(1)
    here, there = one.scan(5), other.scan(5)
    assert torch.equal(here.image, there.image)
    assert torch.equal(here.truth['chi'], there.truth['chi'])
    assert not torch.equal(here.image, Blocks(4, SIDE).scan(5).image)
    assert here.image.shape == (6, SIDE, SIDE, SIDE)
    assert torch.isfinite(here.image).all()
    truth = here.truth['chi'][here.mask]
    assert truth.mean().item() == pytest.approx(0, abs=1e-6)


def test_of_a_mask_too_small_for_its_filter_the_local_field_is_learnt(block, monkeypatch):
    monkeypatch.setattr(susceptibility, 'LEAST_KNOWN', 2.0)
    for seed in range(4):
        found = measured(block, torch.Generator().manual_seed(seed))
        assert np.array_equal(found.mask, block.mask)
        assert found.radius == 0
