"""A label that the scan turns out not to hold is noted, and what stands in for it says so."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bidsapp.interfaces.base import PROBLEM
from bidsapp.interfaces.labels import WriteReference
from bidsapp.modalities.dwi.bids.prepared import PREPARED

BY_TENSOR = {'DerivedBy': 'tensor', 'Warnings': ['fibres are by the tensor: no single fibre']}


@pytest.fixture
def written(tmp_path):
    """Task, fibres (X, Y, Z, 3) and quality → names of the images, and the note."""

    def write(task, fibres, source, quality):
        files = {}
        for kind in (*PREPARED.names, 'fibres'):
            files[kind] = str(tmp_path / f'{kind}.nii.gz')
            data = fibres if kind == 'fibres' else np.ones(fibres.shape[:3])
            nib.save(nib.Nifti1Image(np.asarray(data, np.float32), np.eye(4)), files[kind])
        step = WriteReference(
            tuple(PREPARED.names), ('fibres',), modality='dwi', task=task, source=source,
            out_root=str(tmp_path), entities={'subject': '01', 'datatype': 'dwi', 'suffix': 'dwi'},
            quality=quality, **files,
        )  # fmt: skip
        images = step.run(cwd=str(tmp_path)).outputs.out_files
        assert not (tmp_path / PROBLEM).exists()
        return images, json.loads((tmp_path / 'absent.json').read_text())

    return write


def test_the_tensors_directions_have_its_name_and_say_instead_of_what(written):
    fibres = np.zeros((4, 4, 4, 3))
    fibres[1:3, 1:3, 1:3, 0] = 1
    (image,), note = written('orientation', fibres, 'csd', BY_TENSOR)
    assert 'model-tensor_param-direction' in image
    assert (note['task'], note['source']) == ('orientation', 'tensor')
    assert 'no single fibre' in note['reason']
    beside = Path(image.replace('.nii.gz', '.json'))
    sidecar = json.loads(beside.read_text(encoding='utf-8'))
    assert sidecar['MadeFrom']['InsteadOf'] == 'csd'
    assert sidecar['Warnings'] == BY_TENSOR['Warnings']


def test_fibres_of_the_tensor_are_not_counted(written):
    images, note = written('crossings', np.ones((4, 4, 4, 3)), 'reference', BY_TENSOR)
    assert images == []
    assert (note['task'], note['source']) == ('crossings', None)
    assert 'single fibre' in note['reason']


def test_a_scan_without_anisotropy_has_no_direction_label(written):
    images, note = written('orientation', np.zeros((4, 4, 4, 3)), 'csd', BY_TENSOR)
    assert images == []
    assert note['source'] is None
    assert 'anisotropic' in note['reason']
