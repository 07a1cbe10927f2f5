"""What is taken from the scan that inputs shall be like, and which scans cannot be taken."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from bidsapp.modalities.dwi.bids.protocol import protocol_of
from bidsapp.modalities.dwi.physics.likeness import noise_of
from bidsapp.modalities.dwi.workflows.like import asked
from bidsapp.problems import BadData, MissingInput, WrongUsage
from tests.modalities.prepared import PREPARED


@pytest.fixture
def scan(tmp_path):
    """A ball, preprocessed, with its mask beside it; noise of 4 on 400."""
    PREPARED['dwi'](tmp_path, np.diag([-2.0, 2.5, 3.0, 1.0]))
    return tmp_path / 'sub-01/dwi/sub-01_desc-preproc_dwi.nii.gz'


def test_table_voxels_and_noise_are_taken(scan):
    found = protocol_of(scan)
    assert found.prepared
    assert found.world_mm == pytest.approx((2, 2.5, 3))
    assert [(b, len(m)) for b, m in found.gtab.shells()] == [(1000, 12)]
    brain = nib.load(scan.with_name('sub-01_desc-brain_mask.nii.gz')).get_fdata() > 0
    data = nib.load(scan).get_fdata(dtype=np.float32)
    assert found.variance == pytest.approx(noise_of(data, found.gtab, brain))
    assert '12 directions at b=1000, 2 b=0, voxels of 2 x 2.5 x 3 mm' in found.words


def test_a_card_knows_it_by_its_content(scan):
    first = protocol_of(scan).described
    assert len(first['table']) == 14
    moved = scan.parent.parent / 'elsewhere_desc-preproc_dwi.nii.gz'
    for kind in ('nii.gz', 'bval', 'bvec'):
        old = scan.with_name(scan.name.replace('nii.gz', kind))
        moved.with_name(moved.name.replace('nii.gz', kind)).write_bytes(old.read_bytes())
    mask = scan.with_name('sub-01_desc-brain_mask.nii.gz').read_bytes()
    moved.with_name('elsewhere_desc-brain_mask.nii.gz').write_bytes(mask)
    assert protocol_of(moved).described == first
    bval = scan.with_name('sub-01_desc-preproc_dwi.bval')
    bval.write_text(bval.read_text().replace('1000', '1010'))
    assert protocol_of(scan).sha256 != first['sha256']


def test_what_cannot_be_taken_is_refused(scan, tmp_path):
    with pytest.raises(BadData, match=r'\*\.nii'):
        protocol_of(tmp_path / 'scan.mif')
    with pytest.raises(MissingInput, match='is not there'):
        protocol_of(tmp_path / 'scan.nii.gz')
    bval = scan.with_name('sub-01_desc-preproc_dwi.bval')
    bval.write_text(bval.read_text().replace('0 0 ', '700 700 ', 1))
    with pytest.raises(BadData):
        protocol_of(scan)


def test_nothing_asked_is_nothing_said_and_both_are_too_much(scan):
    assert asked({}) == {}
    assert asked({'input_directions': 8}) == {}
    assert asked({'input_like': str(scan)})['input_like']['sha256']
    with pytest.raises(WrongUsage):
        asked({'input_like': str(scan), 'input_directions': 8})


def test_a_short_run_is_refused(scan):
    image = nib.load(scan)
    nib.save(image.slicer[..., :9], scan)
    with pytest.raises(BadData):
        protocol_of(scan)
