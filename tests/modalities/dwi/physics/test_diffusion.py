"""Tensor laws: exact without noise, the same as dipy, bounded, in the frame of the table."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from bidsapp.modalities.dwi.physics.diffusion import fit_tensor, tensor_volumes
from bidsapp.modalities.dwi.physics.gradients import GradientTable, rotated
from bidsapp.modalities.dwi.physics.harmonics import fibonacci_hemisphere
from bidsapp.problems import BadData


def table(shells, n_b0=1):
    """n_b0 volumes at b=0, then each (b, directions) of ``shells``."""
    bvecs = [np.zeros((n_b0, 3)), *(fibonacci_hemisphere(n) for _, n in shells)]
    bvals = [np.zeros(n_b0), *(np.full(n, float(b)) for b, n in shells)]
    return GradientTable(np.concatenate(bvecs), np.concatenate(bvals))


def tensors(rng, n):
    """(n, 3) eigenvalues in mm²/s, descending, and (n, 3, 3) eigenvectors as columns."""
    evals = -np.sort(-rng.uniform(0.2e-3, 2e-3, (n, 3)), axis=1)
    return evals, Rotation.random(n, random_state=rng).as_matrix()


def signals(evals, evecs, gtab, s0=500.0):
    """(N, V) Gaussian diffusion."""
    d = np.einsum('vij,vj,vkj->vik', evecs, evals, evecs)
    return s0 * np.exp(-np.einsum('n,ni,vik,nk->nv', gtab.bvals, gtab.bvecs, d, gtab.bvecs))


def degrees_between(a, b):
    return np.rad2deg(np.arccos(np.clip(np.abs((a * b).sum(-1)), 0, 1)))


def test_noise_free_tensor_is_exact(rng):
    gtab = table([(700, 6), (1200, 12)])
    evals, evecs = tensors(rng, 200)
    maps = fit_tensor(signals(evals, evecs, gtab), gtab)
    np.testing.assert_allclose(maps.evals, evals, rtol=1e-6)
    np.testing.assert_allclose(maps.md, evals.mean(1), rtol=1e-6)
    assert degrees_between(maps.direction, evecs[..., 0]).max() < 1e-3
    np.testing.assert_allclose(np.linalg.norm(maps.evecs, axis=1), 1)


@pytest.mark.parametrize(('snr', 'tolerance'), [(np.inf, 1e-4), (20, 2e-2)])
def test_agrees_with_dipy(rng, snr, tolerance):
    from dipy.core.gradients import gradient_table
    from dipy.reconst.dti import TensorModel

    gtab = table([(1000, 30)], n_b0=2)
    evals, evecs = tensors(rng, 150)
    clean = signals(evals, evecs, gtab)
    data = np.abs(clean + rng.normal(size=clean.shape) * 500 / snr)
    theirs = TensorModel(
        gradient_table(gtab.bvals, bvecs=gtab.bvecs), fit_method='WLS', min_signal=0.5
    ).fit(data.T)
    ours = fit_tensor(data, gtab)
    assert np.median(np.abs(ours.fa - theirs.fa)) < tolerance / 10
    np.testing.assert_allclose(ours.fa, theirs.fa, atol=tolerance)
    np.testing.assert_allclose(ours.md, theirs.md, rtol=tolerance)


def test_weights_beat_ordinary_least_squares(rng):
    gtab = table([(1500, 30)], n_b0=1)
    evals = np.broadcast_to([2.2e-3, 0.4e-3, 0.3e-3], (2000, 3))
    evecs = Rotation.random(2000, random_state=rng).as_matrix()
    clean = signals(evals, evecs, gtab)
    data = np.maximum(clean + rng.normal(size=clean.shape) * 500 / 30, 1)
    from bidsapp.modalities.dwi.physics.gradients import tensor_design

    ordinary = (np.linalg.pinv(tensor_design(gtab)) @ np.log(data))[:3].mean(0) * 1e-3
    weighted = fit_tensor(data, gtab).md
    truth = evals[0].mean()
    assert np.abs(weighted - truth).mean() < 0.9 * np.abs(ordinary - truth).mean()


def test_grid_and_flat_layouts_are_the_same_and_mask_is_kept(rng):
    gtab = table([(1000, 12)])
    evals, evecs = tensors(rng, 24)
    flat = signals(evals, evecs, gtab)
    mask = rng.random((2, 3, 4)) < 0.5
    grid = fit_tensor(flat.T.reshape(2, 3, 4, -1), gtab, mask)
    np.testing.assert_allclose(grid.fa[mask], fit_tensor(flat, gtab).fa[mask.ravel()], atol=1e-10)
    assert grid.evecs.shape == (2, 3, 4, 3, 3)
    assert not grid.evals[~mask].any()
    assert not grid.direction[~mask].any()


def test_turning_gradients_turns_directions(rng):
    gtab = table([(1000, 20)])
    data = signals(*tensors(rng, 50), gtab) + rng.normal(size=(21, 50)) * 5
    turn = Rotation.random(random_state=rng).as_matrix()
    before, after = fit_tensor(data, gtab), fit_tensor(data, rotated(gtab, turn))
    np.testing.assert_allclose(after.evals, before.evals, atol=1e-9)
    clear = before.fa > 0.2
    assert degrees_between(after.direction, before.direction @ turn.T)[clear].max() < 1e-3


def test_any_signal_gives_finite_bounded_maps(rng):
    gtab = table([(1000, 12)], n_b0=2)
    data = rng.normal(size=(14, 500)) * 100
    data[:, :20] = 0
    data[:, 20:40] = -5
    data[3, 40:60] = np.nan
    data[0, 60:80] = np.inf
    maps = fit_tensor(data, gtab)
    for values in (maps.fa, maps.md, maps.evecs):
        assert np.isfinite(values).all()
    assert maps.fa.min() >= 0
    assert maps.fa.max() <= 1
    assert maps.evals.min() >= 0
    assert not maps.evals[:60].any()


def test_units_do_not_matter(rng):
    gtab = table([(1000, 12)])
    data = signals(*tensors(rng, 30), gtab) + rng.normal(size=(13, 30)) * 20
    np.testing.assert_allclose(
        fit_tensor(data * 1e-6, gtab).fa, fit_tensor(data, gtab).fa, atol=1e-9
    )


def test_only_the_gaussian_regime_is_used_where_it_suffices():
    gtab = table([(1000, 12), (3000, 30)])
    np.testing.assert_array_equal(tensor_volumes(gtab), gtab.bvals <= 1000)
    assert tensor_volumes(table([(1000, 6), (1500, 6)])).all()


def test_higher_shells_are_added_lowest_first_where_it_does_not():
    gtab = table([(1000, 3), (2000, 12), (3000, 30)])
    np.testing.assert_array_equal(tensor_volumes(gtab), gtab.bvals <= 2000)
    assert tensor_volumes(table([(2500, 20)])).all()


def test_kurtosis_at_high_b_does_not_enter(rng):
    gtab = table([(1000, 12), (3000, 30)])
    evals, evecs = tensors(rng, 20)
    data = signals(evals, evecs, gtab)
    data[gtab.bvals > 2000] *= 1.5
    np.testing.assert_allclose(fit_tensor(data, gtab).evals, evals, rtol=1e-6)


def test_too_few_directions_are_refused(rng):
    gtab = table([(1000, 5)])
    with pytest.raises(BadData, match='5 different directions'):
        fit_tensor(rng.uniform(size=(6, 3)), gtab)


def test_directions_on_one_cone_are_refused():
    phi = np.arange(12) * np.pi / 6
    cone = np.stack([np.cos(phi), np.sin(phi), np.full(12, 0.7)], 1) / np.sqrt(1.49)
    gtab = GradientTable(np.vstack([np.zeros(3), cone]), np.r_[0, np.full(12, 1000.0)])
    with pytest.raises(BadData, match='condition number'):
        tensor_volumes(gtab)
