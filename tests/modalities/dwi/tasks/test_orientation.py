"""Fibres cross where deconvolution shows them and the network expects them; turns turn it all."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bidsapp.modalities.dwi.learn.losses import DENSITY_ORDER, dyad, principal_axis
from bidsapp.modalities.dwi.physics.harmonics import basis, harmonics_at
from bidsapp.modalities.dwi.tasks.orientation import expected_angles, fibres_of, turn_output
from bidsapp.physics.geometry import ALL_TURNS

X, Y, Z = np.eye(3)


def density(*fibres):
    """(45, 1) of unit vectors with masses."""
    total = sum(m * basis(v[None], DENSITY_ORDER)[0] for v, m in fibres)
    return np.asarray(total)[:, None]


def test_one_fibre_is_the_networks_axis():
    found = fibres_of(density((X, 1.2)), Y[None], density((X, 1.0)))
    np.testing.assert_allclose(found[0], [Y, 0 * X, 0 * X], atol=1e-6)


def test_two_that_both_see_are_two_those_most_expected_first():
    middle = (X + Y)[None] / 2**0.5
    found = fibres_of(density((X, 0.6), (Y, 0.9)), middle, density((X, 0.5), (Y, 0.4)))
    assert abs(found[0, 0] @ Y) > 0.99
    assert abs(found[0, 1] @ X) > 0.99
    assert not found[0, 2].any()


@pytest.mark.parametrize(
    ('expected', 'seen'),
    [
        (density((X, 1.5)), density((X, 0.5), (Y, 0.4))),  # noise in the input
        (density((X, 0.9), (Y, 0.9)), density((X, 1.0))),  # blur in the network
        (density((X, 0.3), (Y, 0.3)), density((X, 0.5), (Y, 0.4))),  # no fibres at all
    ],
)
def test_a_crossing_that_only_one_of_them_sees_is_none(expected, seen):
    found = fibres_of(expected, X[None], seen)
    np.testing.assert_allclose(found[0], [X, 0 * X, 0 * X], atol=1e-6)


@pytest.mark.parametrize('turn', ALL_TURNS[::7])
def test_an_output_turned_is_that_of_the_turned_fibres(turn, rng):
    v = rng.normal(size=(3, 5))
    v = torch.from_numpy(v / np.linalg.norm(v, axis=0)).float()
    turned = torch.tensor(turn, dtype=torch.float32) @ v
    before, after = (
        torch.cat([dyad(u.T).T, harmonics_at(u, DENSITY_ORDER)])[None, :, :, None, None]
        for u in (v, turned)
    )
    found = turn_output(before, turn)
    assert torch.allclose(found, after, atol=1e-4)
    axes = principal_axis(found[0, :6, :, 0, 0].T)
    assert ((axes * turned.T).sum(1).abs() > 0.999).all()


def test_of_one_fibre_it_is_at_least_what_noise_does_and_of_several_the_networks():
    vectors = np.zeros((4, 3, 3))
    vectors[:, 0], vectors[1, 1] = X, Y
    said = np.array([X, (X + Y) / 2**0.5, Y, (X + Y) / 2**0.5])
    errors = np.array([0.01, 0.9, np.nan, 0.01])
    found = expected_angles(dyad(torch.tensor(said, dtype=torch.float32)), vectors, errors)
    np.testing.assert_allclose(found, [np.rad2deg(np.arcsin(0.1)), 45, 90, 45], atol=0.1)
