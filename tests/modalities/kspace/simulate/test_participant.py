"""A simulated participant is read and reconstructed to its truth, where the truth lies."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch

from bidsapp.modalities.kspace.physics import coils, sense
from bidsapp.modalities.kspace.physics.fourier import ALONG_PHASE, hybrid
from bidsapp.modalities.kspace.simulate.participant import Design, write_participant, write_truth
from bidsapp.physics.streams import stream
from bidsapp.simulate.anatomy import draw_head
from bidsapp.simulate.domain_randomisation import abstract_template
from tests.modalities.kspace import raw


@pytest.fixture(scope='module')
def head():
    return draw_head(abstract_template(stream(1), torch.device('cpu')), stream(2))


@pytest.mark.parametrize('acceleration', [1, 2])
def test_it_comes_back_as_it_was(head, acceleration, tmp_path):
    design = Design((40, 48), 3, 5.0, 6.0, 6, acceleration, noise=0.005)
    path, truth = write_participant(tmp_path, 'sub-01', head, design, stream(3))
    write_truth(tmp_path, 'sub-01', path, truth)
    image, slices = raw.read(path)
    assert image.acceleration == acceleration
    assert image.geometry_known
    written = nib.load(tmp_path / 'anat/sub-01_rec-full_desc-truth_T1w.nii.gz')
    assert np.allclose(written.affine, image.affine)
    assert written.shape == image.shape == (40, 48, 3)
    for number, one in enumerate(slices):
        assert one.sigma == 1
        maps, _ = coils.coil_maps(one.calibration[..., 0], (40, 48))
        op = sense.sense(maps, one.weights[..., 0], ALONG_PHASE)
        y = hybrid(one.kspace[..., 0])
        found = sense.total_variation(op, y, 0.3, sense.cg_sense(op, y, 1e-3, 1)).abs()
        true = truth[..., number]
        assert (found - true).norm() < (0.04 if acceleration == 1 else 0.12) * true.norm()
