"""χ of regions, and how sure it is: by the law of a mean where noise is white."""

from __future__ import annotations

import numpy as np
import pytest

from bidsapp.modalities.gre.physics import regions
from bidsapp.problems import BadData

SHAPE = (20, 20, 20)


@pytest.fixture
def labels():
    found = np.zeros(SHAPE)
    found[2:12, 2:12, 2:12], found[14:18, 14:18, 14:18], found[0, 0, 0] = 1, 2, 3
    return found


def test_the_reference_is_zero_and_the_rest_moves_along(labels):
    chi, mask = np.where(labels == 1, 0.3, 0.1), np.ones(SHAPE, bool)
    mask[19] = False
    moved, offset = regions.referenced(chi, labels == 1, mask)
    assert offset == pytest.approx(0.3)
    assert moved[labels == 1].max() == pytest.approx(0)
    assert moved[15, 15, 15] == pytest.approx(-0.2)
    assert not moved[~mask].any()
    with pytest.raises(BadData, match='no voxel'):
        regions.referenced(chi, labels == 7, mask)


def test_white_noise_is_averaged_and_regions_too_small_have_no_row(labels):
    """An inversion that gives the field itself: the deviation of a mean is σ / √n."""
    mask, sigma = np.ones(SHAPE, bool), 0.02
    field = np.where(labels == 2, 0.15, 0.0)
    found = regions.statistics(
        field, labels, mask, lambda f: f, field, np.full(SHAPE, sigma), draws=400
    )
    assert [r.index for r in found] == [1, 2]
    assert [r.voxels for r in found] == [1000, 64]
    assert [r.mean for r in found] == pytest.approx([0, 0.15])
    for region in found:
        assert region.deviation == pytest.approx(sigma / np.sqrt(region.voxels), rel=0.15)


def test_what_errs_together_is_not_averaged(labels):
    """An inversion that smears noise over everything leaves a mean as unsure as a voxel."""
    mask, sigma = np.ones(SHAPE, bool), np.full(SHAPE, 0.02)

    def smeared(field):
        return np.full(SHAPE, field[5, 5, 5])

    found = regions.statistics(
        np.zeros(SHAPE), labels, mask, smeared, np.zeros(SHAPE), sigma, draws=400
    )
    assert all(region.deviation == pytest.approx(0.02, rel=0.15) for region in found)


def test_a_label_outside_of_the_mask_is_no_region(labels):
    mask = labels == 1
    assert regions.regions_of(labels, mask) == [1]
    assert not regions.statistics(labels, labels, labels > 5, lambda f: f, labels, labels)
