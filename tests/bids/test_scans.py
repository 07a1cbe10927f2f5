"""What BIDS says of an image: files that it inherits, its readout, its phase encoding."""

from __future__ import annotations

import pytest

from bidsapp.bids.scans import (
    inherited,
    metadata_of,
    phase_encoding,
    read_scan,
    readout_time,
)
from bidsapp.problems import BadData


def test_a_file_of_another_acquisition_is_not_inherited(tmp_path):
    scan = tmp_path / 'sub-01/ses-a/dwi/sub-01_ses-a_dir-AP_dwi.nii.gz'
    scan.parent.mkdir(parents=True)
    own = scan.with_name(scan.name.replace('nii.gz', 'bval'))
    for path in (scan, own, tmp_path / 'acq-x_dwi.bval'):
        path.touch()
    assert inherited(tmp_path, scan, '.bval') == [own]


def test_metadata_are_inherited_and_the_nearest_wins(tmp_path):
    scan = tmp_path / 'sub-02/anat/sub-02_acq-x_MEGRE.nii.gz'
    scan.parent.mkdir(parents=True)
    (tmp_path / 'MEGRE.json').write_text('{"EchoTime": 0.08, "Manufacturer": "A"}')
    scan.with_name('sub-02_acq-x_MEGRE.json').write_text('{"Manufacturer": "B"}')
    assert metadata_of(tmp_path, scan) == {'EchoTime': 0.08, 'Manufacturer': 'B'}


@pytest.mark.parametrize('name', ['sub-02_MEGRE.json', '../../MEGRE.json'])
def test_a_folder_in_place_of_a_sidecar_is_refused(tmp_path, name):
    scan = tmp_path / 'sub-02/anat/sub-02_MEGRE.nii.gz'
    (scan.parent / name).mkdir(parents=True)
    trouble = read_scan(tmp_path, scan).trouble
    assert isinstance(trouble, BadData)
    assert 'MEGRE.json is a folder; expected a text file' in str(trouble)


@pytest.mark.parametrize(
    ('metadata', 'seconds', 'said'),
    [
        ({'TotalReadoutTime': 0.05, 'EstimatedTotalReadoutTime': 0.02}, 0.05, ''),
        ({'EstimatedTotalReadoutTime': 0.02}, 0.02, 'estimated'),
        ({'EffectiveEchoSpacing': 0.0005, 'ReconMatrixPE': 101}, 0.05, 'EffectiveEchoSpacing'),
        ({'EffectiveEchoSpacing': 0.0005}, None, 'not in the metadata'),
        ({'TotalReadoutTime': 47.5}, None, 'no time in seconds'),
        ({'TotalReadoutTime': '0.05'}, None, 'no time in seconds'),
    ],
)
def test_readout_time(metadata, seconds, said):
    found, note = readout_time(metadata)
    assert found == (pytest.approx(seconds) if seconds else None)
    assert said in note


@pytest.mark.parametrize(
    ('metadata', 'found'),
    [
        ({'PhaseEncodingDirection': 'i-'}, (0, -1)),
        ({'PhaseEncodingDirection': 'AP', 'PhaseEncodingAxis': 'j'}, (1, 0)),
        ({}, (None, 0)),
    ],
)
def test_phase_encoding(metadata, found):
    assert phase_encoding(metadata) == found
