from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt

from bidsapp.simulate.anatomy import (
    AIR,
    EYE,
    EYES,
    LEAST_JACOBIAN,
    SCALP,
    SKULL,
    WM,
    distance_to,
    draw_head,
)
from bidsapp.simulate.domain_randomisation import draw_varied_head, refolded, with_folds
from bidsapp.simulate.grids import Grid, jacobian, moved


def test_distance_is_euclidean(generator):
    mask = torch.rand(14, 17, 12, generator=generator) > 0.995
    found = distance_to(mask, 1.5, 9.0)
    exact = torch.from_numpy(distance_transform_edt(~mask.numpy()) * 1.5).float()
    torch.testing.assert_close(found, exact.clamp(max=9.0))


def test_fractions_sum_to_one_in_the_template_and_in_a_head(template, head):
    for fractions in (template.fractions, head.tissues(template.grid.points())):
        assert fractions.min() > -1e-5
        total = fractions.sum(0)
        torch.testing.assert_close(total, torch.ones_like(total), atol=1e-4, rtol=0)


def test_out_of_the_brain_come_skull_then_scalp_then_air(template):
    start, end = torch.tensor([0.0, -20.0, 60.0]), torch.tensor([0.0, -20.0, 105.0])
    t = torch.linspace(0, 1, 46)
    line = (start[:, None] * (1 - t) + end[:, None] * t)[:, :, None, None]
    index = moved(torch.linalg.inv(template.grid.affine), line)[:, :, 0, 0].round().long()
    kinds = template.fractions[:, index[0], index[1], index[2]]
    where = [int((kinds[tissue] > 0.5).nonzero()[0]) for tissue in (SKULL, SCALP, AIR)]
    assert where == sorted(where)
    assert where[0] < where[1] < where[2]


def test_eyes_are_where_eyes_are(template):
    centres = torch.tensor([eye[0] for eye in EYES]).T
    i, j, k = moved(torch.linalg.inv(template.grid.affine), centres).round().long()
    assert template.fractions[EYE, i, j, k].min() > 0.9


@pytest.mark.parametrize('seed', range(4))
def test_heads_differ_in_size_and_never_fold(template, seed):
    drawn = draw_head(template, torch.Generator().manual_seed(seed))
    affine = torch.diag(torch.tensor([4.0, 4.0, 4.0, 1.0]))
    affine[:3, 3] = -100
    grid = Grid((51, 51, 51), affine)
    mapped = drawn.to_template(grid.points())
    assert torch.linalg.det(jacobian(mapped, grid)).min() > 0.8 * LEAST_JACOBIAN
    size = torch.linalg.det(drawn.affine[:3, :3]) ** (-1 / 3)
    assert 0.9 < size < 1.1
    assert 1 < drawn.displacement.norm(dim=0).max() < 12


def test_the_same_seed_gives_the_same_head(template):
    one, other = (draw_head(template, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(one.displacement, other.displacement)
    assert torch.equal(one.affine, other.affine)


def test_heads_are_so_varied_that_their_mean_says_little(template):
    """A template learnt by heart scores badly: white matter is rarely where it was before."""
    grid = Grid((20, 24, 20), torch.diag(torch.tensor([7.0, 7.0, 7.0, 1.0])))
    grid.affine[:3, 3] = torch.tensor([-66.0, -100.0, -55.0])
    white = torch.stack([
        draw_varied_head(template, torch.Generator().manual_seed(s)).tissues(grid.points())[WM]
        for s in range(12)
    ]) > 0.5  # fmt: skip
    pairs = [
        float(2 * (a & b).sum() / (a.sum() + b.sum()))
        for i, a in enumerate(white) for b in white[:i]
    ]  # fmt: skip
    assert np.mean(pairs) < 0.65


def test_folds_line_sulci_and_the_outside_with_grey_matter_of_one_thickness():
    grid = Grid((60, 60, 60), torch.diag(torch.tensor([1.0, 1.0, 1.0, 1.0])))
    depth = torch.arange(60.0)[:, None, None].expand(60, 60, 60)
    deep = torch.tensor([0.2, 0.7, 0.1])[:, None, None, None].expand(3, 60, 60, 60)
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        shares = with_folds(deep, depth, grid, generator)
        assert torch.allclose(shares.sum(0), torch.ones(60, 60, 60), atol=1e-5)
        assert torch.equal(shares[:, 40:], deep[:, 40:])
        grey = shares[0, :8]
        assert float(grey[1].mean()) > 0.6  # under the surface
        labels = shares[:, :8].argmax(0)
        # White matter never touches fluid within a voxel: grey lies between.
        touching = (labels[:, 1:] == 1) & (labels[:, :-1] == 2)
        assert float(touching.float().mean()) < 0.02
        assert 0.05 < float((labels == 1).float().mean()) < 0.8


def test_another_cortex_leaves_the_head_around_it_as_it_was(template):
    found = refolded(template, torch.Generator().manual_seed(0))
    assert torch.allclose(found.fractions.sum(0), template.fractions.sum(0), atol=1e-5)
    assert torch.equal(found.fractions[3:], template.fractions[3:])
    assert not torch.allclose(found.fractions[0], template.fractions[0], atol=0.3)
