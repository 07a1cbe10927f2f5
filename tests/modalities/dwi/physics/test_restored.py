"""Harmonics go back to the volumes that they came from, and a residual knows the noise."""

from __future__ import annotations

import numpy as np
import pytest

from bidsapp.modalities.dwi.physics import qspace
from bidsapp.modalities.dwi.physics.gradients import GradientTable
from bidsapp.modalities.dwi.physics.harmonics import fibonacci_hemisphere
from bidsapp.modalities.dwi.physics.restored import (
    attenuation_at,
    expected_residual,
    james_stein_shrinkage,
    residual,
    residual_noise_variance,
    restored_scan,
    restored_volumes,
    shell_gain_corrected,
    slots_of_volumes,
)


def table(*shells: tuple[float, int], b0: int = 2) -> GradientTable:
    vectors = [np.zeros((b0, 3)), *(fibonacci_hemisphere(n) for _, n in shells)]
    return GradientTable(
        np.vstack(vectors), np.concatenate([np.zeros(b0), *(np.full(n, b) for b, n in shells)])
    )


def tensor_signal(gtab: GradientTable, rng, voxels: int = 200) -> np.ndarray:
    """(N, V) attenuation of single fibres in random directions, with some free water."""
    axes = rng.normal(size=(3, voxels))
    axes /= np.linalg.norm(axes, axis=0)
    b = gtab.bvals[:, None] * 1e-3
    water = rng.uniform(0, 0.3, voxels)
    fibre = np.exp(-b * (0.4 + 1.2 * (gtab.bvecs @ axes) ** 2))
    return (1 - water) * fibre + water * np.exp(-3 * b)


def harmonics_of(signal: np.ndarray, gtab: GradientTable, variance: float) -> np.ndarray:
    """(slots · N_SH, V) as the canonical input has them."""
    mask = np.ones((signal.shape[1], 1, 1), bool)
    attenuation, size = signal[~gtab.b0][..., None, None], np.full(3, 2.0)
    channels = qspace.canonical_channels(attenuation, 1.0 * mask, mask, gtab, variance, size)
    slots = [channels[s * qspace.SLOT_CHANNELS :][: qspace.N_SH] for s in range(len(qspace.SLOTS))]
    return np.concatenate(slots)[..., 0, 0]


@pytest.mark.parametrize(
    ('shells', 'bound'),
    [(((1000, 64),), 0.004), (((1000, 30), (2600, 60)), 0.01), (((1000, 6),), 0.03)],
)
def test_without_noise_the_volumes_come_back(shells, bound, rng):
    gtab = table(*shells)
    signal = tensor_signal(gtab, rng)
    back = attenuation_at(harmonics_of(signal, gtab, 1e-5), gtab)
    error = np.abs(back - signal[~gtab.b0])
    assert np.median(error) < bound
    assert np.sqrt(np.square(error).mean()) < 1.5 * bound


def test_no_harmonics_are_the_prior_mean():
    gtab = table((1000, 30))
    mean, _ = qspace.prior(np.array([1000.0]), np.array([1000.0]))
    assert np.allclose(attenuation_at(np.zeros((3 * qspace.N_SH, 2)), gtab), mean, atol=1e-6)


def test_volumes_of_other_shells_have_no_slot():
    """b = 300 lies in the first slot, whose b is that of the larger shell."""
    gtab = table((300, 6), (1000, 30), (1200, 12))
    slots = slots_of_volumes(gtab)
    assert (slots[gtab.bvals == 1000] == 0).all()
    assert (slots[gtab.bvals != 1000] == -1).all()
    assert len(attenuation_at(np.zeros((3 * qspace.N_SH, 1)), gtab)) == 30


def test_b_a_little_off_follows_the_decay(rng):
    gtab = table((1000, 60))
    off = GradientTable(gtab.bvecs, gtab.bvals * np.where(np.arange(len(gtab)) % 2, 1.03, 0.97))
    harmonics = harmonics_of(tensor_signal(gtab, rng), gtab, 1e-5)
    back, moved = (attenuation_at(harmonics, at) for at in (gtab, off))
    higher = off.bvals[~off.b0] > 1000
    assert (moved[higher] < back[higher]).all()
    assert (moved[~higher] > back[~higher]).all()


def test_residual_of_the_truth_is_one(rng):
    truth = np.full((40, 500), 100.0)
    noisy = truth + rng.normal(0, 7.0, truth.shape)
    left = residual(noisy, truth, 7.0)
    assert np.allclose(left.volumes, 1, atol=0.1)
    assert left.voxels.mean() == pytest.approx(1, abs=0.03)


def test_a_signal_that_is_not_explained_stands_out(rng):
    truth = np.full((40, 500), 100.0)
    noisy = truth + rng.normal(0, 7.0, truth.shape)
    truth[11] += 50
    left = residual(noisy, truth, 7.0)
    assert left.volumes.argmax() == 11
    assert left.volumes[11] > 5


@pytest.mark.parametrize('shells', [((1000, 6),), ((1000, 64),), ((1000, 30), (2000, 60))])
def test_expected_residual_is_what_noise_alone_leaves(shells, rng):
    """Harmonics of noisy volumes follow part of the noise; how much is known beforehand."""
    gtab, sigma = table(*shells), 0.05
    clean = tensor_signal(gtab, rng, 2000)
    noisy = clean + rng.normal(0, sigma, clean.shape)
    s0 = noisy[gtab.b0].mean(0)
    with_noise, without = (
        attenuation_at(harmonics_of(signal, gtab, sigma**2), gtab) for signal in (noisy / s0, clean)
    )
    left = (noisy / s0 - clean)[~gtab.b0] - (with_noise - without)
    share = np.sqrt(np.square(left).mean()) / sigma
    assert share == pytest.approx(expected_residual(gtab, sigma**2), rel=0.04)
    assert share < 1


#: mm, of all boxes.
SIZE = np.full(3, 2.0)


def around(shape=(12, 12, 12), n=20, noise=0.05, seed=0):
    """(truth, observed) (n, V) of a box of voxels, and where they are."""
    rng = np.random.default_rng(seed)
    truth = rng.uniform(0.3, 0.8, (n, int(np.prod(shape)))).astype(np.float32)
    observed = truth + rng.normal(scale=noise, size=truth.shape).astype(np.float32)
    return truth, observed, np.ones(shape, bool)


def test_a_right_prediction_is_kept_and_what_it_misses_smoothly_comes_back_without_the_noise():
    truth, observed, inside = around()
    kept, share = james_stein_shrinkage(observed, truth, 0.05, inside, SIZE)
    assert np.median(share) < 0.1
    noise = np.abs(observed - truth).mean()
    assert np.abs(kept - truth).mean() < 0.3 * noise
    back, share = james_stein_shrinkage(observed, truth + 0.5, 0.05, inside, SIZE)
    assert np.median(share) < 0.1
    assert np.abs(back - truth).mean() < 0.3 * noise


def test_a_prediction_that_is_wrong_in_every_voxel_gives_way_to_the_data():
    truth, observed, inside = around()
    wrong = np.random.default_rng(1).uniform(0.3, 0.8, truth.shape).astype(np.float32)
    back, share = james_stein_shrinkage(observed, wrong, 0.02, inside, SIZE)
    assert share.min() > 0.95
    assert np.abs(back - observed).mean() < 0.02


@pytest.mark.parametrize('size', [1.0, 2.0, 4.0])
def test_noise_alone_keeps_no_share_in_any_scale(size):
    """The noise of a scale is that of independent voxels through its blurs."""
    left = np.random.default_rng(0).normal(size=(30, 20**3)).astype(np.float32)
    inside = np.ones((20, 20, 20), bool)
    back, share = james_stein_shrinkage(left, np.zeros_like(left), 1.0, inside, np.full(3, size))
    deep = np.zeros(inside.shape, bool)
    deep[5:-5, 5:-5, 5:-5] = True
    widest = 5 / 2.3548 / size
    coarse = 1 / (8 * np.pi**1.5 * widest**3) if size < 4 else 0.5
    assert np.mean(share[deep[inside]]) < 0.05
    assert np.square(back[:, deep[inside]]).mean() < coarse + 0.005


@pytest.mark.parametrize('bias', [0.0, 0.02, 0.05, 0.1, 0.3])
def test_it_is_never_worse_than_the_data(bias):
    """James and Stein: however wrong the prediction, the squared error is not above the data's."""
    truth, observed, inside = around()
    wave = bias * np.sin(np.arange(truth.shape[1]))[None] * np.ones_like(truth)
    wrong = (truth + wave).astype(np.float32)
    shrunk, _ = james_stein_shrinkage(observed, wrong, 0.05, inside, SIZE)
    assert np.square(shrunk - truth).mean() <= 1.01 * np.square(observed - truth).mean()


def test_what_stands_above_the_noise_in_one_place_comes_back_there_only():
    truth, observed, inside = around()
    lesion = np.zeros(inside.shape, np.float32)
    lesion[5:8, 5:8, 5:8] = 0.4
    kept, share = james_stein_shrinkage(observed + lesion[inside], truth, 0.05, inside, SIZE)
    there, far = lesion[inside] > 0, np.indices(inside.shape)[0][inside] < 3
    assert (kept - truth)[:, there].mean() > 0.9 * 0.4
    assert share[far].mean() < 0.15


def shells(noise: float = 0.05, seed: int = 0):
    """(truth, observed) (N, V) of single fibres, their slots, and where the voxels are."""
    gtab, rng = table((1000, 30), (2000, 45), b0=1), np.random.default_rng(seed)
    truth = tensor_signal(gtab, rng, 1000)[~gtab.b0].astype(np.float32)
    observed = truth + rng.normal(scale=noise, size=truth.shape).astype(np.float32)
    return truth, observed, slots_of_volumes(gtab)[~gtab.b0], np.ones((10, 10, 10), bool)


def contrast(signal, slots):
    """(V,) length of what varies over directions, root of the sum over shells."""
    parts = [signal[slots == s] - signal[slots == s].mean(0) for s in np.unique(slots)]
    return np.sqrt(sum(np.square(part).sum(0) for part in parts))


@pytest.mark.parametrize('strength', [0.7, 0.9, 1.3])
@pytest.mark.parametrize('offset', [-0.1, 0.0, 0.1])
def test_the_data_say_how_high_and_how_strong_whatever_the_network_thinks(strength, offset):
    truth, observed, slots, inside = shells()
    wrong = np.empty_like(truth)
    for slot in np.unique(slots):
        mean = truth[slots == slot].mean(0)
        wrong[slots == slot] = mean + offset + strength * (truth[slots == slot] - mean)
    found, _ = restored_volumes(observed, wrong, slots, 0.05, inside, SIZE)
    assert np.median(contrast(found, slots) / contrast(truth, slots)) == pytest.approx(1, abs=0.03)
    assert np.abs((found - truth).mean(1)).max() < 0.01
    # Two numbers a shell and voxel are taken from the noise, of 30 and 45.
    assert np.square(found - truth).mean() < 0.3 * np.square(observed - truth).mean()


def test_a_voxel_has_its_own_strength_whatever_its_neighbours_have():
    """A lesion of one voxel among healthy ones comes back whole."""
    truth, observed, slots, inside = shells(noise=0.02)
    lesion = np.ravel_multi_index((5, 5, 5), inside.shape)
    for slot in np.unique(slots):
        lost = 0.6 * (truth[slots == slot, lesion] - truth[slots == slot, lesion].mean())
        truth[slots == slot, lesion] -= lost
        observed[slots == slot, lesion] -= lost
    healthy, *_ = shells(noise=0.02)
    found, _ = restored_volumes(observed, healthy, slots, 0.02, inside, SIZE)
    seen, said = contrast(found, slots)[lesion], contrast(truth, slots)[lesion]
    assert seen == pytest.approx(said, rel=0.1)


def test_where_nothing_is_said_to_vary_nothing_is_scaled():
    """Noise alone does not make contrast: the prior of the factor keeps it at one."""
    truth, observed, slots, _ = shells()
    faint = truth.mean(0) + 0.01 * (truth - truth.mean(0))
    said = shell_gain_corrected(observed - truth, faint, slots, 0.05)
    factor = contrast(said, slots) / contrast(faint, slots)
    assert np.abs(factor - 1).mean() < 0.1


def test_a_pattern_that_the_data_contradict_is_not_turned_over():
    truth, observed, slots, _ = shells(noise=0.0)
    assert contrast(shell_gain_corrected(observed, -truth, slots, 0.05), slots).max() < 1e-5


def test_anatomy_that_is_predicted_is_not_taken_for_noise():
    """Six directions: the finest detail of the scan is mostly anatomy, that of the residual not."""
    gtab, rng = table((1000, 6), b0=1), np.random.default_rng(0)
    inside = np.ones((12, 12, 12), bool)
    truth = 100 * np.vstack(
        [np.ones((1, inside.sum())), tensor_signal(gtab, rng, inside.sum())[1:]]
    )
    noisy = (truth + rng.normal(scale=2.0, size=truth.shape)).astype(np.float32)
    said = shell_gain_corrected(noisy[1:], truth[1:].astype(np.float32), np.zeros(6, int), 2.0)
    found = np.sqrt(residual_noise_variance(noisy, said, gtab, inside))
    assert found == pytest.approx(0.02, rel=0.05)
    blind = np.sqrt(residual_noise_variance(noisy, np.full_like(noisy[1:], 50.0), gtab, inside))
    assert blind > 3 * found


def test_what_has_no_slot_stays_and_a_run_in_other_units_is_restored_alike():
    gtab, rng = table((300, 6), (1000, 30)), np.random.default_rng(0)
    inside = np.ones((8, 8, 8), bool)
    signal = tensor_signal(gtab, rng, inside.sum())
    signal = (signal + rng.normal(scale=0.05, size=signal.shape)).astype(np.float32)
    said = attenuation_at(harmonics_of(signal, gtab, 0.05**2), gtab)
    restored, share, _ = restored_scan(signal, said, gtab, inside, SIZE, 0.05)
    assert np.array_equal(restored[gtab.bvals < 900], signal[gtab.bvals < 900])
    assert not np.array_equal(restored[gtab.bvals > 900], signal[gtab.bvals > 900])
    brighter = restored_scan(300 * signal, 300 * said, gtab, inside, SIZE, 0.05)
    assert np.allclose(brighter[0], 300 * restored, rtol=1e-3, atol=0.5)
    assert np.allclose(brighter[1], share, atol=1e-3)
