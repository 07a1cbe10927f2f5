"""What a network sees of a prepared run lies on the run's grid, with B0 along its own axes."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest

from bidsapp.core import Case
from bidsapp.modalities.gre.learn import input as own
from bidsapp.modalities.gre.physics.dipole import b0_direction
from bidsapp.problems import BadData, MissingInput

SHAPE = (16, 14, 12)
#: Left-handed and permuted, tilted by 20°.
TURN = np.deg2rad(20)
AXES = np.array([[0, 0, -1.0], [np.cos(TURN), np.sin(TURN), 0], [-np.sin(TURN), np.cos(TURN), 0]])


@pytest.fixture
def run(tmp_path):
    """Files of a prepared run; ``total`` besides the local field or not."""

    def write(total=False, said=None):
        affine = np.eye(4)
        affine[:3, :3] = AXES * [1.0, 1.2, 1.5]
        rng = np.random.default_rng(0)
        mask = np.zeros(SHAPE, np.uint8)
        mask[2:-2, 3:-2, 1:-2] = 1
        arrays = {
            'local_fieldmap': mask * rng.normal(size=SHAPE),
            'local_magnitude': 1 + rng.random(SHAPE),
            'reliable_mask': mask,
        }
        if total:
            arrays['total_fieldmap'] = rng.normal(size=SHAPE) + 40
        for name, array in arrays.items():
            path = tmp_path / f'sub-01_desc-{name}.nii.gz'
            nib.save(nib.Nifti1Image(array.astype(np.float32), affine), path)
        sidecar = {'ImagingFrequency': 123.2, 'NoiseTimesMagnitude': 0.2} if said is None else said
        (tmp_path / 'sub-01_desc-local_fieldmap.json').write_text(json.dumps(sidecar))
        names = {'field': 'local_fieldmap', 'magnitude': 'local_magnitude', 'mask': 'reliable_mask'}
        files = {k: tmp_path / f'sub-01_desc-{v}.nii.gz' for k, v in names.items()}
        return Case({'subject': '01', 'datatype': 'fmap'}, files)

    return write


def test_it_is_turned_to_ras_and_cropped_with_its_direction(run):
    sample = own.sample(run(), {})
    assert sample.image.shape[1:] == sample.mask.shape[1:]
    assert sample.mask.any(0).any()
    assert np.abs(sample.affine[:3, :3]).argmax(0).tolist() == [0, 1, 2]
    context = {k: v.numpy() for k, v in sample.context.items()}
    assert context['voxel_mm'] == pytest.approx(np.linalg.norm(sample.affine[:3, :3], axis=0))
    assert context['b'] == pytest.approx(b0_direction(sample.affine), abs=1e-3)
    assert context['radius'] == 0
    inside = np.argwhere(sample.mask[0].numpy())
    assert (inside.min(0) == 0).all()
    assert (inside.max(0) == np.array(sample.mask.shape[1:]) - 1).all()


def test_a_total_field_is_inverted_in_one_step(run):
    sample = own.sample(run(total=True), {})
    assert sample.context['radius'] > 0


def test_a_direction_in_the_sidecar_has_the_word(run):
    said = {'ImagingFrequency': 123.2, 'NoiseTimesMagnitude': 0.2, 'B0_dir': [1.0, 0.0, 0.0]}
    sample = own.sample(run(said=said), {})
    # The first axis of the file runs along world y.
    assert np.abs(sample.context['b'].numpy()) == pytest.approx([0, 1, 0])


def test_what_cannot_be_seen_is_said(run):
    with pytest.raises(MissingInput, match='ImagingFrequency'):
        own.sample(run(said={}), {})
    case = run()
    mask = nib.load(case.files['mask'])
    nib.save(nib.Nifti1Image(np.zeros(SHAPE, np.uint8), mask.affine), case.files['mask'])
    with pytest.raises(BadData, match='no voxel'):
        own.sample(case, {})
