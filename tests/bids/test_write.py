"""Files appear whole or not at all, and a grid is kept to the last bit."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest

from bidsapp.bids.derivatives import write_dataset
from bidsapp.bids.outputs import files_of, write_output
from bidsapp.bids.write import whole, write_image
from bidsapp.modalities.dwi.tasks.orientation import DIRECTION, UNCERTAINTY
from bidsapp.modalities.dwi.tasks.restore import RESTORED
from bidsapp.modalities.dwi.tasks.tissue import DSEG, ENTROPY, PROBSEG
from bidsapp.problems import CannotCreate

RUN = {'subject': '01', 'datatype': 'dwi'}


@pytest.fixture
def raw(tmp_path):
    affine = np.array([[-1.7, 0.1, 0, 9], [0.1, 1.7, 0.2, -3], [0, -0.2, 2.5, 1], [0, 0, 0, 1]])
    image = nib.Nifti1Image(np.zeros((4, 5, 6, 7), np.int16), affine)
    image.header.set_qform(affine, 2)
    image.header.set_sform(affine, 1)
    nib.save(image, tmp_path / 'raw.nii.gz')
    return tmp_path / 'raw.nii.gz'


def test_grid_and_codes_are_the_raw_runs(raw, tmp_path):
    written = nib.load(write_image(tmp_path / 'x.nii.gz', np.ones((4, 5, 6)), raw, 'float32'))
    source = nib.load(raw)
    assert np.array_equal(written.affine, source.affine)
    for field in ('qform_code', 'sform_code', 'quatern_b', 'srow_x'):
        assert np.array_equal(written.header[field], source.header[field])
    assert written.header.get_xyzt_units() == ('mm', 'sec')


def test_an_array_on_another_grid_is_refused(raw, tmp_path):
    with pytest.raises(ValueError, match='grid'):
        write_image(tmp_path / 'x.nii.gz', np.ones((4, 5, 5)), raw, 'float32')


def test_a_failure_half_way_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / 'x.txt'
    path.write_text('old')
    with pytest.raises(RuntimeError), whole(path) as hidden:  # noqa: PT012
        hidden.write_text('half')
        raise RuntimeError
    assert path.read_text() == 'old'
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_says_so(tmp_path):
    (tmp_path / 'file').touch()
    with (
        pytest.raises(CannotCreate, match='Choose an output folder'),
        whole(tmp_path / 'file' / 'x'),
    ):
        raise AssertionError('not reached')


def test_an_output_has_its_sidecar_and_table(raw, tmp_path):
    array = np.ones((4, 5, 6), np.uint8)
    write_output(tmp_path, RUN, DSEG, 'unet', array, raw, {'Sources': ['bids::x']})
    names = {p.name for p in (tmp_path / 'sub-01' / 'dwi').iterdir()}
    assert names == {p.name for p in files_of(RUN, DSEG, 'unet')}
    table = (tmp_path / 'sub-01/dwi/sub-01_seg-tissue_desc-unet_dseg.tsv').read_text()
    assert table.splitlines()[2].split('\t')[:3] == ['2', 'White Matter', 'WM']


def test_a_four_dimensional_probability_names_its_volumes(raw, tmp_path):
    write_output(tmp_path, RUN, PROBSEG, 'unet', np.ones((4, 5, 6, 3)), raw, {})
    sidecar = tmp_path / 'sub-01/dwi/sub-01_seg-tissue_desc-unet_probseg.json'
    assert json.loads(sidecar.read_text())['LabelMap'] == ['GM', 'WM', 'CSF']


def test_restored_dmri_has_the_gradient_table_of_what_it_was_made_from(raw, tmp_path):
    (tmp_path / 'raw.bval').write_text('0 1000\n')
    (tmp_path / 'raw.bvec').write_text('0 1\n0 0\n0 0\n')
    write_output(tmp_path, RUN, RESTORED, 'unet', np.ones((4, 5, 6, 2)), raw, {})
    folder = tmp_path / 'sub-01' / 'dwi'
    stem = 'sub-01_desc-restored_dwi'
    assert {p.name for p in folder.iterdir()} == {p.name for p in files_of(RUN, RESTORED, 'unet')}
    for kind in ('bval', 'bvec'):
        assert (folder / f'{stem}.{kind}').read_bytes() == (tmp_path / f'raw.{kind}').read_bytes()
    assert json.loads((folder / f'{stem}.json').read_text())['SkullStripped'] is True


def test_uncertainty_is_a_number_and_no_class_or_vector(raw, tmp_path):
    ones = np.ones((4, 5, 6))
    said = {}
    for output in (ENTROPY, UNCERTAINTY, DIRECTION):
        path = write_output(tmp_path, RUN, output, 'unet', ones, raw, {})
        said[path.name] = json.loads(path.with_name(path.name[:-7] + '.json').read_text())
    entropy = said['sub-01_seg-tissue_desc-entropy_probseg.nii.gz']
    assert 'LabelMap' not in entropy
    assert 'ln 3' in entropy['Description']
    angle = said['sub-01_model-unet_param-direction_desc-uncertainty_dwimap.nii.gz']
    assert angle['Units'] == 'degree'
    assert 'OrientationEncoding' not in angle
    assert 'OrientationEncoding' in said['sub-01_model-unet_param-direction_dwimap.nii.gz']


def test_dataset_files_are_written_once(tmp_path):
    write_dataset(tmp_path / 'out', tmp_path)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / 'out').iterdir()}
    write_dataset(tmp_path / 'out', tmp_path)
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / 'out').iterdir()}
