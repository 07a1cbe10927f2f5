"""Where B0 points, by header and sidecar, and the acquisition that follows."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest

from bidsapp.bids.dataset import select
from bidsapp.core import Case
from bidsapp.modalities.gre.bids import files, find
from bidsapp.modalities.gre.bids.direction import direction_of
from bidsapp.modalities.gre.physics.acquisition import Acquisition
from bidsapp.modalities.gre.physics.dipole import b0_direction
from tests.modalities.gre.skeletons import TURN, affine_of, image, sidecar, write_run

TILTED = affine_of(turn=TURN[::-1, ::-1].T)


def of_header(path, sform, s_code, qform, q_code):
    made = nib.Nifti1Image(np.zeros((9, 9, 9), np.float32), sform)
    made.set_sform(sform, s_code)
    made.set_qform(qform, q_code)
    nib.save(made, path)
    return path


def test_it_is_world_z_along_the_voxel_axes(tmp_path):
    direction, doubts = direction_of(image(tmp_path / 'a.nii', affine=TILTED), {})
    assert direction == pytest.approx(b0_direction(TILTED), abs=1e-6)
    assert not doubts


@pytest.mark.parametrize(
    ('header', 'words'),
    [
        ((TILTED, 1, affine_of(turn=TURN), 1), 'put B0 16° apart'),
        ((TILTED, 2, TILTED, 0), 'is 2 and not 1'),
        ((TILTED, 0, TILTED, 4), 'is 4 and not 1'),
        ((affine_of(), 1, affine_of(), 1), 'the affine is the identity'),
    ],
)
def test_a_header_that_may_be_wrong_is_said(tmp_path, header, words):
    path = of_header(tmp_path / 'a.nii', *header)
    _, doubts = direction_of(path, {})
    assert [words in d.message for d in doubts] == [True]


def test_the_sidecar_has_the_word_whatever_its_length_and_sign(tmp_path):
    path = image(tmp_path / 'a.nii', affine=TILTED)
    direction, doubts = direction_of(path, {'B0_dir': list(-3 * b0_direction(TILTED))})
    assert not doubts
    assert abs(np.dot(direction, b0_direction(TILTED))) == pytest.approx(1, abs=1e-6)
    direction, doubts = direction_of(path, {'B0_dir': [0, 0, 1]})
    assert direction == (0, 0, 1)
    assert 'the metadata are used' in doubts[0].message


def test_the_survey_says_echoes_voxels_tilt_and_field_of_headers_alone(tmp_path, monkeypatch):
    write_run(tmp_path, affine=TILTED)
    (run,) = find(select(tmp_path, ['01']), {})

    def voxels(*_, **__):
        raise AssertionError('voxels were read')

    monkeypatch.setattr(nib.arrayproxy.ArrayProxy, '__array__', voxels)
    monkeypatch.setattr(nib.arrayproxy.ArrayProxy, '__getitem__', voxels)
    survey = files.survey(run)
    assert survey.acquisition.words == (
        '3 echoes of 5 to 15 ms at 2.89 T, voxels of 1 x 1 x 2 mm, tilted 16° to B0'
    )
    quantities = {q.name: q.values for q in survey.acquisition.quantities()}
    assert quantities['echoes'] == (3,)
    assert quantities['tilt_deg'] == pytest.approx([16.26], abs=0.01)
    assert quantities['voxel_mm'] == pytest.approx([1, 1, 2])
    assert quantities['field'] == pytest.approx([2.894], abs=0.001)
    assert (survey.size.voxels, survey.size.volumes) == (1080, 6)
    assert not survey.warnings


def test_a_prepared_run_says_the_same_of_itself(tmp_path):
    path = image(tmp_path / 'sub-01_desc-local_fieldmap.nii.gz', affine=TILTED)
    said = {'ImagingFrequency': 123.2, 'EchoTimes': [0.005, 0.01], 'B0_dir': [0, 0.6, 0.8]}
    sidecar(path, said)
    case = Case({'subject': '01', 'datatype': 'anat'}, {'field': path})
    assert files.acquisition(case) == Acquisition(
        (0.005, 0.01), 123.2, pytest.approx((1, 1, 2)), (0, 0.6, 0.8)
    )
    path.with_name('sub-01_desc-local_fieldmap.json').write_text(json.dumps({}))
    with pytest.raises(Exception, match='does not say the ImagingFrequency'):
        files.acquisition(case)


def test_one_echo_is_one_echo():
    one = Acquisition((0.02,), 297.2, (0.5, 0.5, 0.5), (1, 0, 0))
    assert one.words == '1 echo of 20 ms at 6.98 T, voxels of 0.5 x 0.5 x 0.5 mm, tilted 0° to B0'
