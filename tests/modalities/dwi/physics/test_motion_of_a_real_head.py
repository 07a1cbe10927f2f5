"""A real head that moved by millimetres: correction must do more than smooth."""

from __future__ import annotations

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch

from bidsapp.modalities.dwi.physics.gradients import from_fsl
from bidsapp.modalities.dwi.physics.lovo import noise, residual
from bidsapp.modalities.dwi.physics.motion import apply_motion, estimate_motion
from bidsapp.modalities.dwi.physics.outliers import none
from bidsapp.physics.brain import brain_mask


@pytest.fixture(scope='module')
def run(multivendor):
    """Every other voxel of the slices is enough, and a fourth of the time."""
    stem = multivendor / 'sub-achieva' / 'dwi' / 'sub-achieva_dwi'
    image = nib.load(f'{stem}.nii.gz')
    data = np.asarray(image.dataobj, np.float32)
    data = (data[::2, ::2] + data[1::2, ::2] + data[::2, 1::2] + data[1::2, 1::2]) / 4
    affine = image.affine @ np.diag([2, 2, 1, 1])
    affine[:3, 3] += image.affine[:3, :2].sum(1) / 2
    return data, affine, from_fsl(np.loadtxt(f'{stem}.bvec'), np.loadtxt(f'{stem}.bval'), affine)


def test_a_random_round_trip_gains_far_less_than_the_correction(run, rng):
    data, affine, gtab = run
    mask = brain_mask(data[..., gtab.b0].mean(-1), data[..., ~gtab.b0].mean(-1), affine)
    motion = estimate_motion(data, affine, gtab, mask, 'j')
    away = np.zeros_like(motion.parameters)
    away[1:, :3] = rng.uniform(-1, 1, (len(gtab) - 1, 3))
    there = replace(motion, parameters=away, outliers=none(len(gtab), 2))
    back = replace(there, parameters=-away)
    smoothed = apply_motion(apply_motion(data, affine, there), affine, back)
    scale = float(data[mask][:, gtab.b0].mean())
    variance = noise(np.moveaxis(data, -1, 0) / scale, mask, gtab)

    def misfit(volumes, table):
        inside = torch.as_tensor(np.ascontiguousarray(volumes[mask].T) / scale)
        return residual(inside, table, variance)[~gtab.b0].mean()

    before = misfit(data, gtab)
    gain = 1 - misfit(apply_motion(data, affine, motion), motion.gtab) / before
    assert gain > 1 - misfit(smoothed, gtab) / before + 0.2
