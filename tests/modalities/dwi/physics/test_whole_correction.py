"""Motion, eddy currents, dropouts and susceptibility of a simulated head, all corrected at once."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from bidsapp.modalities.dwi.physics.diffusion import fit_tensor
from bidsapp.modalities.dwi.physics.gradients import GradientTable
from bidsapp.modalities.dwi.physics.motion import Motion, apply_motion, estimate_motion
from bidsapp.modalities.dwi.simulate.fibres import draw_bundles
from bidsapp.modalities.dwi.simulate.protocol import Protocol
from bidsapp.modalities.dwi.simulate.scan import DiffusionScan, simulate_dwi
from bidsapp.physics.brain import brain_mask
from bidsapp.physics.reversed_pair import ReversedPair, displacement_from_pair
from bidsapp.physics.template import template_maps
from bidsapp.simulate.acquisition import oblique
from bidsapp.simulate.anatomy import draw_head, head_template
from bidsapp.simulate.t1w import field_of_view

#: Along the phase axis 60 Hz are three voxels, 9 mm. The head ends about 1 mm from where it began.
PROTOCOL = Protocol(
    n_b0=4,
    snr=22.0,
    motion_mm=0.2,
    motion_deg=0.2,
    motion_walk=True,
    phase_sign=-1,
    susceptibility_hz=60.0,
    dropout=0.01,
    readout=0.05,
)
AXIS, PHASE_ENCODING = 1, 'j-'


@dataclass(frozen=True)
class Corrected:
    run: DiffusionScan
    undistorted: DiffusionScan  #: the same head that lay still in a perfect scanner
    raw: np.ndarray  #: (X, Y, Z, N)
    data: np.ndarray  #: (X, Y, Z, N)
    gtab: GradientTable
    affine: np.ndarray
    motion: Motion
    pair: ReversedPair


def corrected(seed):
    """A head of its own for each ``seed``, through all of the correction."""
    run, undistorted = simulated(seed)
    raw = np.ascontiguousarray(run.signal.movedim(0, -1).numpy())
    affine = run.grid.affine.double().numpy()
    gtab = GradientTable(run.bvecs.double().numpy(), run.bvals.double().numpy())
    mask = brain_mask(raw[..., gtab.b0].mean(-1), raw[..., ~gtab.b0].mean(-1), affine)
    motion = estimate_motion(raw, affine, gtab, mask, PHASE_ENCODING)
    b0 = apply_motion(raw, affine, motion)[..., gtab.b0].mean(-1)
    opposite = run.opposite.signal.mean(0).numpy()
    pair = displacement_from_pair(b0, affine, mask, opposite, affine, 1.0, AXIS)
    data = apply_motion(raw, affine, motion, pair.displacement, AXIS)
    return Corrected(run, undistorted, raw, data, gtab, affine, motion, pair)


def simulated(seed):
    """The scan of a head, and that of the same head at rest without any distortion."""
    _, *maps, affine = template_maps(3.0)
    template = head_template(*(torch.from_numpy(array) for array in (*maps, affine)))
    head, bundles = (
        draw(template, torch.Generator().manual_seed(seed + more))
        for draw, more in ((draw_head, 0), (draw_bundles, 50))
    )
    grid = field_of_view(head, oblique(torch.tensor([3.0, 2.0, 4.0]), 'LAS'), 3.0)
    perfect = replace(
        PROTOCOL, motion_mm=0.0, motion_deg=0.0, eddy_hz=0.0, susceptibility_hz=0.0, dropout=0.0
    )
    return (
        simulate_dwi(head, bundles, grid, protocol, torch.Generator().manual_seed(seed + 100))
        for protocol in (PROTOCOL, perfect)
    )


def apart(result):
    """Medians over the brain and the volumes: mm of displacement before and after, degrees."""
    brain = result.run.truth.mask.numpy()
    index = np.argwhere(brain).astype(float)
    to_world, origin = result.affine[:3, :3], result.affine[:3, 3]
    rest = index @ to_world.T + origin
    index[:, AXIS] += result.pair.displacement[brain]
    places = index @ to_world.T + origin
    motion, artefacts = result.motion, result.run.artefacts
    matrices = motion.warp.matrices(motion.parameters)
    turns = motion.warp.rotations(motion.parameters)
    before, after, angles = [], [], []
    for n, matrix in enumerate(matrices):
        true = artefacts.found_at(n).numpy()[:, brain].T
        found = places @ matrix[:3, :3].T + matrix[:3, 3]
        before.append(np.median(np.linalg.norm(true - rest, axis=1)))
        after.append(np.median(np.linalg.norm(true - found, axis=1)))
        turn = turns[n].T @ artefacts.motion[n, :3, :3].double().numpy()
        angles.append(np.rad2deg(Rotation.from_matrix(turn).magnitude()))
    return np.median(before), np.median(after), np.median(angles)


def direction_errors(result):
    """Median angle (degrees) to the true fibre: undistorted, raw and corrected scan."""
    truth = result.run.truth
    single = ((truth.n_fibres == 1) & (truth.tissue[1] > 0.7)).numpy()
    fibres = truth.directions[:3].numpy()[:, single].T
    errors = []
    for data, gtab in (
        (result.undistorted.signal.movedim(0, -1).numpy(), result.gtab),
        (result.raw, result.gtab),
        (result.data, result.motion.gtab),
    ):
        found = fit_tensor(data[single].T, gtab).direction
        cosines = np.abs((found * fibres).sum(-1)).clip(0, 1)
        errors.append(np.median(np.rad2deg(np.arccos(cosines))))
    return errors


def image_errors(result):
    """Median relative difference of b=0 in the brain from the undistorted: raw and corrected."""
    brain = result.run.truth.mask.numpy()
    true = result.undistorted.signal[0].numpy()[brain]
    b0 = result.gtab.b0
    return [
        np.median(np.abs(data[..., b0].mean(-1)[brain] / true - 1))
        for data in (result.raw, result.data)
    ]


@pytest.fixture(scope='module')
def result():
    return corrected(2)


def test_the_total_displacement_is_found_to_0_3_mm_and_0_3_degrees(result):
    before, after, angle = apart(result)
    assert before > 1
    assert after < 0.3
    assert angle < 0.3


def test_susceptibility_is_found_where_it_is_large(result):
    brain = result.run.truth.mask.numpy()
    true = result.run.artefacts.displacement.numpy()[brain]
    error = np.abs(result.pair.displacement[brain] - true) * 3
    large = np.abs(true) > np.quantile(np.abs(true), 0.9)
    assert np.median(np.abs(true[large])) * 3 > 1.2
    assert np.median(error[large]) < 0.3


def test_directions_are_within_a_degree_of_those_of_the_undistorted_scan(result):
    undistorted, raw, mended = direction_errors(result)
    assert abs(mended - undistorted) < 1
    assert mended < raw - 0.4


def test_dropped_slices_with_much_brain_are_replaced(result):
    brain = result.run.truth.mask.numpy().sum((0, 1)) * 9.0  # mm²
    dropped = {
        (n, k) for n, k in np.argwhere(result.run.artefacts.dropout.numpy() < 1) if brain[k] > 2000
    }
    found = {(n, k) for n, k in result.motion.outliers.slices}
    assert len(dropped) >= 4
    assert len(dropped & found) >= 0.8 * len(dropped)
    assert len(found - dropped) <= 2


def test_the_corrected_image_is_nearer_to_the_undistorted_one(result):
    raw, mended = image_errors(result)
    assert mended < 0.8 * raw
