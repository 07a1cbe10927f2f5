"""What a network says of regions."""

from __future__ import annotations

import numpy as np
import pytest

from bidsapp.modalities.gre.physics.regions import stated


def test_a_label_has_its_mean_and_the_error_of_one_of_its_voxels(rng):
    """Independent errors of known size are found again in the column that states them."""
    labels = np.zeros((12, 12, 12))
    labels[:6], labels[6:], labels[0, 0, :3] = 1, 7, 9  # 9 has too few voxels
    size = np.where(labels == 1, 0.01, 0.03)
    error = size * rng.standard_normal(labels.shape)
    mask = np.ones(labels.shape, bool)
    mask[:, 0] = False
    one, other = stated(0.1 * labels + error, size, labels, mask)
    assert (one.index, other.index) == (1, 7)
    assert other.voxels == 6 * 11 * 12
    assert (one.mean, other.mean) == pytest.approx((0.1, 0.7), abs=0.005)
    assert (one.deviation, other.deviation) == pytest.approx((0.01, 0.03))
    assert (one.spread, other.spread) == pytest.approx((0.01, 0.03), rel=0.15)
    assert stated(error, size, np.zeros(labels.shape), mask) == []
