"""From phase to field: scales, offsets, wraps, bipolar echoes, uneven times, noise."""

from __future__ import annotations

import numpy as np
import pytest

from bidsapp.modalities.gre.physics import echoes
from bidsapp.physics import brain
from bidsapp.physics.phase import wrapped
from bidsapp.problems import BadData

SHAPE, AFFINE = (36, 40, 28), np.diag([2.0, 2, 2.5, 1])
EVEN, UNEVEN = (0.005, 0.011, 0.017, 0.023), (0.004, 0.009, 0.017, 0.028)


@pytest.fixture
def scan(rng):
    """A function of echo times → (phase, magnitude) of a smooth field, noise of 1 in 60."""
    x, y, z = (np.indices(SHAPE) - np.array(SHAPE)[:, None, None, None] / 2) / 10.0
    field = 70 * np.exp(-((x - 0.5) ** 2) - (y + 1) ** 2 - z**2) - 12 * y
    inside = (x / 1.6) ** 2 + (y / 1.8) ** 2 + (z / 1.2) ** 2 < 1
    offset = 1.1 + 0.8 * x - 0.5 * y * z
    rate = np.where(x > 0, 18.0, 30.0)

    def made(times, sigma=1 / 60, backwards=0.0):
        t = np.array(times)[:, None, None, None]
        phase = offset + 2 * np.pi * field * t
        phase[1::2] += backwards * x
        signal = inside * np.exp(-rate * t + 1j * phase)
        noise = rng.normal(0, sigma, (2, *signal.shape)) if sigma else np.zeros((2, 1))
        signal = signal + noise[0] + 1j * noise[1]
        return np.angle(signal), np.abs(signal)

    made.field, made.inside, made.offset = field, inside, offset
    made.core = brain.eroded(inside, AFFINE, 4)
    return made


def off(found, scan, where=None):
    """Hz error less its median: a constant is no susceptibility's."""
    where = scan.core if where is None else where
    error = (found.hertz - scan.field)[where]
    return np.abs(error - np.median(error))


@pytest.mark.parametrize('times', [EVEN, UNEVEN, EVEN[:2]])
def test_the_field_comes_back_without_the_offset(times, scan):
    found = echoes.total_field(*scan(times), times, scan.inside, AFFINE)
    assert np.percentile(off(found, scan), 95) < (2.5 if len(times) == 2 else 1.5)
    assert off(found, scan, scan.inside).max() < 0.4 / times[0]  # no wrap is left
    assert not found.hertz[~scan.inside].any()


def test_bipolar_echoes_have_an_offset_of_their_own(scan):
    phase, magnitude = scan(EVEN, backwards=1.4)
    found = echoes.total_field(phase, magnitude, EVEN, scan.inside, AFFINE, bipolar=True)
    assert np.percentile(off(found, scan), 95) < 2
    naive = echoes.total_field(phase, magnitude, EVEN, scan.inside, AFFINE)
    assert np.percentile(off(naive, scan), 95) > 4 * np.percentile(off(found, scan), 95)


def test_of_one_echo_the_offset_stays(scan):
    phase, magnitude = scan(EVEN[:1])
    found = echoes.total_field(phase, magnitude, EVEN[:1], scan.inside, AFFINE)
    offset = scan.offset / (2 * np.pi * EVEN[0])
    error = (found.hertz - scan.field - offset)[scan.inside]
    assert np.abs(error - np.median(error)).max() < 0.4 / EVEN[0]
    assert found.sigma == pytest.approx(1 / 60, rel=0.3)


def test_the_noise_is_what_is_said(scan):
    """Two scans differ by √2 of it; σ is the channel's."""
    one, two = (echoes.total_field(*scan(EVEN), EVEN, scan.inside, AFFINE) for _ in range(2))
    spread = (one.hertz - two.hertz)[scan.core] / np.hypot(one.noise, two.noise)[scan.core]
    assert np.std(spread) == pytest.approx(1, abs=0.1)
    assert one.sigma == pytest.approx(1 / 60, rel=0.1)
    assert np.median(one.residual[scan.core]) == pytest.approx(0.89, abs=0.08)


def test_a_field_above_the_scanners_frequency_is_positive(scan):
    phase = 2 * np.pi * 20 * np.array(EVEN)[:, None, None, None] * np.ones(SHAPE)
    found = echoes.total_field(wrapped(phase), np.ones_like(phase), EVEN, scan.inside, AFFINE)
    assert found.hertz[scan.inside] == pytest.approx(20, abs=1e-6)


@pytest.mark.parametrize(
    ('times', 'bipolar', 'said'),
    [
        ((5.0, 11.0), False, 'milliseconds'),
        ((0.011, 0.005), False, 'rising'),
        ((0.0, 0.005), False, 'positive'),
        ((0.005, 0.011), True, 'at least 3'),
    ],
)
def test_echo_times_that_cannot_be_are_refused(times, bipolar, said, scan):
    phase = np.zeros((2, *SHAPE))
    with pytest.raises(BadData, match=said):
        echoes.total_field(phase, phase + 1, times, scan.inside, AFFINE, bipolar)


WRITTEN = {
    'radians': lambda p: p,
    'from 0': lambda p: p % (2 * np.pi),
    'milliradians': lambda p: 1000 * p,
    'Siemens': lambda p: 2 * np.floor(p / np.pi * 2048),
    'Siemens from 0': lambda p: np.floor(p / np.pi * 2048) + 2048,
    'a slope that lies': lambda p: 0.0244 * np.floor(p / np.pi * 2048),
    'turns': lambda p: p / (2 * np.pi),
    'shifted': lambda p: 7 * p - 40,
}


@pytest.mark.parametrize('written', WRITTEN.values(), ids=WRITTEN)
def test_every_scale_means_the_same_phase(written, scan):
    phase, _ = scan(EVEN)
    found, words = echoes.phase_radians(written(phase))
    turned = wrapped(found - phase)
    # A constant is no field: it goes with the offset.
    assert np.abs(wrapped(turned - np.median(turned))).max() < 0.01
    assert words


def test_phase_of_the_head_alone_is_believed_to_be_radians(scan):
    phase = np.where(scan.inside, 0.4 * np.sin(scan.field / 20), 0.0)[None]
    assert echoes.phase_radians(phase)[0] == pytest.approx(phase)


def test_what_is_not_finite_has_phase_0_and_tells_nothing_of_the_scale(scan):
    phase, _ = scan(EVEN)
    phase[:, :3] = np.nan
    found, _ = echoes.phase_radians(1000 * phase)
    assert not found[:, :3].any()
    assert np.abs(wrapped(found - phase)[:, 3:]).max() < 0.01


@pytest.mark.parametrize('values', [0.0, 5.0])
def test_a_constant_is_no_phase(values):
    with pytest.raises(BadData, match='in every voxel'):
        echoes.phase_radians(np.full((2, 8, 8, 8), values))


def test_an_unwrapped_field_is_no_phase(scan):
    with pytest.raises(BadData, match='expected'):
        echoes.phase_radians(scan.field[None] * 30)


def test_slices_of_alternating_sign_are_turned_back(scan):
    phase, magnitude = scan(EVEN)
    kept, turned = echoes.slices_turned_back(phase, magnitude)
    assert not turned
    assert kept is phase
    phase[..., 1::2] = wrapped(phase[..., 1::2] + np.pi)
    found, turned = echoes.slices_turned_back(phase, magnitude)
    assert turned
    assert np.abs(wrapped(found - scan_again(phase))).max() < 1e-9


def scan_again(phase):
    """The same with the odd slices half a turn on."""
    again = phase.copy()
    again[..., 1::2] += np.pi
    return again


def test_residues_are_where_phase_has_open_loops():
    x, y, _ = np.indices((8, 8, 3)) - 3.5
    mask = np.ones((8, 8, 3), bool)
    assert echoes.residues(np.arctan2(y, x), mask) == 3  # one in each slice
    assert echoes.residues(wrapped(2 * x + y), mask) == 0
    mask[3:5, 3:5] = False
    assert echoes.residues(np.arctan2(y, x), mask) == 0
