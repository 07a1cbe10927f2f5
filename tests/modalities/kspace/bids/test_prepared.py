"""A prepared run is found by one of two images, and its samples where they were measured."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from bidsapp.bids.identity import scans_of_person
from bidsapp.bids.prepared import find_prepared
from bidsapp.modalities.kspace.bids.planes import assembled, planes_in, spread
from bidsapp.modalities.kspace.bids.prepared import (
    Afterwards,
    acquisition_of,
    afterwards_of,
    opened_case,
)
from bidsapp.problems import BadData, MissingInput
from bidsapp.reports.written import find_written
from tests.modalities import prepared
from tests.modalities.kspace import raw


@pytest.fixture
def root(tmp_path):
    """A full scan, and beside it the files of other runs in the same folder."""
    prepared.kspace(tmp_path, None)
    anat = tmp_path / 'sub-01/anat'
    whole = anat / 'sub-01_rec-full_desc-reference_PDw.nii.gz'
    for name in (
        'rec-zerofilled_desc-recon_T2w',
        'desc-unet_Chimap',
        'acq-x_rec-tv_desc-recon_PDw',
    ):
        shutil.copy(whole, anat / f'sub-01_{name}.nii.gz')
    return tmp_path


def left_out(root, **more):
    """The zero-filled image of the full scan, with lines left out afterwards."""
    stem = root / 'sub-01/anat/sub-01_rec-zerofilled_desc-recon_PDw'
    shutil.copy(root / 'sub-01/anat/sub-01_rec-full_desc-reference_PDw.nii.gz', f'{stem}.nii.gz')
    said = {'Acceleration': 2.0, 'Coils': 3, 'Matrix': [48, 28], 'CalibrationLines': [4],
            'RetrospectiveAcceleration': 2.0, 'RetrospectiveSeed': 7, **more}  # fmt: skip
    stem.with_suffix('.json').write_text(json.dumps(said))


def full(root):
    (case,) = (c for c in find_prepared(root, 'kspace') if c.entities['suffix'] == 'PDw')
    return case


def test_a_run_is_known_by_the_image_of_all_lines_before_the_zero_filled_one(root):
    assert len(find_prepared(root, 'kspace')) == 2
    left_out(root)
    assert len(find_prepared(root, 'kspace')) == 2
    assert full(root).files['image'].name == 'sub-01_rec-full_desc-reference_PDw.nii.gz'


def test_its_files_are_those_of_its_own_suffix_and_entities(root):
    left_out(root)
    runs = {run.name: run for run in find_written(root, '01')}
    assert set(runs) == {'sub-01_PDw', 'sub-01_T2w'}
    names = {path.name for path in runs['sub-01_PDw'].files() if path.suffix == '.gz'}
    assert names == {f'sub-01_rec-{r}_PDw.nii.gz'
                     for r in ('full_desc-reference', 'zerofilled_desc-recon')}  # fmt: skip
    found = runs['sub-01_PDw'].images('reconstruction', desc='recon', suffix='PDw')
    assert list(found) == ['zerofilled']


def test_samples_are_read_again_with_the_same_lines_left_out(root):
    assert acquisition_of(full(root)).full
    with opened_case(full(root)) as samples:
        all_of_it = samples.read(0).kspace
    left_out(root)
    case = full(root)
    assert afterwards_of(case) == Afterwards(2.0, 7)
    assert acquisition_of(case).retrospective
    found = []
    for _ in range(2):
        with opened_case(case) as samples:
            found.append(samples.read(0))
    assert torch.equal(found[0].weights, found[1].weights)
    assert found[0].weights.sum() == raw.Y / 2
    with opened_case(case, whole=True) as samples:
        assert torch.equal(samples.read(0).kspace, all_of_it)


def test_planes_of_a_full_scan_make_its_image(root):
    with opened_case(full(root)) as samples:
        planes = list(planes_in(samples))
        array = assembled([seen.plane.zero_filled for seen in planes], samples.image)
    assert [(seen.number, seen.count) for seen in planes] == [(0, 2), (1, 2)]
    assert array.shape == (raw.WANTED, raw.Y, 2)
    assert np.allclose(array[..., 1], array[..., 0] / 2, rtol=0.05, atol=0.02)  # as was written


def test_planes_that_are_judged_are_spread_evenly():
    assert spread(3, 32) == {0, 1, 2}
    assert len(spread(256, 32)) == 32
    assert {0, 255} <= spread(256, 32)


def test_raw_data_that_are_gone_are_missing_and_another_image_is_bad(root):
    case = full(root)
    path = case.files['image'].with_name('sub-01_rec-full_desc-reference_PDw.json')
    said = json.loads(path.read_text())
    path.write_text(json.dumps({**said, 'ImageInFile': 3}))
    with pytest.raises(BadData, match='number 3'), opened_case(case):
        pass
    shutil.rmtree(root / 'raw')
    with pytest.raises(MissingInput, match='DatasetLinks'), opened_case(case):
        pass


def test_scans_of_a_person_in_source_data_are_that_persons(tmp_path):
    for name in ('sub-01/anat/sub-01_T1w.h5', 'sub-01/ses-b/anat/sub-01_ses-b_T1w.h5',
                 'sub-02/anat/sub-02_T1w.h5', 'sub-01/anat/sub-01_T2w.h5'):  # fmt: skip
        path = tmp_path / 'sourcedata' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b'')
    scan = tmp_path / 'sourcedata/sub-01/anat/sub-01_T1w.h5'
    assert [p.name for p in scans_of_person(scan, tmp_path)] == [
        'sub-01_T1w.h5', 'sub-01_ses-b_T1w.h5'
    ]  # fmt: skip
