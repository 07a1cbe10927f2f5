"""Laws of dipole inversion: closed forms are minima, ADMM has one, data decide where they can."""

from __future__ import annotations

import pytest
import torch

from bidsapp.modalities.gre.physics import inversion
from bidsapp.modalities.gre.physics.agreement import nrmse, slope, xsim
from bidsapp.modalities.gre.physics.dipole import convolved, enlarged, kspace

VOXEL = (1.0, 1.0, 1.5)
TILTED = (0.1, -0.3, 0.9)


def boxes(shape, generator):
    """χ of some boxes of ± 0.1 ppm, float64, in the middle of ``shape``."""
    chi = torch.zeros(shape, dtype=torch.float64)
    for _ in range(12):
        low = [int(torch.randint(n // 4, n // 2, (), generator=generator)) for n in shape]
        size = torch.randint(2, 7, (3,), generator=generator).tolist()
        value = 0.1 * float(torch.randn((), generator=generator))
        chi[tuple(slice(a, a + s) for a, s in zip(low, size, strict=True))] += value
    return chi


@pytest.fixture
def problem(generator):
    """(χ, its field with noise, dipole, mask) on an enlarged grid."""
    shape = enlarged((24, 26, 20))
    chi, d = boxes(shape, generator), kspace(shape, VOXEL, TILTED)
    noise = 0.002 * torch.randn(shape, generator=generator, dtype=torch.float64)
    mask = torch.zeros(shape, dtype=torch.float64)
    mask[4:-4, 4:-4, 4:-4] = 1
    return chi, mask * (convolved(chi, d) + noise), d, mask


def test_truncated_division_is_exact_where_nothing_is_truncated(generator):
    shape = (8, 9, 10)
    d = kspace(shape, VOXEL, TILTED)
    chi = convolved(
        torch.randn(shape, generator=generator, dtype=torch.float64), (d.abs() > 0.15).double()
    )
    found = inversion.truncated_division(convolved(chi, d), d)
    assert torch.allclose(found, chi, atol=1e-12)


@pytest.mark.parametrize('smooth', [False, True])
def test_tikhonov_is_the_minimum(smooth, generator):
    shape = (8, 9, 10)
    d = kspace(shape, VOXEL, TILTED)
    field = torch.randn(shape, generator=generator, dtype=torch.float64)
    strength = 0.02 * (inversion.gradient_power(shape, VOXEL) if smooth else 1.0)
    chi = inversion.tikhonov(field, d, strength).requires_grad_()
    slopes = inversion.gradient(chi, VOXEL) if smooth else chi
    cost = (convolved(chi, d) - field).square().sum() + 0.02 * slopes.square().sum()
    (descent,) = torch.autograd.grad(cost, chi)
    assert descent.abs().max() < 1e-12


def test_gradient_and_divergence_are_adjoint_and_have_that_spectrum(generator):
    shape = (5, 6, 7)
    x, y = (torch.randn(s, generator=generator, dtype=torch.float64) for s in (shape, (3, *shape)))
    there = (inversion.gradient(x, VOXEL) * y).sum()
    assert torch.allclose(there, -(x * inversion.divergence(y, VOXEL)).sum())
    curl = -inversion.divergence(inversion.gradient(x, VOXEL), VOXEL)
    assert torch.allclose(curl, convolved(x, inversion.gradient_power(shape, VOXEL)))


def test_the_consistent_step_gives_back_the_slope_that_a_network_lost(problem):
    chi, field, d, mask = problem
    half = 0.5 * chi
    mended = inversion.consistent(half, field, d, mask, 0.02)
    assert slope(mended.numpy(), chi.numpy(), mask.numpy() > 0) > 0.8  # from 0.5
    clean = convolved(chi, d)
    assert torch.allclose(inversion.consistent(chi, clean, d, mask, 0.02), chi)


def test_the_consistent_step_leaves_what_the_data_do_not_know(problem, generator):
    _, _, d, _ = problem
    blind = torch.where(d.abs() < 0.02, 1.0, 0.0).double()
    noise = torch.randn((*d.shape[:2], 30), generator=generator, dtype=torch.float64)
    unseen = convolved(noise, blind)
    everywhere = torch.ones_like(noise)
    step = inversion.consistent(unseen, 0 * noise, d, everywhere, 0.02) - unseen
    assert step.norm() < 0.03 * unseen.norm()


def cost(chi, field, d, weights, strength):
    misfit = 0.5 * (weights * (convolved(chi, d) - field)).square().sum()
    return float(misfit + strength * inversion.gradient(chi, VOXEL).norm(dim=0).sum())


def test_total_variation_by_few_iterations_is_that_by_many(problem):
    _, field, d, mask = problem
    short = inversion.total_variation(field, d, mask, VOXEL, 4e-4)
    long = inversion.total_variation(field, d, mask, VOXEL, 4e-4, iterations=400, tolerance=0.0)
    assert long.change < 1e-4
    assert short.iterations <= 100
    inside = mask.numpy() > 0
    assert nrmse(short.chi.numpy(), long.chi.numpy(), inside) < 5
    least = cost(long.chi, field, d, mask, 4e-4)
    assert cost(short.chi, field, d, mask, 4e-4) < 1.03 * least
    nudged = long.chi + 1e-3 * torch.randn(field.shape, dtype=torch.float64)
    assert cost(nudged, field, d, mask, 4e-4) > least


def test_total_variation_beats_the_closed_forms_on_boxes(problem):
    chi, field, d, mask = problem
    inside = mask.numpy() > 0
    found = {
        'tkd': inversion.truncated_division(field, d),
        'tikhonov': inversion.tikhonov(field, d, 0.02),
        'tv': inversion.total_variation(field, d, mask, VOXEL, 4e-4).chi,
    }
    error = {name: nrmse(x.numpy(), chi.numpy(), inside) for name, x in found.items()}
    alike = {name: xsim(x.numpy(), chi.numpy(), inside) for name, x in found.items()}
    assert error['tv'] < 0.6 * min(error['tkd'], error['tikhonov'])
    assert alike['tv'] > max(alike['tkd'], alike['tikhonov']) + 0.1
    assert slope(found['tv'].numpy(), chi.numpy(), inside) == pytest.approx(1, abs=0.1)


def test_what_stands_where_the_weights_are_0_does_not_matter(problem):
    _, field, d, mask = problem
    wild = torch.where(mask > 0, field, 1e3)
    runs = [
        inversion.total_variation(f, d, mask, VOXEL, 4e-4, iterations=20).chi for f in (field, wild)
    ]
    assert torch.equal(*runs)


def test_a_turned_problem_has_the_turned_solution(problem):
    _, field, d, mask = problem
    order = (1, 2, 0)
    turned = kspace([field.shape[i] for i in order], [VOXEL[i] for i in order],
                    [TILTED[i] for i in order])  # fmt: skip
    here = inversion.total_variation(field, d, mask, VOXEL, 4e-4, iterations=15).chi
    there = inversion.total_variation(
        field.permute(order).contiguous(), turned, mask.permute(order).contiguous(),
        [VOXEL[i] for i in order], 4e-4, iterations=15,
    ).chi  # fmt: skip
    assert torch.allclose(there, here.permute(order), atol=1e-9)


def test_the_strength_grows_with_the_noise_and_with_the_voxel():
    own = inversion.strength_for(0.002, VOXEL)
    assert inversion.strength_for(0.004, [2 * v for v in VOXEL]) == pytest.approx(4 * own)
    assert inversion.strength_for(0.002, VOXEL, behind_filter=True) < own
