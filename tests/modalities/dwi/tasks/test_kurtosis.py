"""Kurtosis against the moments of known mixtures, which share no formula with the fit."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from bidsapp.bids.images import load_volume
from bidsapp.bids.prepared import find_prepared
from bidsapp.modalities.dwi.physics import kurtosis as physics
from bidsapp.modalities.dwi.physics.acquisition import Acquisition
from bidsapp.modalities.dwi.physics.gradients import GradientTable
from bidsapp.modalities.dwi.physics.harmonics import fibonacci_hemisphere
from bidsapp.modalities.dwi.physics.kurtosis import LEAST, MOST, fit_kurtosis
from bidsapp.modalities.dwi.tasks import kurtosis
from bidsapp.physics.streams import stream
from bidsapp.problems import Unavailable
from tests.modalities import prepared

#: So low that what stands behind b² is little, and as it is measured.
GENTLE, USUAL = (20.0, 60.0), (1000.0, 2000.0)


def table(low_high=USUAL, directions=(30, 60)):
    parts = [fibonacci_hemisphere(n) for n in directions]
    b = [np.full(n, value) for n, value in zip(directions, low_high, strict=True)]
    vectors = np.concatenate([np.zeros((4, 3)), *parts])
    return GradientTable(vectors, np.r_[np.zeros(4), *b], b0_threshold=10.0)


def turn():
    """A rotation that lies along no axis."""
    return np.linalg.qr(np.array([[0.9, 0.3, 0.1], [-0.3, 0.9, 0.2], [0.2, -0.4, 1.0]]))[0]


def mixture(gtab, shares, tensors):
    """(1, 1, 1, N) signals of Gaussian compartments: tensors (K, 3, 3) in mm²/s."""
    along = np.einsum('ni,kij,nj->kn', gtab.bvecs, tensors, gtab.bvecs)
    return (np.asarray(shares) @ np.exp(-gtab.bvals * along))[None, None, None]


def fitted(signals, gtab):
    maps = fit_kurtosis(signals, gtab, np.ones(signals.shape[:3], bool))
    return np.stack([maps.mk, maps.ak, maps.rk], -1).reshape(-1, 3).astype(float)


def moments(shares, tensors, axis):
    """MK, AK, RK of a mixture: K(n) = 3 variance / mean² of the diffusivities along n."""

    def directional(vectors):
        along = np.einsum('ni,kij,nj->kn', vectors, tensors, vectors)
        mean = shares @ along
        return 3 * (shares @ along**2 - mean**2) / mean**2

    angle = np.linspace(0, np.pi, 180, endpoint=False)
    first = np.cross(axis, (0.3, 0.5, -0.8))
    first /= np.linalg.norm(first)
    circle = np.outer(np.cos(angle), first) + np.outer(np.sin(angle), np.cross(axis, first))
    every = fibonacci_hemisphere(4000)
    return [directional(v).mean() for v in (every, np.asarray(axis)[None], circle)]


def axial(along, across, axis):
    return across * np.eye(3) + (along - across) * np.outer(axis, axis)


class TestLaws:
    @pytest.mark.parametrize('eigenvalues', [(1.7, 0.3, 0.2), (1.0, 1.0, 1.0), (3.0, 3.0, 3.0)])
    def test_gaussian_diffusion_has_none(self, eigenvalues):
        gtab, frame = table(), turn()
        tensor = frame @ np.diag(eigenvalues) @ frame.T * 1e-3
        assert fitted(mixture(gtab, [1], tensor[None]), gtab) == pytest.approx(0, abs=1e-4)

    def test_that_of_isotropic_compartments_is_three_times_their_relative_variance(self):
        gtab, shares, d = table(GENTLE), np.array([0.3, 0.7]), np.array([2e-3, 0.7e-3])
        mean = shares @ d
        expected = 3 * (shares @ d**2 - mean**2) / mean**2
        found = fitted(mixture(gtab, shares, d[:, None, None] * np.eye(3)), gtab)
        assert found == pytest.approx(expected, rel=0.02)

    @pytest.mark.parametrize('axis', [(1, 0, 0), (0, 0.6, 0.8), (0.48, 0.6, 0.64)])
    def test_that_of_two_compartments_along_one_axis_follows_from_their_moments(self, axis):
        gtab, shares = table(GENTLE), np.array([0.4, 0.6])
        tensors = np.stack([axial(2.0e-3, 0.1e-3, axis), axial(1.2e-3, 0.5e-3, axis)])
        found = fitted(mixture(gtab, shares, tensors), gtab)
        assert found[0] == pytest.approx(moments(shares, tensors, axis), rel=0.02)

    @pytest.mark.parametrize('value', [0.3, 0.8, 1.2])
    def test_a_signal_of_known_kurtosis_gives_it_at_usual_b(self, value):
        gtab, d = table(), 0.8e-3
        signal = np.exp(-gtab.bvals * d + (gtab.bvals * d) ** 2 * value / 6)
        assert fitted(signal[None, None, None], gtab) == pytest.approx(value, rel=0.02)

    @pytest.mark.parametrize(('across', 'tolerance'), [(1.5, 1e-5), (0.2, 0.02)])
    def test_it_does_not_change_when_head_and_gradients_turn(self, across, tolerance):
        """Where bounds are met (0.2) it does a little: they hold in directions that stay."""
        gtab, shares, frame = table(), np.array([0.5, 0.5]), turn()
        tensors = np.stack([np.diag([1.8, across, 1.3]), np.diag([0.6, 0.5, 0.7])]) * 1e-3
        signals = mixture(gtab, shares, tensors)
        turned = GradientTable(gtab.bvecs @ frame.T, gtab.bvals)
        assert fitted(signals, turned) == pytest.approx(fitted(signals, gtab), rel=tolerance)

    def test_the_unit_of_the_signal_does_not_matter(self):
        gtab = table()
        signals = mixture(gtab, [0.5, 0.5], np.stack([np.eye(3) * 2e-3, np.eye(3) * 5e-4]))
        assert np.allclose(fitted(signals, gtab), fitted(signals * 4096, gtab), atol=1e-5)


def noisy(gtab, n, snr, rng):
    """(n, 1, 1, N) magnitudes of two compartments about axes at random."""
    axes = rng.normal(size=(n, 3))
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    signals = np.stack([
        mixture(gtab, [0.5, 0.5], np.stack([axial(1.8e-3, 0.2e-3, a), axial(1.5e-3, 6e-4, a)]))[0]
        for a in axes
    ])  # fmt: skip
    real, imaginary = rng.normal(size=(2, *signals.shape)) / snr
    return np.hypot(signals + real, imaginary)


def by_dipy(signals, gtab):
    from dipy.core.gradients import gradient_table
    from dipy.reconst.dki import DiffusionKurtosisModel

    model = DiffusionKurtosisModel(gradient_table(gtab.bvals, bvecs=gtab.bvecs), fit_method='WLS')
    fit = model.fit(signals[:, 0, 0])
    return np.stack([fit.mk(), fit.ak(), fit.rk()], -1)


def test_where_no_bound_is_met_it_is_the_fit_of_dipy(rng):
    gtab = table()
    signals = noisy(gtab, 20, 1e6, rng)
    assert np.allclose(fitted(signals, gtab), by_dipy(signals, gtab), rtol=1e-3, atol=1e-3)


def test_noise_does_not_make_it_negative(rng):
    """The plain fit of the same voxels ends at DIPY's lower limit in one of them or more."""
    gtab = table()
    signals = noisy(gtab, 200, 12, rng)
    found = fitted(signals, gtab)
    assert by_dipy(signals, gtab).min() == pytest.approx(LEAST)
    assert np.quantile(found, 0.01) > -0.02
    assert found.max() <= MOST


def test_a_voxel_that_no_tensor_fits_takes_the_mean_of_the_means_of_its_shells(monkeypatch):
    """Kurtosis of the shells' means stands for MK, and nothing for what depends on direction."""
    gtab = table()
    signal = np.exp(-gtab.bvals * 1e-3 + (gtab.bvals * 1e-3) ** 2 * 0.9 / 6)[None, None, None]
    monkeypatch.setattr(physics, '_plausible', lambda unknowns, _: np.zeros(len(unknowns), bool))
    assert fitted(signal, gtab)[0] == pytest.approx([0.9, 0, 0], abs=0.01)


def test_nothing_is_said_outside_the_mask_or_where_the_signal_is_none():
    gtab = table()
    signals = np.repeat(mixture(gtab, [1], np.eye(3)[None] * 1e-3), 4, 0)
    signals[0, ..., 7], signals[1] = np.nan, 0
    inside = np.array([True, True, True, False])[:, None, None]
    maps = fit_kurtosis(signals, gtab, inside)
    for values in (maps.mk, maps.ak, maps.rk):
        assert np.isfinite(values).all()
        assert not values[[0, 1, 3]].any()


def test_volumes_of_higher_b_have_no_part():
    gtab = table()
    more = GradientTable(
        np.concatenate([gtab.bvecs, gtab.bvecs[-9:]]), np.r_[gtab.bvals, np.full(9, 6000.0)]
    )
    signals = mixture(gtab, [0.5, 0.5], np.stack([np.eye(3) * 2e-3, np.eye(3) * 5e-4]))
    junk = np.concatenate([signals, np.full((1, 1, 1, 9), 0.9)], -1)
    assert np.array_equal(fitted(junk, more), fitted(signals, gtab))


def test_directions_that_do_not_determine_it_are_refused():
    with pytest.raises(Unavailable, match='19 volumes up to b=3100 do not'):
        fit_kurtosis(np.ones((1, 1, 1, 19)), table(directions=(9, 6)), np.ones((1, 1, 1), bool))


@pytest.mark.parametrize(
    ('shells', 'words'),
    [
        (((1000.0, 64),), 'two shells'),
        ((), 'found nothing'),
        (((1000.0, 30), (1200.0, 30)), '1.5 times'),
        (((1000.0, 14), (2000.0, 14)), '15 directions'),
        (((1000.0, 30), (2000.0, 5)), '5 directions at b = 2000'),
        (((1000.0, 30), (5000.0, 60)), 'from 500 to 3100'),
        (((200.0, 30), (1000.0, 30)), 'from 500'),
        (((600.0, 30), (1200.0, 30)), 'two of the ranges of b'),
    ],
)
def test_it_is_refused_in_words(shells, words):
    facts = Acquisition(sum(n for _, n in shells), shells, 1.5)
    for question in (kurtosis.source, kurtosis.applies):
        with pytest.raises(Unavailable, match=words):
            question(facts)


@pytest.mark.parametrize(
    'shells',
    [
        ((1000.0, 30), (2000.0, 60)), ((1000.0, 6), (3000.0, 15)), ((700.0, 16), (2000.0, 30)),
        ((300.0, 8), (1000.0, 30), (2000.0, 30), (6000.0, 60)),
    ],
)  # fmt: skip
def test_two_shells_give_it(shells):
    facts = Acquisition(sum(n for _, n in shells), shells, 1.5)
    assert kurtosis.source(facts) == 'dki'
    kurtosis.applies(facts)


def test_a_prepared_run_gives_finite_maps_in_its_brain_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(prepared, '_table', table)
    prepared.dwi(tmp_path, np.diag([-2.0, 2.0, 2.0, 1.0]))
    (case,) = find_prepared(tmp_path, 'dwi')
    brain = load_volume(case.files['mask']) > 0
    maps = kurtosis.derive(case)
    assert set(maps) == {output.name for output in kurtosis.task.learnt}
    for values in maps.values():
        assert np.isfinite(values).all()
        assert not values[~brain].any()
        assert np.mean(values[brain] != 0) > 0.99
        assert abs(np.median(values[brain])) < 0.3  # one Gaussian, and noise


def test_its_loss_is_least_at_the_label_and_does_not_see_what_is_unknown():
    head, generator = kurtosis.task.head, stream(0, of='test')
    target = 1 + torch.rand(1, 3, 4, 4, 4, generator=generator)
    target[:, 1:, 0] = 0
    mask = torch.ones(1, 1, 4, 4, 4, dtype=torch.bool)
    said = torch.cat([target, torch.full_like(target, -2.0)], 1).requires_grad_()
    (slope,) = torch.autograd.grad(head.loss(said, target, mask), said)
    assert not slope[:, :3].any()
    assert not slope[:, 4:6, 0].any()
    assert slope[:, 4:6, 1:].all()


def test_the_task_loads_no_dipy():
    code = (
        'import sys; from bidsapp import registry; registry.task("kurtosis"); '
        'print("dipy" in sys.modules)'
    )
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert result.stdout.strip() == 'False', result.stderr
