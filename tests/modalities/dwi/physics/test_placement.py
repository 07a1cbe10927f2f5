"""Where the weighted volumes lie against b = 0: an implant is found, and halves agree."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch

from bidsapp.modalities.dwi.interfaces.motion import said_of
from bidsapp.modalities.dwi.physics import realignment
from bidsapp.modalities.dwi.physics.gradients import GradientTable, from_fsl
from bidsapp.modalities.dwi.physics.harmonics import fibonacci_hemisphere
from bidsapp.modalities.dwi.physics.motion import Motion, estimate_motion
from bidsapp.modalities.dwi.physics.outliers import none
from bidsapp.modalities.dwi.physics.placement import Placement, balanced, placed
from bidsapp.modalities.dwi.physics.subsets import halves
from bidsapp.modalities.dwi.simulate.fibres import draw_bundles
from bidsapp.modalities.dwi.simulate.protocol import Protocol
from bidsapp.modalities.dwi.simulate.scan import simulate_dwi
from bidsapp.physics.brain import brain_mask
from bidsapp.physics.resampling import Warp, resampled_cubic, voxel_matrices
from bidsapp.simulate.acquisition import oblique
from bidsapp.simulate.t1w import field_of_view

#: 1 mm and half a degree.
IMPLANT = np.array([0.6, -0.5, 0.62, *np.deg2rad([0.3, -0.3, 0.25])])
STILL = Protocol(n_b0=2, snr=22.0, motion_mm=0.0, motion_deg=0.0, eddy_hz=0.0)


def simulated(head, template, b):
    """A head at rest: data (X, Y, Z, N), affine, table and mask."""
    from dataclasses import replace

    bundles = draw_bundles(template, torch.Generator().manual_seed(52))
    grid = field_of_view(head, oblique(torch.tensor([3.0, 2.0, 4.0]), 'LAS'), 3.0)
    protocol = replace(STILL, shells=((b, 20),))
    run = simulate_dwi(head, bundles, grid, protocol, torch.Generator().manual_seed(102))
    data = np.ascontiguousarray(run.signal.movedim(0, -1).numpy())
    gtab = GradientTable(run.bvecs.double().numpy(), run.bvals.double().numpy())
    return data, run.grid.affine.double().numpy(), gtab, run.truth.mask.numpy()


def real(folder, subject, name):
    stem = folder / subject / 'dwi' / f'{subject}_{name}'
    image = nib.load(f'{stem}.nii.gz')
    data, affine = np.asarray(image.dataobj, np.float32), image.affine
    gtab = from_fsl(np.loadtxt(f'{stem}.bvec'), np.loadtxt(f'{stem}.bval'), affine)
    mask = brain_mask(data[..., gtab.b0].mean(-1), data[..., ~gtab.b0].mean(-1), affine)
    return data, affine, gtab, mask


def implanted(data, affine, gtab, mask):
    """``data`` whose weighted volumes are all moved by IMPLANT about the centre of the brain."""
    centre = affine[:3, :3] @ np.argwhere(mask).mean(0) + affine[:3, 3]
    moved = np.linalg.inv(Warp(centre, np.zeros((0, 3, 3))).matrices(IMPLANT[None]))
    matrix = voxel_matrices(moved, affine)[0]
    result = data.copy()
    for n in np.flatnonzero(~gtab.b0):
        result[..., n] = resampled_cubic(data[..., n], matrix)
    return result


def distance(difference, affine, mask):
    """mm, median over the brain, of a small displacement (6,) about its centre."""
    points = np.argwhere(mask) @ affine[:3, :3].T
    arm = points - points.mean(0)
    return np.median(np.linalg.norm(difference[:3] + np.cross(difference[3:], arm), axis=1))


def only_placed(data, affine, gtab, mask):
    scan = realignment.prepare(data, affine, gtab, mask, 'j', 'cpu')
    parameters, found = placed(scan, np.zeros((len(gtab), 9)))
    return parameters[~gtab.b0][0, :6], found


def apart(run, part, whole, rounds):
    """(6,) by which the volumes ``part`` alone lie elsewhere than in the ``whole`` run."""
    data, affine, gtab, mask = run
    own = estimate_motion(data[..., part], affine, gtab[part], mask, 'j', None, rounds)
    weighted = ~gtab[part].b0
    return (own.parameters - whole.parameters[part])[weighted, :6].mean(0)


@pytest.mark.parametrize('b', [1000.0, 2500.0])
def test_a_simulated_head_is_placed_to_0_3_mm(head, template, b):
    run = simulated(head, template, b)
    data, affine, gtab, mask = run
    rest, found = only_placed(*run)
    assert distance(rest, affine, mask) < 0.3
    assert 0 < found.doubt < 0.3
    end, found = only_placed(implanted(*run), affine, gtab, mask)
    assert distance(end - IMPLANT, affine, mask) < 0.3
    assert found.moved
    ends = [only_placed(data[..., half], affine, gtab[half], mask)[0] for half in halves(gtab)]
    assert distance(ends[0] - ends[1], affine, mask) < 0.3


@pytest.mark.parametrize(
    ('subject', 'name', 'rounds'), [('sub-prisma', 'dir-AP_dwi', 3), ('sub-uih', 'dir-AP_dwi', 1)]
)
def test_halves_of_a_real_head_agree_and_an_implant_is_found(multivendor, subject, name, rounds):
    """At b = 2500 and 930; each half and the implanted run are corrected by themselves."""
    run = real(multivendor, subject, name)
    _, affine, gtab, mask = run
    whole = estimate_motion(*run, 'j', None, rounds)
    assert whole.placement.doubt < 0.4
    moved = (implanted(*run), affine, gtab, mask)
    gained = apart(moved, np.arange(len(gtab)), whole, rounds)
    assert distance(gained - IMPLANT, affine, mask) < 0.3
    first, second = (apart(run, half, whole, rounds) for half in halves(gtab))
    assert distance(first - second, affine, mask) < 0.3


def test_weights_of_few_directions_follow_none():
    g = fibonacci_hemisphere(30)[:20]  # a cap of the hemisphere
    gtab = GradientTable(np.vstack([np.zeros(3), g]), np.r_[0, np.full(20, 1000.0)])
    weights = balanced(gtab)
    assert weights[0] == 0
    np.testing.assert_allclose(weights.sum(), 1)
    even = np.abs(np.einsum('ni,nj->ij', g, g) / 20 - np.eye(3) / 3).max()
    left = np.abs(np.einsum('n,ni,nj->ij', weights, gtab.bvecs, gtab.bvecs) - np.eye(3) / 3).max()
    assert left < 0.2 * even


@pytest.mark.parametrize(
    ('found', 'doubt', 'words'),
    [
        (Placement(1.2, 0.25, moved=True), 0.25, 'corrected'),
        (Placement(0.1, 0.25), 0.25, 'kept'),
        (Placement(), None, 'not found'),
    ],
)
def test_the_doubt_stands_in_the_sidecar(found, doubt, words):
    still = np.zeros(2)
    table = GradientTable(np.zeros((2, 3)), still)
    warp = Warp(np.zeros(3), np.zeros((0, 3, 3)))
    motion = Motion(np.zeros((2, 6)), warp, table, still, still, still, none(2, 2), found)
    said = said_of(motion, 'j')
    assert said['PlacementDoubt'] == doubt
    assert said['Placement'].startswith(words)
