"""Harmonics: orthonormal, the textbook's functions, Legendre sums, quadrature."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from scipy.special import eval_legendre, sph_harm_y

from bidsapp.modalities.dwi.physics.harmonics import (
    basis,
    degrees,
    fibonacci_hemisphere,
    largest_order,
    legendre,
    n_coefficients,
    zonal_coefficients,
)


def product_grid():
    """(Q, 3) directions and (Q,) weights that integrate degree 31 on the sphere exactly."""
    z, wz = np.polynomial.legendre.leggauss(16)
    phi = np.arange(32) * 2 * np.pi / 32
    z, phi, w = np.repeat(z, 32), np.tile(phi, 16), np.repeat(wz, 32) * 2 * np.pi / 32
    radius = np.sqrt(1 - z**2)
    return np.stack([radius * np.cos(phi), radius * np.sin(phi), z], 1), w


@pytest.mark.parametrize('order', [0, 2, 4, 6, 8, 10])
def test_orthonormal(order):
    directions, weights = product_grid()
    harmonics = basis(directions, order)
    assert harmonics.shape == (len(directions), n_coefficients(order))
    np.testing.assert_allclose(
        harmonics.T @ (weights[:, None] * harmonics), np.eye(n_coefficients(order)), atol=1e-12
    )


def test_agrees_with_scipy_up_to_sign(rng):
    directions = rng.normal(size=(50, 3))
    unit = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    theta, phi = np.arccos(unit[:, 2]), np.arctan2(unit[:, 1], unit[:, 0])
    ours, column = basis(directions, 8), 0
    for deg in range(0, 9, 2):
        for m in range(-deg, deg + 1):
            y = sph_harm_y(deg, abs(m), theta, phi) * (np.sqrt(2) if m else 1)
            theirs = y.imag if m < 0 else y.real
            sign = np.sign(ours[:, column] @ theirs)
            np.testing.assert_allclose(ours[:, column], sign * theirs, atol=1e-12)
            column += 1
    assert column == ours.shape[1]


def test_even_and_regular_at_the_poles():
    poles = np.array([[0, 0, 1.0], [0, 0, -1], [1, 0, 0], [-1, 0, 0]])
    values = basis(poles, 8)
    np.testing.assert_allclose(values[0], values[1], atol=1e-12)
    np.testing.assert_allclose(values[2], values[3], atol=1e-12)
    assert np.isfinite(values).all()


def test_addition_theorem(rng):
    """Σ_m Y_lm(u) Y_lm(v) = (2l + 1)/(4π) P_l(u·v)."""
    u, v = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in rng.normal(size=(2, 30, 3)))
    products = basis(u, 8) * basis(v, 8)
    expected = legendre(8, (u * v).sum(1))
    for index, deg in enumerate(range(0, 9, 2)):
        total = products[:, degrees(8) == deg].sum(1)
        np.testing.assert_allclose(
            total, (2 * deg + 1) / (4 * np.pi) * expected[:, index], atol=1e-12
        )


def test_power_of_each_degree_survives_rotation(rng):
    directions = fibonacci_hemisphere(120)
    coefficients = rng.normal(size=n_coefficients(6))
    turn = Rotation.random(random_state=rng).as_matrix()
    values = basis(directions @ turn, 6) @ coefficients
    turned = np.linalg.lstsq(basis(directions, 6), values, rcond=None)[0]
    for deg in range(0, 7, 2):
        part = degrees(6) == deg
        assert np.sum(turned[part] ** 2) == pytest.approx(np.sum(coefficients[part] ** 2))


def test_legendre_agrees_with_scipy():
    x = np.linspace(-1, 1, 41)
    for index, deg in enumerate(range(0, 11, 2)):
        np.testing.assert_allclose(legendre(10, x)[:, index], eval_legendre(deg, x), atol=1e-12)


def test_zonal_coefficients_restore_a_profile():
    nodes, weights = np.polynomial.legendre.leggauss(64)
    wanted = np.array([0.5, -0.4, 0.1, -0.02, 0.003])
    np.testing.assert_allclose(
        zonal_coefficients(legendre(8, nodes) @ wanted, nodes, weights), wanted, atol=1e-12
    )


@pytest.mark.parametrize(
    ('directions', 'order'), [(0, 0), (5, 0), (6, 2), (14, 2), (15, 4), (28, 6), (45, 8), (99, 8)]
)
def test_largest_order(directions, order):
    assert largest_order(directions) == order


def test_fibonacci_directions_are_unit_and_spread():
    directions = fibonacci_hemisphere(64)
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1)
    assert (directions[:, 2] > 0).all()
    # The mean dyad of a uniform set is the identity / 3.
    np.testing.assert_allclose(directions.T @ directions / 64, np.eye(3) / 3, atol=0.01)
    nearness = np.abs(directions @ directions.T) - 2 * np.eye(64)
    assert np.rad2deg(np.arccos(nearness.max())) > 8


def test_harmonics_of_tensors_are_those_of_arrays():
    import torch

    from bidsapp.modalities.dwi.physics.harmonics import harmonics_at

    u = fibonacci_hemisphere(60)
    for order in (2, 6, 8):
        seen = harmonics_at(torch.from_numpy(u.T.copy()), order).T.numpy()
        assert np.allclose(seen, basis(u, order), atol=1e-9)
    assert not harmonics_at(torch.zeros(3, 4), 8).any()
