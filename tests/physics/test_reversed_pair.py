"""The field of simulated heads, and of a real one, from two polarities of phase encoding."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import nibabel as nib
import numpy as np
import pytest
import torch

from bidsapp.modalities.dwi.simulate.distortion import draw_off_resonance
from bidsapp.modalities.dwi.simulate.protocol import S0
from bidsapp.physics.alignment import resampled
from bidsapp.physics.brain import brain_mask, eroded
from bidsapp.physics.distortion import distorted, jacobian
from bidsapp.physics.geometry import voxel_sizes
from bidsapp.physics.reversed_pair import displacement_from_pair
from bidsapp.physics.template import template_maps
from bidsapp.problems import BadData
from bidsapp.simulate.acquisition import averaged, draw_bias, rician
from bidsapp.simulate.anatomy import draw_head, head_template
from bidsapp.simulate.grids import Grid, moved, rigid, rotation, sample
from bidsapp.simulate.t1w import field_of_view

VOXEL, READOUT, SNR = 4.0, 0.04, 20.0


@dataclass(frozen=True)
class Pair:
    first: np.ndarray
    affine: np.ndarray
    second: np.ndarray
    second_affine: np.ndarray
    mask: np.ndarray
    displacement: np.ndarray  #: true, voxels
    motion: np.ndarray  #: (4, 4) true
    ratio: float = 1.0

    def solved(self, **changed):
        pair = replace(self, **changed)
        return displacement_from_pair(
            pair.first, pair.affine, pair.mask, pair.second, pair.second_affine, pair.ratio, 1
        )

    def error(self, found):
        """mm, in the brain."""
        return (found.displacement - self.displacement)[self.mask] * voxel_sizes(self.affine)[1]


@pytest.fixture(scope='module')
def head():
    _, gm, wm, csf, affine = template_maps(3.0)
    template = head_template(*(torch.from_numpy(a) for a in (gm, wm, csf, affine)))
    return draw_head(template, torch.Generator().manual_seed(4))


@pytest.fixture(scope='module')
def scan(head):
    """A function that scans the head twice, the second time moved, on a grid turned by degrees."""
    grid = field_of_view(head, torch.diag(torch.tensor([-1.0, 1, 1])), VOXEL, below=20.0)
    fine = grid.refined(2)
    points = fine.points()
    tissues = head.tissues(points)
    hz = draw_off_resonance(head, fine, torch.Generator().manual_seed(5))
    centre = points.flatten(1).mean(1)
    signal = torch.tensor(S0)[:, None, None, None]

    def image(there, readout, bias, generator):
        shift = 2 * readout * sample(hz[None], fine, there)[0]
        raw = distorted((signal * head.tissues(there)).sum(0), shift, 1)
        return rician(averaged(raw[None], 2)[0] * bias, 1 / SNR, generator).numpy()

    def pair(seed, mm=0.0, degrees=0.0, tilt=(0.0, 0.0, 0.0), bias=0.0, ratio=1.0):
        g = torch.Generator().manual_seed(seed)
        shift, turn = torch.nn.functional.normalize(torch.randn(2, 3, generator=g), dim=1)
        motion = rigid(degrees * turn, mm * shift, centre)
        affine = grid.affine.clone()
        affine[:3, :3] = rotation(torch.tensor(tilt)) @ affine[:3, :3]
        shape = (grid.shape[0], grid.shape[1], grid.shape[2] + (2 if any(tilt) else 0))
        affine[:3, 3] = centre - affine[:3, :3] @ ((torch.tensor(shape) - 1) / 2)
        other = Grid(shape, affine)
        there = moved(torch.linalg.inv(motion), other.refined(2).points())
        sensitivity = [draw_bias(where, g, bias) for where in (grid, other)]
        return Pair(
            first=image(points, READOUT, sensitivity[0], g),
            affine=grid.affine.numpy().astype(float),
            second=300 * image(there, -ratio * READOUT, sensitivity[1], g),
            second_affine=affine.numpy().astype(float),
            mask=averaged(tissues[:3].sum(0)[None], 2)[0].numpy() > 0.5,
            displacement=averaged(READOUT * hz[None], 2)[0].numpy(),
            motion=motion.numpy().astype(float),
            ratio=ratio,
        )

    return pair


@pytest.fixture(scope='module')
def still(scan):
    return scan(1)


@pytest.fixture(scope='module')
def found(still):
    return still.solved()


def test_field_of_a_head_that_lay_still(still, found):
    error = np.abs(still.error(found))
    assert np.percentile(np.abs(still.displacement[still.mask]), 99) * VOXEL > 3
    assert np.median(error) < 0.3
    assert np.percentile(error, 90) < 0.8
    assert jacobian(found.displacement, 1).min() > 0
    assert jacobian(-found.displacement, 1).min() > 0
    assert found.similarity_after > 0.97 > 0.9 > found.similarity_before
    assert np.abs(found.motion[:3]).max() < 0.1
    assert found.max_mm > found.median_mm > 0.3


@pytest.mark.parametrize(
    'how',
    [
        {'mm': 1.5, 'degrees': 1.5, 'bias': 0.15},
        {'mm': 1.0, 'degrees': 1.0, 'tilt': (10.0, 4.0, -5.0)},
        {'ratio': 0.5},
    ],
    ids=['moved, other coil', 'other grid', 'shorter readout'],
)
def test_field_in_spite_of_what_else_differs(scan, how):
    pair = scan(2, **how)
    found = pair.solved()
    error = pair.error(found)
    shift = np.median(error)  # cannot be told from the head's motion along the axis
    assert abs(shift) < 0.7
    assert np.median(np.abs(error - shift)) < 0.1 * VOXEL
    assert np.percentile(np.abs(error - shift), 90) < 0.25 * VOXEL
    assert jacobian(found.displacement, 1).min() > 0
    turn = np.linalg.inv(pair.motion[:3, :3]) @ found.matrix[:3, :3]
    assert np.rad2deg(np.arccos(np.clip((np.trace(turn) - 1) / 2, -1, 1))) < 0.25


def test_identical_images_have_no_field(still):
    found = still.solved(second=still.first)
    assert np.abs(found.displacement[still.mask]).max() < 0.02
    assert np.abs(found.motion).max() < 1e-2
    assert found.similarity_before == pytest.approx(1, abs=1e-3)


def test_swapping_the_pair_negates_the_field(still, found):
    swapped = still.solved(first=still.second, second=still.first)
    difference = (swapped.displacement + found.displacement)[still.mask] * VOXEL
    assert np.percentile(np.abs(difference), 90) < 0.1


def test_how_the_grid_is_stored_does_not_matter(still, found):
    flip = np.diag([-1.0, -1.0, -1.0, 1.0])
    flip[:3, 3] = np.array(still.first.shape) - 1
    flipped = still.solved(
        first=np.flip(still.first), affine=still.affine @ flip, mask=np.flip(still.mask)
    )
    difference = (-np.flip(flipped.displacement) - found.displacement)[still.mask] * VOXEL
    assert np.percentile(np.abs(difference), 90) < 0.1


def test_a_frequency_offset_of_a_still_head_stays_in_the_field(still, found):
    d = torch.full(still.first.shape, 0.25)
    images = {
        name: distorted(torch.as_tensor(getattr(still, name)), sign * d, 1).numpy()
        for name, sign in (('first', 1), ('second', -1))
    }
    offset = still.solved(**images)
    difference = np.median((offset.displacement - found.displacement)[still.mask])
    assert difference == pytest.approx(0.25, abs=0.05)


def test_what_cannot_be_used_is_refused(still):
    sideways = still.second_affine[:, [1, 0, 2, 3]]
    sideways[:3, :3] = still.second_affine[:3, :3] @ rotation(torch.tensor([0, 0, 45.0])).numpy()
    with pytest.raises(BadData, match='degrees apart'):
        still.solved(second_affine=sideways)
    with pytest.raises(BadData, match='empty'):
        still.solved(second=np.zeros_like(still.second))
    with pytest.raises(ValueError, match='ratio'):
        still.solved(ratio=0.0)


def read(folder, name):
    image = nib.load(folder / f'{name}.nii.gz')
    return np.asarray(image.dataobj, np.float32), np.asarray(image.affine, float)


def test_a_real_pair_agrees_with_itself_and_with_the_measured_field(multivendor):
    """AP is 'j-': off-resonance moves signal to a smaller index, as the gradient echoes say."""
    folder = multivendor / 'sub-prisma'
    means = []
    for polarity in ('AP', 'PA'):
        data, affine = read(folder / 'dwi', f'sub-prisma_dir-{polarity}_dwi')
        bvals = np.loadtxt(folder / 'dwi' / f'sub-prisma_dir-{polarity}_dwi.bval')
        means.append((data[..., bvals < 50].mean(-1), data[..., bvals >= 50].mean(-1)))
    mask = brain_mask(*means[0], affine)
    found = displacement_from_pair(means[0][0], affine, mask, means[1][0], affine, 1.0, 1)
    assert found.similarity_before < 0.8
    assert found.similarity_after > 0.98
    assert min(jacobian(sign * found.displacement, 1).min() for sign in (1, -1)) > 0

    phase, grid = read(folder / 'fmap', 'sub-prisma_phasediff')
    echoes = json.loads((folder / 'fmap' / 'sub-prisma_phasediff.json').read_text())
    turn = np.exp(1j * np.pi * phase / 4096)
    real, imaginary = (resampled(part, grid, mask.shape, affine) for part in (turn.real, turn.imag))
    hz = np.angle(real + 1j * imaginary) / (2 * np.pi)
    hz /= echoes['EchoTime2'] - echoes['EchoTime1']
    sure = eroded(mask, affine, 6.0) & (np.hypot(real, imaginary) > 0.9)
    expected, d = -0.0475693 * hz[sure], found.displacement[sure]
    assert np.corrcoef(expected, d)[0, 1] > 0.9
    assert np.polyfit(expected, d, 1)[0] == pytest.approx(1, abs=0.15)
    assert np.median(np.abs(d - expected)) * 3 < 0.6
