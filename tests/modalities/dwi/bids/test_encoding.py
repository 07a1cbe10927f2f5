"""Encodings that are not linear are refused, however they are told."""

from __future__ import annotations

import numpy as np
import pytest

from bidsapp.core import Case
from bidsapp.modalities.dwi.bids.encoding import check_linear
from bidsapp.problems import BadData

BVALS = np.array([0.0, 1000, 1000])


def looked_at(folder, metadata=None, **entities):
    check_linear(Case(entities, {'dwi': folder / 'x_dwi.nii.gz'}), metadata or {}, BVALS)


@pytest.mark.parametrize(
    'metadata',
    [
        {'BTensorEncoding': 'spherical'}, {'b_tensor_shape': 'PTE'}, {'BDelta': 0},
        {'BDelta': [1, 1, -0.5]}, {'EncodingShape': ['linear', 'linear', 'planar']},
    ],
)  # fmt: skip
def test_metadata_tell(metadata, tmp_path):
    with pytest.raises(BadData, match='not encoded linearly'):
        looked_at(tmp_path, metadata)


@pytest.mark.parametrize('label', ['STE', 'PTE', 'STEb2000', 'b1000-STE', 'spherical'])
def test_a_label_tells_unless_metadata_say_linear(label, tmp_path):
    with pytest.raises(BadData, match=f'acq-{label}'):
        looked_at(tmp_path, acquisition=label)
    looked_at(tmp_path, {'BTensorEncoding': 'linear'}, acquisition=label)


@pytest.mark.parametrize('label', ['LTE', 'multishell', 'STEAM', 'posterior', ''])
def test_other_labels_do_not(label, tmp_path):
    looked_at(tmp_path, acquisition=label)


def test_a_table_beside_the_image_tells_of_the_weighted_volumes(tmp_path):
    table = tmp_path / 'x_dwi.bdelta'
    table.write_text('0 1 1\n')
    looked_at(tmp_path)
    table.write_text('1 1 -0.5\n')
    with pytest.raises(BadData, match='bdelta'):
        looked_at(tmp_path)


def test_other_metadata_say_nothing(tmp_path):
    looked_at(tmp_path, {'TensorBoard': 'x', 'PulseSequenceType': 'EPI', 'BDelta': [0, 1, 1.0]})
