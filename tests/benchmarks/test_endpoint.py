"""Laws of the endpoint of real scans, on scans whose truth is known."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256

import numpy as np
import people
import pytest
import torch
from applied import canonical, corrected_harmonics, harmonics_of, said_signal
from comparators import isotropic, of_tensor, used
from effects import is_done, read_results
from left_out import left, magnitudes, ratio
from offset import offset
from real_directions import COLUMNS, RESULTS
from real_tables import print_tables
from realscans import Scan, divisions
from reference import noise, own_error
from scores import degrees

from bidsapp.modalities.dwi.physics.diffusion import fit_tensor
from bidsapp.modalities.dwi.physics.gradients import GradientTable
from bidsapp.modalities.dwi.physics.harmonics import fibonacci_hemisphere
from bidsapp.modalities.dwi.physics.restored import slots_of_volumes

SHAPE, EDGE = (40, 44, 30), 2.0
AFFINE = np.diag([EDGE, EDGE, EDGE, 1.0])
AFFINE[:3, 3] = (-40.0, -44.0, -30.0)


def table(n: int, b: float = 1000.0) -> GradientTable:
    bvecs = np.concatenate([np.zeros((1, 3)), fibonacci_hemisphere(n)])
    return GradientTable(bvecs, np.r_[0.0, np.full(n, b)])


def head(gtab: GradientTable, shift: tuple[float, ...] = (0, 0, 0), sigma: float = 0.0) -> Scan:
    """A ball of tissue full of blobs, one fibre along a field that turns slowly; all analytic."""
    rng = np.random.default_rng(5)
    points = np.moveaxis(np.indices(SHAPE), 0, -1) * EDGE + AFFINE[:3, 3] - np.array(shift)
    brain = 1 / (1 + np.exp((np.linalg.norm(points, axis=-1) - 25) / 1.5))
    bright = 0.7 * np.ones(SHAPE)
    for centre in rng.uniform(-20, 20, size=(60, 3)):
        square = np.square(points - centre).sum(-1)
        bright += rng.uniform(-0.3, 0.5) * np.exp(-square / (2 * rng.uniform(3, 6) ** 2))
    angle = points[..., 0] / 30
    fibre = np.stack([np.cos(angle), np.sin(angle), 0.3 * np.ones(SHAPE)], -1)
    fibre /= np.linalg.norm(fibre, axis=-1, keepdims=True)
    along = np.square(fibre @ gtab.bvecs.T)
    signal = (brain * bright)[..., None] * np.exp(-1e-3 * gtab.bvals * (0.4 + 1.2 * along))
    noise = np.random.default_rng(len(gtab)).normal(scale=sigma, size=(2, *signal.shape))
    data = np.hypot(signal + noise[0], noise[1]).astype(np.float32)
    return Scan(data, gtab, AFFINE, np.linalg.norm(points, axis=-1) < 24)


@pytest.mark.parametrize('shift', [(0, 0, 0), (0.15, 0, 0), (0, 0.3, 0), (0.4, -0.5, 0.7)])
def test_the_offset_of_two_parts_with_other_directions_is_found(shift: tuple[float, ...]) -> None:
    one, other = head(table(6), sigma=0.015), head(table(14), shift, sigma=0.015)
    assert offset(one, other) == pytest.approx(np.linalg.norm(shift), abs=0.05)


def test_a_head_that_changes_nothing_scores_exactly_1() -> None:
    scan, others = head(table(12), sigma=0.03), head(table(20), sigma=0.03)
    weighted = others.gtab[~others.gtab.b0]
    seen, everywhere = used(replace(others, mask=scan.mask)), np.ones(int(scan.mask.sum()), bool)
    sample = canonical(scan)
    nothing = {'restore': torch.zeros(84, *scan.mask.shape)}
    own, same = (
        left(seen, said_signal(scan, harmonics, weighted), 0.03, everywhere)
        for harmonics in (
            harmonics_of(scan),
            corrected_harmonics(sample.image, nothing, scan.mask),
        )
    )
    assert ratio(same, own) == (1.0, 1.0, 1.0)


def test_what_is_true_leaves_the_noise_and_what_has_no_direction_more() -> None:
    scan, others = head(table(12), sigma=0.02), head(table(20), sigma=0.02)
    clean, where = head(table(20)), np.ones(int(scan.mask.sum()), bool)
    others, clean = (replace(one, mask=scan.mask) for one in (others, clean))
    weighted = others.gtab[~others.gtab.b0]
    seen = used(others)
    truth = left(seen, used(clean), 0.02, where)
    by_tensor = left(seen, of_tensor(scan, weighted), 0.02, where)
    flat = left(seen, isotropic(scan, weighted), 0.02, where)
    assert truth.errors.mean() == pytest.approx(0.02**2, rel=0.05)
    assert ratio(by_tensor, truth)[1] > 1
    assert ratio(flat, by_tensor)[1] > 1


def test_the_noise_is_told_by_the_volumes_left_out() -> None:
    scan = head(table(20), sigma=0.02)
    inner = scan.mask & (head(table(20)).data[..., 1:].min(-1) > 0.1)
    assert noise(scan, inner) == pytest.approx(0.02, rel=0.05)


def test_six_volumes_tell_neither_their_noise_nor_their_error() -> None:
    scan = head(table(6), sigma=0.02)
    assert np.isnan(noise(scan, scan.mask))
    assert np.isnan(own_error(scan, scan.mask)).all()


def test_low_signals_are_compared_as_magnitudes() -> None:
    signal = np.full((3, 40_000), 0.5)
    rng = np.random.default_rng(0)
    seen = np.hypot(signal + rng.normal(size=signal.shape), rng.normal(size=signal.shape))
    assert magnitudes(signal, 1.0).mean() == pytest.approx(seen.mean(), abs=0.01)
    high = np.full((3, 4), 5.0)
    assert np.array_equal(magnitudes(high, 1.0), high)
    assert left(seen, signal, 1.0, np.ones(40_000, bool)).as_rician


def test_the_reference_knows_its_own_error() -> None:
    gtab, clean = table(20), head(table(20))
    scan, where = head(gtab, sigma=0.03), clean.mask & (clean.data[..., 0] > 0.5)
    axes = [fit_tensor(one.data, gtab, where).direction[where] for one in (scan, clean)]
    true = np.median(degrees(*axes))
    assert np.median(own_error(scan, where)) == pytest.approx(true, rel=0.15)


def test_a_flat_prediction_has_a_value_a_shell() -> None:
    scan = head(table(6))
    flat = isotropic(scan)
    assert flat.shape == (6, scan.mask.sum())
    assert np.ptp(flat, axis=0).max() == 0
    assert len(isotropic(scan, table(9))) == (slots_of_volumes(table(9)) >= 0).sum() == 9


def test_parts_of_a_division_share_b0_and_nothing_else() -> None:
    gtab = table(20)
    for inner, outer in divisions(gtab, 6):
        assert np.intersect1d(inner, outer).tolist() == [0]
        assert len(np.union1d(inner, outer)) == len(gtab)
    assert divisions(table(10), 6) == []


@pytest.fixture
def two_runs(tmp_path):
    paths = [tmp_path / f'sub-01_run-{k}_dwi.nii.gz' for k in (1, 2)]
    for path in paths:
        path.write_bytes(path.name.encode())
    return paths


@pytest.mark.parametrize(
    'card',
    [
        lambda digest: {'seen_scans': [digest], 'seen_complete': True},
        lambda digest: {'scans': {'val': [digest]}},
        lambda digest: {'gated': [digest]},
        lambda digest: {'gated': {'scans': [{'sha256': digest, 'ratio': 0.9}]}},
    ],
)
def test_a_scan_that_the_card_names_is_refused(card, two_runs) -> None:
    first, second = two_runs
    digest = sha256(first.read_bytes()).hexdigest()
    with pytest.raises(people.Seen, match='trained, chosen or gated'):
        people.refuse_seen(card(digest), first)
    people.refuse_seen(card(digest), second)
    with pytest.raises(people.Seen):  # the same person, another run
        people.refuse_seen(card(digest), second, two_runs)
    people.refuse_seen(card(sha256(b'another').hexdigest()), first, two_runs)
    people.refuse_seen({'scans': {'test': [digest]}}, first)


def test_labels_elsewhere_are_other_people(tmp_path) -> None:
    assert people.role_of(people.FOLDERS[0] / 'sub-galan' / 'dwi' / 'sub-galan_dwi.nii.gz') == (
        people.TEACHES
    )
    assert people.role_of(tmp_path / 'sub-galan_dwi.nii.gz') == people.TESTS


def test_the_rows_that_are_kept_make_the_tables(capsys) -> None:
    rows = read_results(RESULTS)
    assert tuple(rows[0]) == COLUMNS
    one = rows[-1]
    assert is_done(RESULTS, *(one[c] for c in COLUMNS[:5]))
    assert not is_done(RESULTS, 'another model', *(one[c] for c in COLUMNS[1:5]))
    assert all(float(row['offset_mm']) <= 0.2 for row in rows if row['endpoint'] != 'refused')
    print_tables(RESULTS)
    shown = capsys.readouterr().out
    assert 'over the best blur' in shown
    assert "squared error over the input's" in shown
