"""Volumes that a network was not shown tell how good it is, without any noise-free scan."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import ive

from bidsapp.modalities.dwi.learn.left_out import (
    CHANNELS,
    LEFT_OUT,
    encoded,
    errors,
    explained,
    magnitude,
    turned_target,
    with_left_out,
)
from bidsapp.modalities.dwi.physics import qspace
from bidsapp.modalities.dwi.physics.gradients import GradientTable
from bidsapp.modalities.dwi.physics.harmonics import fibonacci_hemisphere
from bidsapp.modalities.dwi.physics.turns import turned_channels, turned_harmonics_of_slots
from bidsapp.modalities.dwi.simulate.corruption import Table
from bidsapp.modalities.dwi.simulate.left_out import InTurn, LeftOut, Measured, unknown
from bidsapp.modalities.dwi.simulate.objectives import tasks_of
from bidsapp.modalities.dwi.simulate.scanned import canonical
from bidsapp.physics.geometry import ALL_TURNS, turned_voxels
from bidsapp.registry import task

SIDE, N = 14, 24
DIRECTIONS = fibonacci_hemisphere(N)
TABLE = GradientTable(np.vstack([np.zeros(3), DIRECTIONS]), np.r_[0.0, np.full(N, 1000.0)])


def signals(noise=0.0, seed=0):
    """(N + 1, X, Y, Z) of fibres that turn slowly, S0 1."""
    rng = np.random.default_rng(seed)
    x, y, z = np.mgrid[:SIDE, :SIDE, :SIDE] / SIDE
    axes = np.stack([np.cos(2 * x), np.sin(2 * x) + z, 0.3 + y])
    axes /= np.linalg.norm(axes, axis=0)
    cosine = np.einsum('nd,dxyz->nxyz', DIRECTIONS, axes)
    found = np.concatenate([np.ones((1, SIDE, SIDE, SIDE)), np.exp(-0.3 - 1.4 * cosine**2)])
    return torch.from_numpy(found + noise * rng.normal(size=found.shape)).float()


def pieces(noise=0.0):
    """Input image of all volumes but LEFT_OUT, its table, mask, and the target."""
    volumes, mask = signals(noise), torch.ones(SIDE, SIDE, SIDE, dtype=torch.bool)
    seen, hidden = np.arange(len(TABLE) - LEFT_OUT), np.arange(len(TABLE) - LEFT_OUT, len(TABLE))
    table = Table(
        torch.from_numpy(TABLE.bvecs[seen]).float(), torch.from_numpy(TABLE.bvals[seen]).float()
    )
    image, gtab = canonical(volumes[seen], table, mask, (2.0, 2.0, 2.0))
    target = encoded(image, gtab, volumes[hidden], TABLE[hidden], volumes[0], noise)
    return image, mask[None], target


def test_without_a_correction_it_is_what_the_inputs_harmonics_say():
    target = pieces()[-1]
    said, before, seen = explained(torch.zeros(84, SIDE, SIDE, SIDE), target)
    assert torch.equal(said, before)
    assert seen.shape == (LEFT_OUT, SIDE, SIDE, SIDE)
    assert float((said - seen).square().mean().sqrt()) < 0.03  # without noise it interpolates


def test_the_error_is_least_where_the_harmonics_are_right():
    _, mask, target = pieces(0.05)
    truth, correction = pieces(0.0)[0], torch.zeros(1, 84, SIDE, SIDE, SIDE)
    noisy = pieces(0.05)[0]
    correction[0] = qspace.input_harmonics(truth) - qspace.input_harmonics(noisy)
    right, plain = errors(correction, target[None], mask[None])
    beyond, _ = errors(2 * correction, target[None], mask[None])
    assert right < 0.9 * plain
    assert right < beyond


@pytest.mark.parametrize('turn', ALL_TURNS[1::7])
def test_a_turned_head_has_the_same_error(turn):
    image, mask, target = pieces(0.05)
    correction = 0.1 * torch.randn(1, 84, SIDE, SIDE, SIDE)
    correction[:, qspace.N_SH :] = 0
    before = errors(correction, target[None], mask[None])
    turned = turned_harmonics_of_slots(turned_voxels(correction, turn).contiguous(), turn)
    after = errors(
        turned, turned_target(turned_voxels(target[None], turn), turn),
        turned_voxels(mask[None], turn),
    )  # fmt: skip
    assert torch.allclose(before[0], after[0], rtol=1e-3)
    assert turned_channels(image[None], turn).shape == image[None].shape


def test_a_volume_of_another_shell_teaches_nothing():
    image, mask, _ = pieces()
    far = GradientTable(TABLE.bvecs[-LEFT_OUT:], np.full(LEFT_OUT, 3000.0))
    table = GradientTable(TABLE.bvecs[:-LEFT_OUT], TABLE.bvals[:-LEFT_OUT])
    other = encoded(image, table, signals()[-LEFT_OUT:], far, signals()[0], 0.0)
    assert errors(torch.ones(1, 84, SIDE, SIDE, SIDE), other[None], mask[None])[0] == 0


def test_a_magnitude_is_the_mean_of_rices_distribution():
    a = torch.linspace(0, 6, 100, dtype=torch.float64)
    x = (a**2 / 4).numpy()  # the Laguerre polynomial by Bessel functions scaled by exp(-x)
    exact = np.sqrt(np.pi / 2) * ((1 + 2 * x) * ive(0, x) + 2 * x * ive(1, x))
    assert magnitude(a, torch.tensor(1.0)).numpy() == pytest.approx(exact, abs=0.022)


def test_a_head_that_changes_nothing_scores_one_on_either_kind():
    head = with_left_out(task('restore').head)
    _, mask, left = pieces(0.05)
    real = torch.cat([torch.zeros(87, SIDE, SIDE, SIDE), left])
    simulated = torch.zeros_like(real)
    simulated[:28] = torch.randn(28, SIDE, SIDE, SIDE)
    simulated[84] = 1
    target, both = torch.stack([real, simulated]), torch.stack([mask, mask])
    nothing = torch.zeros(2, 84, SIDE, SIDE, SIDE)
    assert float(head.loss(nothing, target, both)) == pytest.approx(1)
    assert head.targets == 87 + CHANNELS
    alone = (nothing[:1].requires_grad_(), target[:1], both[:1])
    assert torch.autograd.grad(head.loss(*alone), alone[0])[0].any()


def run():
    mask = torch.ones(SIDE, SIDE, SIDE, dtype=torch.bool)
    return Measured(signals(0.05).half(), TABLE, mask, 0.05, (2.0, 2.0, 2.0))


def test_a_run_of_few_slices_makes_blocks_of_the_same_shape():
    whole = run()
    thin = replace(whole, signals=whole.signals[..., :5], mask=whole.mask[..., :5])
    scan = LeftOut([thin], 3, SIDE).scan(0)
    assert scan.image.shape[1:] == scan.truth['left_out'].shape[1:] == (SIDE,) * 3
    assert scan.mask[..., :5].all()
    assert not scan.mask[..., 5:].any()
    assert not scan.image[..., 5:].any()


def test_what_is_hidden_has_no_part_in_the_input():
    whole = run()
    first = LeftOut([whole], 3, SIDE).scan(5)
    hidden = [k for k in range(len(TABLE)) if TABLE.bvals[k] and not any(
        torch.allclose(torch.from_numpy(TABLE.bvecs[k]).float(), v, atol=1e-6)
        for v in first.table.bvecs
    )]  # fmt: skip
    assert len(hidden) >= LEFT_OUT
    whole.signals[hidden] = 0.123
    second = LeftOut([whole], 3, SIDE).scan(5)
    assert torch.equal(first.image, second.image)
    assert not torch.equal(first.truth['left_out'], second.truth['left_out'])


def test_a_real_scan_teaches_the_other_tasks_nothing():
    mask = torch.ones(5, 5, 5, dtype=torch.bool)
    truth = unknown(mask)
    for own in tasks_of('mixed'):
        if own.name == 'restore':
            continue
        assert own.truth is not None
        target = own.truth(truth)[None]
        turned = own.head.turn_target(target.clone(), ALL_TURNS[3])
        said = torch.randn(1, own.head.channels, 5, 5, 5, requires_grad=True)
        for wanted in (target, turned):
            gradient = torch.autograd.grad(own.head.loss(said, wanted, mask[None, None]), said)[0]
            assert not gradient.any(), own.name


def test_scanners_take_turns():
    class Plain:
        def scan(self, number):
            scan = LeftOut([run()], 3, SIDE).scan(number)
            del scan.truth['left_out']
            return scan

    both = InTurn((Plain(), LeftOut([run()], 3, SIDE)))
    assert not both.scan(4).truth['left_out'].any()
    assert both.scan(5).truth['left_out'].any()
    assert torch.equal(both.scan(5).image, both.scanners[1].scan(2).image)
