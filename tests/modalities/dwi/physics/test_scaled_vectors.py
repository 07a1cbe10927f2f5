"""b that stands in the lengths of the vectors is read from there, if the signal falls that way."""

from __future__ import annotations

import numpy as np
import pytest

from bidsapp.modalities.dwi.physics.harmonics import fibonacci_hemisphere
from bidsapp.modalities.dwi.physics.scaled_vectors import decay_agrees
from bidsapp.modalities.dwi.physics.tables import examine

SHELLS = ((1000, 20), (2500, 24))


def scheme(shells=SHELLS):
    """True b (N,) and unit vectors (3, N), zero where b is."""
    bvals = np.concatenate([np.zeros(3), *(np.full(n, b) for b, n in shells)])
    bvecs = np.concatenate([np.zeros((3, 3)), *(fibonacci_hemisphere(n) for _, n in shells)])
    return bvals, bvecs.T


def signal(bvals, bvecs, rng, snr=20):
    """A small head of tissue, fibres and fluid in air, magnitudes."""
    along = np.array([1, 0, 0]) @ bvecs
    tissue = np.exp(-bvals * 0.8e-3)
    fibre = 0.8 * np.exp(-bvals * (0.3e-3 + 1.4e-3 * along**2))
    fluid = 2 * np.exp(-bvals * 3e-3)
    kinds = np.stack([0 * tissue, tissue, fibre, fluid])[
        rng.choice(4, 600, p=[0.4, 0.3, 0.25, 0.05])
    ]
    noise = rng.normal(0, 1 / snr, (2, *kinds.shape))
    return np.hypot(kinds + noise[0], noise[1]).reshape(10, 10, 6, -1)


@pytest.mark.parametrize('nominal', [2500, 1000, 5000])
@pytest.mark.parametrize('everywhere', [True, False])
def test_b_is_read_from_the_lengths_and_the_signal_agrees(nominal, everywhere, rng):
    """Also where the volumes of b = 0 carry the nominal b, and where vectors are longer than 1."""
    bvals, bvecs = scheme()
    given = np.full(len(bvals), float(nominal)) if everywhere else nominal * (bvals > 0)
    found = examine(bvecs * np.sqrt(bvals / nominal), given, len(bvals))
    assert found.in_lengths
    assert [f.code for f in found.findings] == ['B_IN_LENGTHS']
    np.testing.assert_allclose(found.bvals, bvals, rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found.bvecs, axis=0), bvals > 0)
    assert decay_agrees(signal(bvals, bvecs, rng), found.bvals)


def test_the_signal_of_one_shell_does_not_agree_with_two(rng):
    bvals, bvecs = scheme()
    alike = np.where(bvals > 0, 2500.0, 0)
    found = examine(bvecs * np.sqrt(bvals / 2500), alike, len(bvals))
    assert found.in_lengths
    assert not decay_agrees(signal(alike, bvecs, rng), found.bvals)


def test_nor_does_a_signal_that_rises(rng):
    bvals, bvecs = scheme()
    turned = np.where(bvals == 1000, 2500.0, np.where(bvals == 2500, 1000, 0))
    assert not decay_agrees(signal(turned, bvecs, rng), bvals)


def lengths(kind, bvals, rng):
    """(N,) factors of the vectors that encode nothing."""
    match kind:
        case 'rounding':
            return rng.uniform(0.981, 1.019, len(bvals))
        case 'scattered':
            return rng.uniform(0.5, 1, len(bvals))
        case 'one length':
            return np.full(len(bvals), 0.7)
        case 'one outlier':
            return np.where(np.arange(len(bvals)) == 7, 0.6, 1.0)
        case _:
            return np.sqrt(bvals / 2500)


@pytest.mark.parametrize(
    ('kind', 'codes'),
    [
        ('rounding', []),
        ('scattered', ['NORM']),
        ('one length', ['NORM']),
        ('one outlier', ['NORM']),
        ('in the bval file too', ['NORM']),
    ],
)
def test_lengths_that_encode_nothing_leave_b_alone(kind, codes, rng):
    bvals, bvecs = scheme()
    found = examine(bvecs * lengths(kind, bvals, rng), bvals, len(bvals))
    assert not found.in_lengths
    assert [f.code for f in found.findings] == codes
    np.testing.assert_array_equal(found.bvals, bvals)


def test_averages_are_no_volumes_of_b_0(rng):
    """A vector of length zero under a b of its own, where others have b = 0."""
    bvals, bvecs = scheme()
    bvecs[:, -1] = 0
    found = examine(bvecs, bvals, len(bvals))
    assert not found.in_lengths
    assert [f.code for f in found.findings] == ['TRACE_IMAGE']
