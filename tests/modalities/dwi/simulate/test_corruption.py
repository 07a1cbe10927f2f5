"""The corruption is real: it is physics, it differs from volume to volume, and it can be none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from bidsapp import registry
from bidsapp.modalities.dwi.physics import qspace
from bidsapp.modalities.dwi.simulate import corruption as co
from bidsapp.modalities.dwi.simulate.scheme import eddy_shift
from bidsapp.modalities.dwi.simulate.simulator import (
    BLOCKS,
    ROUND,
    SCANS,
    Simulator,
    block_of,
    scan_of_person,
)
from bidsapp.simulate.grids import Grid
from bidsapp.simulate.material import labelled
from bidsapp.simulate.stream import SimulatedStream

GRID = Grid((24, 24, 24), torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0])))


def table(n=12, b=1000.0):
    u = co.spread_directions(n, torch.Generator().manual_seed(0), even=True)
    return co.Table(torch.cat([torch.zeros(2, 3), u]), torch.tensor([0.0, 0.0] + [b] * n))


def spoilt(seed=0, **changes):
    """A corruption that is not none, with some of its parts replaced."""
    for more in range(50):
        drawn = co.draw_corruption(GRID, table(), 1.0, torch.Generator().manual_seed(seed + more))
        if not drawn.none:
            return replace(drawn, **changes)
    raise AssertionError('every scan was clean')


def ball():
    points = GRID.points() - 23.0
    return ((12 - points.norm(dim=0)) / 2).clamp(0, 1).expand(14, -1, -1, -1).contiguous()


def clean(n=14):
    still = torch.eye(4).expand(n, 4, 4)
    one, flat = torch.ones(n, 24), torch.ones(24, 24, 24)
    return co.Corruption(still, None, 1, one, 0.0, flat, 0.0, None, (0.0,) * 3, 1.0, n, (1.0,) * 3)


def test_in_half_of_the_scans_all_unweighted_volumes_lie_elsewhere_together():
    away = []
    for seed in range(60):
        drawn = co.draw_corruption(GRID, table(), 1.0, torch.Generator().manual_seed(seed))
        b0 = drawn.motion[table().bvals == 0]
        assert torch.equal(b0, b0[:1].expand_as(b0)) or not drawn.none
        if not drawn.none:
            middle = torch.tensor([23.0, 23.0, 23.0, 1.0])
            away.append(float((drawn.motion[0] @ middle - middle).norm()))
    moved = [d for d in away if d > 1e-3]
    assert 0.3 < len(moved) / len(away) < 0.7
    assert max(away) < co.B0_AWAY + 0.1


def test_about_one_scan_in_five_is_clean_and_stays_as_it_is():
    drawn = [
        co.draw_corruption(GRID, table(), 1.0, torch.Generator().manual_seed(s)) for s in range(200)
    ]
    assert 0.12 < np.mean([d.none for d in drawn]) < 0.28
    assert torch.equal(co.corrupted(ball(), clean(), GRID, torch.Generator()), ball())


def test_volumes_are_displaced_differently_and_their_sum_is_conserved():
    made = spoilt()
    displaced = replace(clean(), shift=made.shift * 5, phase_axis=made.phase_axis, sigma=1e-9)
    seen = co.corrupted(ball(), displaced, GRID, torch.Generator())
    assert torch.allclose(seen.sum((1, 2, 3)), ball().sum((1, 2, 3)), rtol=2e-3)
    weighted = seen[2:]
    apart = (weighted[:, None] - weighted[None]).abs().mean((2, 3, 4))
    assert apart[~torch.eye(len(weighted), dtype=torch.bool)].min() > 1e-6
    assert torch.allclose(seen[0], ball()[0], atol=1e-5)


def test_a_gradient_along_the_phase_axis_stretches_and_its_opposite_shrinks():
    """Eddy currents of a gradient add to the one that encodes the image."""
    hz = torch.tensor([[0.0, 0.0, 0.5, 0.0]])
    points = GRID.points() - 23.0
    shift = torch.cat([eddy_shift(points, sign * hz, 0.06) for sign in (1, -1)])
    both = replace(clean(2), shift=shift, sigma=1e-9)
    seen = co.corrupted(ball()[:2], both, GRID, torch.Generator())
    width = [float((volume.sum((0, 2)) * points[1, 0, :, 0] ** 2).sum()) for volume in seen]
    still = float((ball()[0].sum((0, 2)) * points[1, 0, :, 0] ** 2).sum())
    assert width[0] > 1.02 * still
    assert width[1] < 0.98 * still


def test_motion_moves_the_head_where_it_says():
    motion = torch.eye(4).repeat(2, 1, 1)
    motion[1, 0, 3] = 4.0  # mm along the first axis: two voxels
    moved = co.turned_all(ball()[:2], motion, GRID)
    assert torch.allclose(moved[0], ball()[0], atol=1e-5)
    assert torch.allclose(moved[1, 2:], ball()[1, :-2], atol=1e-4)


def test_the_gradient_turns_back_under_a_turning_head():
    """A fibre along x in a head turned by 90 degrees about z is seen as one along y."""
    x = torch.eye(3)[0]
    from bidsapp.modalities.dwi.physics.harmonics import harmonics_at

    coefficients = {1000.0: -harmonics_at(x, 8)[:, None, None, None] + 3}
    turn = torch.eye(4).repeat(2, 1, 1)
    turn[1, :2, :2] = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    both = co.Table(torch.eye(3)[[0, 1]], torch.tensor([1000.0, 1000.0]))
    along_x, along_y = co.true_volumes(coefficients, torch.ones(1, 1, 1), both, turn).flatten()
    assert along_x == pytest.approx(float(along_y), abs=1e-4)


def test_noise_is_of_the_signal_and_rician():
    """Where there is no signal the mean is sigma sqrt(pi/2), and S/S0 has noise in S0 too."""
    noisy = replace(clean(200), sigma=0.1)
    dark, light = torch.zeros(200, 24, 24, 24), torch.ones(200, 24, 24, 24)
    seen = co.corrupted(dark, noisy, GRID, torch.Generator().manual_seed(0))
    assert float(seen.mean()) == pytest.approx(0.1 * (np.pi / 2) ** 0.5, rel=0.01)
    bright = co.corrupted(light, noisy, GRID, torch.Generator().manual_seed(0))
    ratio = bright[1:] / bright[:1]
    shared = ratio.mean(0).std()
    assert float(shared) == pytest.approx(0.1, rel=0.1)


def test_most_displacements_are_those_that_a_correction_leaves():
    sizes = [
        float(c.motion[:, :3, 3].abs().mean())
        for s in range(150)
        if not (c := co.draw_corruption(GRID, table(), 1.0, torch.Generator().manual_seed(s))).none
    ]
    assert np.median(sizes) < 0.15
    assert 0.02 < np.mean(np.array(sizes) > 0.3) < 0.3


@pytest.mark.parametrize('n', [6, 30, 90])
def test_directions_that_are_pushed_apart_determine_a_tensor(n):
    u = co.spread_directions(n, torch.Generator().manual_seed(n), even=True).double()
    x, y, z = u.T
    design = torch.stack([x * x, y * y, z * z, x * y, x * z, y * z], 1)
    assert torch.linalg.cond(design) < 4.5
    cosine = (u @ u.T).abs().fill_diagonal_(0)
    nearest = torch.rad2deg(torch.arccos(cosine.amax(1)))
    assert nearest.min() > 0.6 * (180 / np.pi) * np.sqrt(2 * np.pi / n)


@pytest.fixture(scope='module')
def scans(template):
    simulator = Simulator(template, 5, side=16)
    return [simulator.scan(k) for k in range(12)]


def test_input_differs_from_target_unless_the_scan_is_clean(scans):
    rms = []
    for scan in scans:
        values, filled = scan.truth['correction'][:84], scan.truth['correction'][84:]
        weight = filled.repeat_interleave(28, 0).bool()
        rms.append(float(values[weight].square().mean().sqrt()))
    assert max(rms) > 0.1
    assert not any(np.isnan(rms))


def test_a_clean_scan_of_many_directions_has_nothing_to_correct(template):
    many = lambda g: table(60)  # noqa: E731
    simulator = Simulator(template, 5, side=16, corrupt=False, draw=many)
    scan = simulator.scan(0)
    wanted = scan.truth['correction'][:28][:, scan.mask[0]]
    # (What the map's prior does not explain passes for a little noise.)
    assert float(wanted.square().mean().sqrt()) < 0.06
    low = scan.image[:28][:, scan.mask[0]]
    assert float(low.square().mean().sqrt()) > 0.3


def test_nothing_is_said_outside_the_brain_and_targets_fit_the_tasks(scans):
    tasks = [task for task in registry.tasks_of('dwi') if task.truth is not None]
    for scan in scans:
        outside = ~scan.mask[0]
        assert scan.image.shape[0] == qspace.N_CHANNELS
        assert not scan.image[:, outside].any()
        for task in tasks:
            target = task.truth(scan.truth)
            assert target.dtype == torch.float32
            assert target.shape == (task.head.targets, *scan.mask.shape[1:])
            assert target.isfinite().all()
            if task.name in ('orientation', 'restore', 'crossings'):
                assert not target[:, outside].any()
        sample = labelled(scan, tasks)
        assert torch.equal(sample.target, torch.cat([task.truth(scan.truth) for task in tasks]))
        assert np.array_equal(sample.affine, np.diag([*scan.voxel_mm, 1]))


def test_microstructure_is_asked_only_of_two_shells(scans):
    for scan in scans:
        slots = len(qspace.slots_in_use(scan.image))
        known = (scan.truth['microstructure'] >= 0).any()
        assert bool(known) == (slots > 1)


def test_a_scan_is_the_same_whenever_it_is_asked_for(template):
    first, second = (Simulator(template, 9, side=16) for _ in range(2))
    second.scan(13)
    a, b = first.scan(3), second.scan(3)
    assert torch.equal(a.image, b.image)
    assert torch.equal(a.truth['correction'], b.truth['correction'])


def test_batches_depend_on_seed_and_step_only(template):
    def stream():
        return SimulatedStream(
            Simulator(template, 9, side=16), [registry.task('tissue')], (8, 8, 8), 2, 2
        )

    running, fresh = stream(), stream()
    for step in range(5):
        batch = running.batch(2, 1, step)
    again = fresh.batch(2, 1, 4)
    assert all(torch.equal(x, y) for x, y in zip(batch[:3], again[:3], strict=True))
    assert not batch.context
    assert batch.image.shape == (2, qspace.N_CHANNELS, 8, 8, 8)
    assert batch.mask.any()


def test_scans_in_a_row_are_of_different_people_and_every_block_takes_its_turns():
    people = [block_of(k) // BLOCKS for k in range(ROUND)]
    assert len(set(people)) == ROUND // BLOCKS
    counts = np.bincount([block_of(k) for k in range(ROUND * SCANS * 3)])
    assert counts[ROUND : 2 * ROUND].tolist() == [SCANS] * ROUND
    met = [block_of(scan_of_person(k)) // BLOCKS for k in range(20)]
    assert len(set(met)) == 20


def test_some_schemes_are_never_drawn_so_that_they_test():
    together = 0
    for seed in range(150):
        drawn = co.draw_table(torch.Generator().manual_seed(seed))
        for b in drawn.bvals.unique():
            assert not co.HELD_OUT_B[0] < b < co.HELD_OUT_B[1]
            together += b > 0 and int((drawn.bvals == b).sum()) in co.HELD_OUT_NUMBERS
    # Two shells that happen to have the same b may add up to such a number.
    assert together <= 1


def test_grain_correlates_noise_and_keeps_its_strength():
    grainy = replace(clean(40), sigma=0.05, noise_correlation=(0.25, 0.25, 0.0))
    seen = co.corrupted(torch.ones(40, 24, 24, 24), grainy, GRID, torch.Generator().manual_seed(0))
    noise = (seen - seen.mean())[:, 4:-4, 4:-4, 4:-4]
    assert float(noise.std()) == pytest.approx(0.05, rel=0.03)
    along = [float((noise * noise.roll(1, k)).mean() / noise.square().mean()) for k in (1, 2, 3)]
    assert min(along[:2]) > 0.5
    assert abs(along[2]) < 0.15


def test_the_gain_varies_from_volume_to_volume_in_some_scans():
    spread = [float(spoilt(seed).kept.amax(1).std()) for seed in range(40)]
    assert np.mean(np.array(spread) > 0) > 0.3
    assert max(spread) < 2 * co.GAIN
