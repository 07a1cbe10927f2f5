"""Laws of the dipole: adjoint, sphere, cylinder, turns, sign."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bidsapp.modalities.gre.physics import dipole
from tests.laws import assert_norm_at_most, assert_operator

TILTED = (0.3, -0.4, 0.8)


def place(shape, voxel_mm):
    """(3, X, Y, Z) mm from voxel n // 2."""
    axes = [
        (torch.arange(n, dtype=torch.float64) - n // 2) * size
        for n, size in zip(shape, voxel_mm, strict=True)
    ]
    return torch.stack(torch.meshgrid(*axes, indexing='ij'))


def ball(shape, voxel_mm, radius, axes=(0, 1, 2), fine=5):
    """(X, Y, Z) share of each voxel within ``radius`` mm of the middle, by ``axes``."""
    fine_mm = [size / fine for size in voxel_mm]
    where = place([n * fine for n in shape], fine_mm)
    for axis, (n, size) in enumerate(zip(shape, voxel_mm, strict=True)):
        # Voxel n // 2 is centred on the origin.
        where[axis] += (n * fine // 2 - fine * (n // 2) - (fine - 1) / 2) * size / fine
    inside = (where[list(axes)].square().sum(0) < radius**2).double()
    return torch.nn.functional.avg_pool3d(inside[None], fine)[0]


def unit(b):
    return torch.tensor(b, dtype=torch.float64) / np.linalg.norm(b)


@pytest.mark.parametrize('exact', [False, True])
@pytest.mark.parametrize(
    ('shape', 'voxel_mm'),
    [((5, 7, 3), (1, 1, 1)), ((4, 6, 8), (0.5, 1, 3)), ((6, 5, 1), (1, 1, 2))],
)
def test_laws_of_an_operator(shape, voxel_mm, exact, generator):
    op = dipole.dipole(shape, voxel_mm, TILTED, exact)
    assert_operator(op, shape, shape, generator, torch.float64)
    assert_norm_at_most(op, 0.75, shape, generator, torch.float64)


@pytest.mark.parametrize('voxel_mm', [(1.0, 1.0, 1.0), (1.0, 0.8, 1.6)])
@pytest.mark.parametrize('b', [(0, 0, 1), TILTED])
def test_the_field_of_a_sphere(voxel_mm, b):
    """Outside χ/3 (R/r)³ (3 cos² - 1), inside 0: the Lorentz sphere's own field."""
    shape, radius = (48, 46, 44), 7.0
    where = place(shape, voxel_mm)
    r = where.norm(dim=0).clamp_min(1e-9)
    cosine = torch.tensordot(unit(b), where, 1) / r
    true = (radius / r) ** 3 * (3 * cosine**2 - 1) / 3
    found = dipole.dipole(shape, voxel_mm, b, exact=True)(ball(shape, voxel_mm, radius))
    surface = 1.5 * max(voxel_mm)
    outside, inside = r > radius + surface, r < radius - surface
    error = (found - true)[outside].norm() / true[outside].norm()
    assert error < 0.02
    assert found[inside].abs().max() < 0.01


@pytest.mark.parametrize('exact', [False, True])
def test_a_paramagnetic_sphere_raises_the_field_along_b0_and_lowers_it_beside(exact):
    shape = (33, 33, 33)
    field = dipole.dipole(shape, (1, 1, 1), (0, 0, 1), exact)(ball(shape, (1, 1, 1), 4.0))
    assert field[16, 16, 24] == pytest.approx(2 / 3 / 8, rel=0.03)
    assert field[16, 24, 16] == pytest.approx(-1 / 3 / 8, rel=0.03)


@pytest.mark.parametrize(
    ('b', 'inside'), [((0, 0, 1), 1 / 3), ((1, 0, 0), -1 / 6), ((0.6, 0, 0.8), 0.64 / 2 - 1 / 6)]
)
def test_the_field_of_a_long_cylinder(b, inside):
    """Along z: χ/6 (3 cos² θ - 1) inside, χ/2 (R/r)² sin² θ cos 2φ outside."""
    shape, radius = (64, 64, 16), 6.0
    chi = ball(shape, (1, 1, 1), radius, axes=(0, 1))
    grid = (192, 192, 16)  # goes on for ever along z
    spectrum = dipole.kspace(grid, (1, 1, 1), b)
    padded = torch.zeros(grid, dtype=torch.float64)
    padded[:64, :64] = chi
    found = dipole.convolved(padded, spectrum)[:64, :64, 8]
    x, y = place(shape, (1, 1, 1))[:2, :, :, 0]
    r = torch.hypot(x, y).clamp_min(1e-9)
    true = 0.5 * (radius / r) ** 2 * b[0] ** 2 * (x**2 - y**2) / r**2
    ring = (r > radius + 1.5) & (r < 28)
    error = found - true
    # D(0) = 0 takes the mean of the whole grid away, which is no part of the law.
    mean = inside * float(padded.mean())
    assert (error[ring] + mean).norm() < 0.02 * max(
        float(true[ring].norm()), float(ring.sum() ** 0.5) / 3
    )
    assert (found[r < radius - 1.5] + mean - inside).abs().max() < 0.02


@pytest.mark.parametrize('exact', [False, True])
def test_tilting_the_field_is_turning_the_head(exact, generator):
    chi = torch.randn((6, 7, 8), generator=generator, dtype=torch.float64)
    voxel_mm = (1.0, 1.5, 2.0)
    here = dipole.dipole(chi.shape, voxel_mm, TILTED, exact)(chi)
    order = (2, 0, 1)
    turned = dipole.dipole(
        [chi.shape[i] for i in order],
        [voxel_mm[i] for i in order],
        [TILTED[i] for i in order],
        exact,
    )(chi.permute(order))
    assert torch.allclose(turned, here.permute(order), atol=1e-12)
    flipped = dipole.dipole(chi.shape, voxel_mm, (-0.3, -0.4, 0.8), exact)(chi.flip(0))
    assert torch.allclose(flipped, here.flip(0), atol=1e-12)
    opposite = dipole.dipole(chi.shape, voxel_mm, [-x for x in TILTED], exact)(chi)
    assert torch.allclose(opposite, here, atol=1e-12)


def test_both_kernels_agree_where_the_grid_resolves_the_sources():
    shape, voxel_mm = (40, 41, 42), (1.0, 1.0, 1.4)
    blob = torch.exp(-place(shape, voxel_mm).square().sum(0) / (2 * 2.5**2))
    a, b = (dipole.dipole(shape, voxel_mm, TILTED, exact)(blob) for exact in (False, True))
    a, b = a - a.mean(), b - b.mean()  # of k = 0, where one of them is 0
    assert (a - b).norm() < 0.05 * b.norm()


def test_b0_runs_along_world_z_whatever_the_voxel_axes(affine_of):
    assert dipole.b0_direction(np.diag([2.0, 3, 4, 1])) == pytest.approx([0, 0, 1])
    assert np.abs(dipole.b0_direction(affine_of('ASL', False))) == pytest.approx([0, 1, 0])
    turn = np.deg2rad(28)
    affine = np.eye(4)  # the third voxel axis leans forwards
    affine[:3, :3] = [[1, 0, 0], [0, np.cos(turn), np.sin(turn)], [0, -np.sin(turn), np.cos(turn)]]
    affine[:3, :3] *= [1, 1, 2]
    wanted = [0, -np.sin(turn), np.cos(turn)]  # so B0 leans back against it
    assert dipole.b0_direction(affine) == pytest.approx(wanted)


def test_an_enlarged_grid_is_half_as_long_again_and_quick():
    assert dipole.enlarged((7, 64, 101)) == (12, 96, 160)
