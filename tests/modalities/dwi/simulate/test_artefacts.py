"""Displacement and dropouts of a simulated run, and whether they are told as they are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from bidsapp.modalities.dwi.simulate.artefacts import Artefacts
from bidsapp.modalities.dwi.simulate.protocol import Protocol
from bidsapp.modalities.dwi.simulate.scan import simulate_dwi
from bidsapp.physics.distortion import unwarp
from bidsapp.simulate.acquisition import oblique
from bidsapp.simulate.grids import Grid, moved, rigid
from bidsapp.simulate.t1w import field_of_view

SHELLS = ((1000.0, 6),)


def artefacts(hz=None, motion=None, eddy=None, axis=1, seconds=0.05):
    """One volume of 3 mm voxels in oblique axes; by default nothing happens to it."""
    affine = torch.eye(4)
    affine[:3, :3] = 3 * oblique(torch.tensor([5.0, 3.0, -4.0]), 'LAS')
    affine[:3, 3] = torch.tensor([50.0, -50.0, -40.0])
    return Artefacts(
        grid=Grid((24, 28, 22), affine),
        factor=2,
        motion=torch.eye(4)[None] if motion is None else motion[None],
        eddy=torch.zeros(1, 4) if eddy is None else eddy[None],
        hz=None if hz is None else torch.full((48, 56, 44), hz),
        dropout=torch.ones(1, 22),
        phase_axis=axis,
        seconds=seconds,
        bias=torch.ones(24, 28, 22),
    )


def ball(spoilt, place):
    """A bright ball of 5 mm around world ``place`` (3,), on the fine grid."""
    away = spoilt.grid.refined(2).points() - place[:, None, None, None]
    return torch.sigmoid(5 - away.norm(dim=0))


def middle_of(volume, grid):
    return (volume * grid.points()).sum((1, 2, 3)) / volume.sum()


@pytest.mark.parametrize(('axis', 'seconds'), [(0, 0.05), (1, 0.05), (1, -0.05)])
def test_off_resonance_moves_signal_to_higher_indices_or_lower_if_reversed(axis, seconds):
    spoilt = artefacts(hz=30.0, axis=axis, seconds=seconds)
    place = spoilt.grid.points()[:, 12, 14, 11]
    seen = middle_of(spoilt.applied(ball(spoilt, place), 0), spoilt.grid)
    index = moved(torch.linalg.inv(spoilt.grid.affine), seen[:, None])[:, 0]
    expected = torch.tensor([12.0, 14.0, 11.0])
    expected[axis] += 30 * seconds
    torch.testing.assert_close(index, expected, atol=0.02, rtol=0)


def test_a_ball_is_seen_where_the_truth_says():
    """Motion, then susceptibility that moved along, then eddy currents, all at once."""
    degrees, shift = torch.tensor([2.0, -3.0, 4.0]), torch.tensor([1.0, 2.0, -1.5])
    motion = rigid(degrees, shift, torch.zeros(3))
    eddy = torch.tensor([6.0, 0.1, -0.3, 0.2])
    spoilt = artefacts(motion=motion, eddy=eddy)
    ramp = spoilt.grid.refined(2).points()[1] * 0.5
    spoilt = replace(spoilt, hz=ramp)
    for voxel in ((9, 12, 8), (15, 16, 14)):
        place = spoilt.grid.points()[(slice(None), *voxel)]
        seen = middle_of(spoilt.applied(ball(spoilt, place), 0), spoilt.grid)
        told = spoilt.found_at(0)[(slice(None), *voxel)]
        assert (told - place).norm() > 2
        torch.testing.assert_close(seen, told, atol=0.1, rtol=0)


@pytest.fixture(scope='module')
def scanned(head, bundles):
    """The same head without and with susceptibility and dropouts, 5 mm."""
    grid = field_of_view(head, oblique(torch.tensor([3.0, 2.0, 4.0]), 'RAS'), 5.0)
    plain = Protocol(shells=SHELLS, snr=1e4, motion_mm=0.2, motion_deg=0.2)
    spoilt = replace(plain, susceptibility_hz=50.0, dropout=0.1)
    return [
        simulate_dwi(head, bundles, grid, protocol, torch.Generator().manual_seed(4))
        for protocol in (plain, spoilt)
    ]


def test_only_what_is_asked_for_is_different(scanned):
    plain, spoilt = scanned
    assert plain.opposite is None
    assert plain.artefacts.displacement.abs().max() == 0
    assert (plain.artefacts.dropout == 1).all()
    assert torch.equal(plain.bvecs, spoilt.bvecs)
    assert torch.equal(plain.artefacts.motion, spoilt.artefacts.motion)
    assert torch.equal(plain.artefacts.bias, spoilt.artefacts.bias)
    assert torch.equal(plain.artefacts.eddy, spoilt.artefacts.eddy)
    assert torch.equal(plain.truth.directions, spoilt.truth.directions)


def test_largest_off_resonance_in_the_brain_is_as_asked(scanned):
    hz = scanned[1].artefacts.off_resonance[scanned[1].truth.mask]
    assert 35 < hz.abs().max() < 51  # averaged over a voxel
    assert hz.abs().median() < 10


def test_the_told_displacement_undoes_the_distortion_of_both_polarities(scanned):
    plain, spoilt = scanned
    clean, mask = plain.signal[0].numpy(), plain.truth.mask.numpy()
    shift = spoilt.artefacts.displacement.numpy()
    assert np.abs(shift[mask]).max() > 1.5

    def likeness(image):
        return np.corrcoef(image[mask], clean[mask])[0, 1]

    forth, back = spoilt.signal[0].numpy(), spoilt.opposite.signal.mean(0).numpy()
    for image, own in ((forth, shift), (back, -shift)):
        mended = likeness(unwarp(image, own, 1))
        assert mended > 0.95
        assert mended > likeness(image) + 0.02
        assert mended > likeness(unwarp(image, -own, 1)) + 0.05


def test_the_told_slices_and_no_others_lost_signal(scanned):
    spoilt = scanned[1]
    factor = spoilt.artefacts.dropout
    b0 = spoilt.bvals == 0
    assert (factor[b0] == 1).all()
    assert 0.02 < (factor[~b0] < 1).float().mean() < 0.2
    brain = spoilt.truth.mask
    slices = [k for k in range(brain.shape[2]) if brain[..., k].sum() > 100]
    means = torch.stack([spoilt.signal[~b0][..., k][:, brain[..., k]].mean(1) for k in slices], 1)
    kept = means / factor[~b0][:, slices]
    usual = kept / kept.median(0).values
    assert usual.min() > 0.7
    assert usual.max() < 1.4
