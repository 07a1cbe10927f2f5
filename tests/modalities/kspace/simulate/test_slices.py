"""Simulated slices: what is measured, of what, and that it is not made easier than it is."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from bidsapp.modalities.kspace.physics import sampling
from bidsapp.modalities.kspace.physics.fourier import BOTH
from bidsapp.modalities.kspace.simulate import slices
from bidsapp.modalities.kspace.simulate.coils import drawn_coils, loop_coils
from bidsapp.physics.streams import stream
from bidsapp.simulate.domain_randomisation import abstract_template
from tests.modalities.kspace.phantom import error


@pytest.fixture(scope='module')
def template():
    return abstract_template(stream(1), torch.device('cpu'))


@pytest.fixture(scope='module')
def drawn(template):
    return [slices.draw_slice(template, (48, 40), 0, number) for number in range(12)]


def test_a_number_names_one_slice(template, drawn):
    again = slices.draw_slice(template, (48, 40), 0, 3)
    assert torch.equal(again.plane.y, drawn[3].plane.y)
    assert not torch.equal(drawn[3].target, drawn[4].target)


def test_slices_hold_what_the_mask_leaves(drawn):
    for one in drawn:
        plane = one.plane
        assert not (plane.y * (1 - plane.mask)).any()
        assert plane.y.dtype == torch.complex64
        assert plane.maps.shape == plane.y.shape
        assert torch.isfinite(one.target.abs()).all()
        assert one.target.abs().amax() > 10 * plane.sigma
        assert 1.4 < sampling.acceleration(plane.mask) < 16
    assert len({len(one.plane.maps) for one in drawn}) > 2
    assert {one.plane.mask.shape[1] for one in drawn} == {1, 48}


def test_a_whole_measurement_without_noise_is_the_target(drawn):
    clean = BOTH(drawn[0].plane.maps * drawn[0].target)
    whole = slices.seen(clean, clean, torch.ones(1, 40), 0.0)
    assert error(whole.plane.zero_filled, whole.target) < 1e-5


def test_some_readout_positions_are_those_of_the_whole_slice(template):
    """Maps, data, target and the phase that is held; only total variation sees the edge."""
    every = replace(slices.EVERYTHING, samples=0, partial=1)
    whole, part = (
        slices.draw_slice(template, (48, 40), 2, 1, every, columns) for columns in (None, 16)
    )
    assert part.cropped
    assert not whole.cropped
    size = (whole.target.abs() - part.target.abs()[:1]).abs().sum(1)
    first = int(size.argmin())
    here = slice(first, first + 16)
    assert torch.allclose(whole.target[here], part.target, atol=1e-5)
    assert torch.allclose(whole.plane.maps[:, here], part.plane.maps, atol=1e-5)
    assert torch.equal(whole.plane.y[:, here], part.plane.y)
    assert torch.allclose(whole.plane.phase[here], part.plane.phase, atol=1e-4)


def test_what_is_left_out_is_never_drawn(generator):
    found = [slices.outside((1.5, 10), (4, 6), generator) for _ in range(200)]
    assert not [r for r in found if 4 < r < 6]
    assert min(found) < 2
    assert max(found) > 8


def test_a_finer_grid_keeps_values_and_places():
    """A Gaussian is the same on both grids: its spectrum is within both."""
    pictures = []
    for fine in (1, 2):
        points = slices.points_about_origin([n * fine for n in (33, 40)], 1.0 / fine)
        blob = torch.exp(-(points - torch.tensor([3.0, -5.0, 0])[:, None, None])
                         .square().sum(0) / 8)  # fmt: skip
        pictures.append(BOTH.H(slices.measured_on(blob + 0j, (33, 40))).real)
    assert (pictures[0] - pictures[1]).abs().max() < 1e-3


def test_masks_are_of_every_kind(generator):
    masks = [slices.draw_mask((32, 48), generator) for _ in range(40)]
    assert {mask.shape for mask in masks} == {(1, 48), (32, 48)}
    for mask in masks:
        block = sampling.middle_block(mask[0] if len(mask) == 1 else mask)
        assert all(b.stop - b.start >= 2 for b in block)


def test_a_loop_on_its_axis_is_what_the_textbook_says():
    """B = a² / (2 (a² + d²)^(3/2)) in units of μ0 I, Biot and Savart's integral of 4π of it."""
    reach = 100.0
    distance = torch.tensor([0.0, 30.0, 60.0])
    points = torch.stack([reach - distance, torch.zeros(3), torch.zeros(3)])
    found = loop_coils(6, points, reach)[0]
    a = reach * math.sin(math.pi / 6)
    true = 2 * math.pi * a**2 / (a**2 + distance**2) ** 1.5
    assert torch.allclose(found.abs(), true, rtol=0.02)


@pytest.mark.parametrize('kind', ['drawn', 'loops'])
def test_every_coil_sees_its_own_side_best(kind, generator):
    points = slices.points_about_origin((24, 24), 5.0)
    maps = (
        drawn_coils(8, points, 100.0, generator)
        if kind == 'drawn'
        else loop_coils(8, points, 130.0)
    )
    weight = maps.abs().square()
    weight = weight / weight.sum((1, 2), keepdim=True)
    centres = torch.stack([(weight * points[axis]).sum((1, 2)) for axis in (0, 1)], 1)
    assert centres.norm(dim=1).min() > 5
    assert torch.cdist(centres, centres).fill_diagonal_(99).min() > 2
