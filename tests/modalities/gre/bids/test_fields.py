"""Fields and masks of the user's own, beside raw runs and alone."""

from __future__ import annotations

import numpy as np
import pytest

from bidsapp.bids.names import build
from bidsapp.bids.prepared import find_prepared, prepared_files
from bidsapp.modalities.gre.bids import files
from bidsapp.modalities.gre.bids.prepared import total_of
from bidsapp.problems import BadData, MissingInput
from tests.modalities.gre.skeletons import SHAPE, image, only, runs_in, sidecar, write_run


def field(root, kind='total', units='Hz', stem='sub-01', mask=True, **said):
    path = image(root / f'sub-01/fmap/{stem}_desc-{kind}_fieldmap.nii.gz')
    sidecar(path, {'Units': units, **said} if units else said)
    if mask:
        named = {'subject': '01', 'datatype': 'anat', 'desc': 'brain', 'suffix': 'mask'}
        image(root / build({**named, 'extension': '.nii.gz'}), np.ones(SHAPE))
    return path


def test_a_field_takes_the_place_of_the_phase_and_needs_no_raw_run(tmp_path):
    bids, own = tmp_path / 'bids', tmp_path / 'fields'
    write_run(bids)
    field(own)
    run = only(bids, fields=own)
    assert (run.given, run.taken_from) == ('total', 'fields')
    assert list(run.case.files) == ['field', 'mask']
    assert run.facts.imaging_mhz == 123.2  # of the raw run
    assert files.survey(run).acquisition.words.startswith('a finished field at 2.89 T')
    field(own, 'local', ImagingFrequency=300)
    run = only(bids, fields=own)
    assert (run.given, run.facts.imaging_mhz) == ('local', 300)
    (tmp_path / 'none').mkdir()
    assert only(tmp_path / 'none', fields=own).given == 'local'
    write_run(bids, 'sub-01_acq-other')
    assert [r.given for r in runs_in(bids, fields=own)] == ['local', '']


@pytest.mark.parametrize(
    ('more', 'kind', 'words'),
    [
        ({'units': None}, MissingInput, 'no Units'),
        ({'units': 'ppb'}, BadData, "'ppb'"),
        ({'ImagingFrequency': None}, MissingInput, 'neither ImagingFrequency'),
        ({'mask': False}, MissingInput, 'no brain mask'),
    ],
)
def test_a_field_that_cannot_be_used_is_the_runs_problem(tmp_path, more, kind, words):
    bids, own = tmp_path / 'bids', tmp_path / 'fields'
    bids.mkdir()
    field(own, **{'ImagingFrequency': 123.2, **more})
    run = only(bids, fields=own)
    assert isinstance(run.problem, kind)
    assert words in str(run.problem)


def test_a_mask_of_the_users_serves_runs_and_fields(tmp_path):
    bids, own, masks = (tmp_path / name for name in ('bids', 'fields', 'masks'))
    write_run(bids)
    field(own, mask=False)
    drawn = image(masks / 'sub-01/anat/sub-01_desc-brain_mask.nii.gz', np.ones(SHAPE))
    assert only(bids, masks=masks).case.files['mask'] == drawn
    assert only(bids, masks=masks, fields=own).case.files['mask'] == drawn
    image(drawn, np.zeros(SHAPE))
    assert 'is empty' in str(only(bids, masks=masks).problem)
    image(drawn, np.ones((3, 3, 3)))
    assert only(bids, masks=masks, fields=own).problem.exit_code == 65


def test_a_prepared_run_is_found_by_its_field_in_another_folder(tmp_path):
    entities = {'subject': '01', 'session': 'a', 'datatype': 'anat'}
    for path in prepared_files(files.prepared, entities).values():
        image(tmp_path / path)
    (case,) = find_prepared(tmp_path, 'gre')
    assert case.entities == entities
    assert case.files['field'].parent.name == 'fmap'
    assert total_of(case) is None
    total = image(tmp_path / 'sub-01/ses-a/fmap/sub-01_ses-a_desc-total_fieldmap.nii.gz')
    assert total_of(case) == total


def test_a_raw_magnitude_tells_where_the_brain_is(tmp_path):
    bids, own = tmp_path / 'bids', tmp_path / 'fields'
    write_run(bids)
    field(own, mask=False)
    run = only(bids, fields=own)
    assert run.problem is None
    assert list(run.case.files) == ['field', 'magnitude_1', 'magnitude_2', 'magnitude_3']
    assert any('magnitude of the raw run' in note for note in run.notes)
    image(own / 'sub-01/anat/sub-01_desc-brain_mask.nii.gz', np.ones(SHAPE))
    assert list(only(bids, fields=own).case.files) == ['field', 'mask']
