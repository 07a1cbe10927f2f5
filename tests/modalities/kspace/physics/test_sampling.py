"""Laws of masks: how many, where, and that chance is what decides the rest."""

from __future__ import annotations

import pytest
import torch

from bidsapp.modalities.kspace.physics import sampling

LINES = [sampling.random_lines, sampling.equispaced_lines]


@pytest.mark.parametrize('draw', LINES)
@pytest.mark.parametrize('n', [64, 65, 181])
@pytest.mark.parametrize('acceleration', [1.5, 2, 3.7, 8])
def test_exactly_so_many_lines_with_the_middle_among_them(draw, n, acceleration, generator):
    centre = sampling.centre_lines(n, acceleration)
    mask = draw(n, acceleration, centre, generator)
    assert mask.shape == (n,)
    assert int(mask.sum()) == round(n / acceleration)
    assert set(mask.tolist()) <= {0.0, 1.0}
    block = sampling.middle_block(mask)[0]
    assert block.start <= n // 2 - centre // 2
    assert block.stop >= n // 2 - centre // 2 + centre


@pytest.mark.parametrize('draw', LINES)
def test_nothing_is_drawn_that_the_middle_alone_exceeds(draw, generator):
    with pytest.raises(ValueError, match='more than R'):
        draw(64, 4, 24, generator)


def test_random_lines_are_everywhere_equally_likely(generator):
    masks = torch.stack([sampling.random_lines(40, 4, 4, generator) for _ in range(2000)])
    share = masks.mean(0)
    assert (share[18:22] == 1).all()
    outer = torch.cat([share[:18], share[22:]])
    assert (outer - 6 / 36).abs().max() < 5 * (6 / 36 * 30 / 36 / 2000) ** 0.5


def test_equispaced_lines_lie_at_even_distances_outside_the_middle(generator):
    mask = sampling.equispaced_lines(96, 4, 8, generator)
    for side in (mask[:44], mask[52:]):
        steps = torch.nonzero(side)[:, 0].diff()
        assert steps.max() - steps.min() <= 1


@pytest.mark.parametrize('shape', [(40, 31), (24, 24)])
def test_poisson_discs_keep_apart_the_further_out_the_further(shape, generator):
    mask = sampling.poisson_disc(shape, 5, 6, generator)
    assert int(mask.sum()) == round(shape[0] * shape[1] / 5)
    rows, columns = sampling.middle_block(mask)
    assert rows.stop - rows.start >= 3
    assert columns.stop - columns.start >= 3
    where = torch.nonzero(mask).double()
    nearest = torch.cdist(where, where).fill_diagonal_(99).min(1).values
    out = ((where - torch.tensor(shape) // 2) / torch.tensor(shape) * 2).norm(dim=1)
    assert nearest[out > 0.9].min() > nearest[out < 0.2].min()
    assert nearest[out > 0.9].mean() > 1.3 * nearest[out < 0.5].mean()


def test_a_partial_fourier_scan_lacks_the_first_lines_only():
    mask = sampling.partial_fourier(64, 6 / 8)
    assert mask[:16].sum() == 0
    assert mask[16:].all()
    assert sampling.partial_fourier(64, 0.2).sum() == 33  # the origin at least


def test_the_middle_block_ends_at_the_first_gap():
    mask = torch.zeros(20)
    mask[[2, 7, 8, 9, 10, 11, 12, 15]] = 1
    block = sampling.middle_block(mask)[0]
    assert (block.start, block.stop) == (7, 13)
    even = sampling.symmetric(block, 20)
    assert (even.start, even.stop) == (8, 13)
    mask[10] = 0
    nothing = sampling.middle_block(mask)[0]
    assert nothing.start == nothing.stop


def test_the_middle_block_of_samples_has_no_gap_and_touches_one_everywhere():
    mask = torch.zeros(21, 17)
    mask[7:14, 5:12] = 1
    mask[3, 3] = mask[18, 2] = 1
    assert sampling.middle_block(mask) == (slice(7, 14), slice(5, 12))
    assert sampling.middle_block(torch.ones(6, 5)) == (slice(0, 6), slice(0, 5))


def test_the_acceleration_is_what_was_left_out():
    assert sampling.acceleration(torch.tensor([1.0, 0, 0, 1])) == 2


@pytest.mark.parametrize(
    ('n', 'block'), [(20, (4, 20)), (21, (3, 15)), (20, (10, 11)), (7, (0, 7))]
)
def test_of_a_block_the_part_is_kept_in_whose_middle_the_origin_is(n, block):
    kept = sampling.about_origin(slice(*block), n)
    size = kept.stop - kept.start
    assert kept.start + size // 2 == n // 2
    assert block[0] <= kept.start <= kept.stop <= block[1]
    wider = [
        (kept.start - 1, kept.stop),
        (kept.start, kept.stop + 1),
        (kept.start - 1, kept.stop + 1),
    ]
    assert not any(
        first >= block[0] and last <= block[1] and first + (last - first) // 2 == n // 2
        for first, last in wider
    )


def test_partial_fourier_is_told_from_lines_that_end_early_by_chance(generator):
    for fraction in (5 / 8, 6 / 8):
        whole = sampling.partial_fourier(96, fraction)
        assert sampling.one_sided(whole)
        assert sampling.one_sided(whole * sampling.equispaced_lines(96, 2, 24, generator))
    for _ in range(20):
        assert not sampling.one_sided(sampling.random_lines(96, 4, 8, generator))
        assert not sampling.one_sided(sampling.equispaced_lines(96, 3, 12, generator))
    assert not sampling.one_sided(torch.ones(95))


@pytest.mark.parametrize('coils', [1, 6])
def test_lines_of_a_full_scan_are_left_out_and_the_middle_is_kept(coils, generator):
    kept = sampling.retrospective((96, 1), coils, 4, generator)
    assert kept.shape == (1, 96, 1)
    assert kept.sum() == 24
    assert kept[0, 44:52].all()
    even = 'unevenly' if coils == 1 else 'spaced'
    assert even in sampling.pattern(kept[0].bool().numpy())
    assert sampling.retrospective((24, 20), coils, 3, generator).sum() == 160
    with pytest.raises(ValueError, match='more than R'):
        sampling.retrospective((16, 1), coils, 8, generator)
