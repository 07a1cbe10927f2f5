"""MRtrix3's harmonics: the same function as ours by dipy's, closed forms, turned with a head."""

from __future__ import annotations

import numpy as np
import pytest
from dipy.reconst.shm import real_sh_tournier
from scipy.spatial.transform import Rotation

from bidsapp.modalities.dwi.physics.harmonics import basis, fibonacci_hemisphere, n_coefficients
from bidsapp.modalities.dwi.physics.mrtrix_basis import mrtrix_coefficients

X, Y, Z = np.eye(3)


def theirs(directions, order):
    """(N, K) MRtrix3's harmonics at unit ``directions`` (N, 3), as dipy has them."""
    theta, phi = np.arccos(directions[:, 2]), np.arctan2(directions[:, 1], directions[:, 0])
    return real_sh_tournier(order, theta, phi, legacy=False)[0]


def scattered(rng, n=60):
    """(n, 3) random unit vectors."""
    vectors = rng.normal(size=(n, 3))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize('order', [0, 2, 4, 6, 8])
def test_it_is_the_same_function(order, rng):
    density, directions = rng.normal(size=(5, n_coefficients(order))), scattered(rng)
    ours = basis(directions, order) @ density.T
    found = theirs(directions, order) @ mrtrix_coefficients(density).T
    np.testing.assert_allclose(found, ours, atol=1e-6)


def test_degree_two_is_that_of_the_manual(rng):
    """√2 Im Y_2^2, √2 Im Y_2^1, Y_2^0, √2 Re Y_2^1, √2 Re Y_2^2 in x, y, z, signs and all."""
    directions = scattered(rng)
    x, y, z = directions.T
    known = np.sqrt(15 / (4 * np.pi)) * np.stack([
        x * y, -y * z, (3 * z**2 - 1) / np.sqrt(12), -x * z, (x**2 - y**2) / 2
    ])  # fmt: skip
    ours = basis(directions, 2).T
    for place, function in enumerate(known, start=1):
        density = mrtrix_coefficients(np.linalg.lstsq(ours.T, function, rcond=None)[0])
        np.testing.assert_allclose(density, np.eye(6)[place], atol=1e-9)


@pytest.mark.parametrize('fibre', [X, Y, Z, (X + Y + Z) / 3**0.5, (2 * X - Z) / 5**0.5])
@pytest.mark.parametrize('order', [6, 8])
def test_one_fibre_is_highest_along_itself_and_integrates_to_one(fibre, order):
    density = mrtrix_coefficients(basis(fibre[None], order)[0])
    looked_at = np.concatenate([fibre[None], fibonacci_hemisphere(2000)])
    values = theirs(looked_at, order) @ density
    assert values.argmax() == 0
    assert values[0] == pytest.approx(n_coefficients(order) / (4 * np.pi))
    assert density[0] * np.sqrt(4 * np.pi) == pytest.approx(1)


@pytest.mark.parametrize('mirrored', [False, True])
def test_a_density_in_the_axes_of_a_grid_is_turned_to_the_world(rng, mirrored):
    """That of fibres in the grid becomes that of the same fibres in the world."""
    axes = Rotation.random(random_state=3).as_matrix() @ np.diag([-1 if mirrored else 1, 1, 1])
    fibres = scattered(rng, 12)
    found = mrtrix_coefficients(basis(fibres, 8), axes)
    expected = mrtrix_coefficients(basis(fibres @ axes.T, 8))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_single_precision_stays_single_and_voxels_stay_where_they_are(rng):
    density = rng.normal(size=(2, 3, 4, 45)).astype(np.float32)
    found = mrtrix_coefficients(density, np.eye(3))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[1, 2, 3], mrtrix_coefficients(density[1, 2, 3]), atol=1e-5)
