"""Filters on the sphere turn with what they are applied to."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bidsapp.modalities.dwi.networks.sphere import DEGREE_2, N_OUT, Sphere, order_of
from bidsapp.modalities.dwi.physics.harmonics import basis, degrees, fibonacci_hemisphere


@pytest.fixture
def sphere():
    torch.manual_seed(0)
    return Sphere(6, 2, 6).eval()


def rotation(rng):
    q = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    return q * np.sign(np.linalg.det(q))


def turned(coefficients, q, order):
    """(V, K) of f(Q⁻¹u) from those of f(u)."""
    u = fibonacci_hemisphere(400)
    matrix = np.linalg.pinv(basis(u, order)) @ basis(u @ q, order)
    return coefficients @ torch.from_numpy(matrix.T).float()


def test_what_comes_out_turns_with_what_goes_in(sphere, rng):
    """Any angle, not only those of the grid; as exact as 50 points on the half sphere allow."""
    features = torch.rand(30, 6)
    fall = torch.from_numpy(0.5 ** degrees(6)).float()
    harmonics = torch.from_numpy(rng.normal(size=(30, 2, 28))).float() * fall
    density = torch.from_numpy(rng.normal(size=(30, 45)) * 0.6 ** degrees(8)).float()
    q = rotation(rng)
    there = sphere(features, turned(harmonics, q, 6), turned(density, q, 8))
    here = sphere(features, harmonics, density)
    function = turned(here[:, :N_OUT], q, 8)
    for degree, close in ((2, 0.05), (4, 0.2)):
        part = torch.from_numpy(degrees(8) == degree)
        error = (there[:, :N_OUT] - function)[:, part].norm()
        assert error < close * function[:, part].norm()
    lead = turned(torch.nn.functional.pad(here[:, N_OUT : N_OUT + 5], (1, 0)), q, 2)[:, DEGREE_2]
    assert (there[:, N_OUT : N_OUT + 5] - lead).norm() < 0.1 * lead.norm()
    told, as_told = there[:, N_OUT + 5 :], here[:, N_OUT + 5 :]
    assert (told - as_told).norm() < 0.05 * as_told.norm()


def test_a_slot_that_is_empty_adds_nothing(sphere):
    features, harmonics = torch.rand(5, 6), torch.randn(5, 2, 28)
    harmonics[:, 1] = 0
    density = torch.randn(5, 45)
    before = sphere(features, harmonics, density)
    with torch.no_grad():
        sphere.first[:, 1] += 1
    assert torch.equal(before, sphere(features, harmonics, density))


def test_the_order_follows_from_the_number_of_harmonics():
    assert [order_of(n) for n in (1, 6, 15, 28, 45)] == [0, 2, 4, 6, 8]


def test_nowhere_is_nothing(sphere):
    """A patch without brain has no voxels."""
    said = sphere(torch.rand(0, 6), torch.rand(0, 2, 28), torch.rand(0, 45))
    assert said.shape == (0, Sphere.width_out)
