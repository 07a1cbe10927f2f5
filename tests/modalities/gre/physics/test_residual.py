"""The field that a map does not explain is 0 for the map whose field it is."""

from __future__ import annotations

import numpy as np

from bidsapp.modalities.gre.physics import residual

SHAPE = (24, 20, 22)
AFFINE = np.diag([1.0, 1.5, 1.0, 1.0])
B = (0.2, 0.0, 0.98)


def ball(radius):
    place = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing='ij'), -1)
    return np.linalg.norm((place - np.array(SHAPE) / 2) * [1, 1.5, 1], axis=-1) < radius


def test_nothing_is_left_of_the_maps_own_field_and_what_is_beside_it_stays():
    mask, core = ball(10), ball(8)
    chi = np.where(ball(4), 0.1, 0.0)
    local = residual.field_of(chi, mask, AFFINE, B) + 0.003  # a constant is no susceptibility
    assert np.abs(residual.unexplained(local, chi, core, mask, AFFINE, B)).max() < 1e-7
    assert np.abs(residual.unexplained(local, chi + 1, core, mask, AFFINE, B)).max() < 1e-6
    other = np.where(ball(4), 0.05, 0.0)
    left = residual.unexplained(local, other, core, mask, AFFINE, B)
    assert np.allclose(left[core].std(), local[core].std() / 2)
    assert not left[~core].any()
