"""A T1w image that cannot be used is told in words; what needs none of it goes on."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
from nipype.interfaces.base import isdefined

from bidsapp.interfaces.anat import CorrectT1w, RegisterT1w, SegmentTissue
from bidsapp.interfaces.labels import WriteReference
from bidsapp.modalities.dwi.bids.prepared import PREPARED
from bidsapp.modalities.dwi.interfaces.distortion import EstimateDistortion

AFFINE = np.diag([4.0, 4, 4, 1])
REASON = {'NotUsed': 'it holds only zeros', 'Warnings': ['T1w image not used: only zeros']}


def ball(shape=(24, 24, 24)):
    """(X, Y, Z) a head of 1, in a brighter rim."""
    radius = np.linalg.norm(np.moveaxis(np.indices(shape), 0, -1) - 11.5, axis=-1)
    return np.where(radius < 8, 1.0, np.where(radius < 10, 1.5, 0.0)).astype(np.float32)


def saved(path, data, affine=AFFINE):
    nib.save(nib.Nifti1Image(np.asarray(data, np.float32), affine), path)
    return str(path)


def after(step, folder, **inputs):
    return step(**inputs).run(cwd=str(folder)).outputs


def test_nan_around_the_head_count_as_zero(tmp_path):
    head = ball()
    image = saved(tmp_path / 'sub-01_T1w.nii', np.where(head == 0, np.nan, head))
    given = after(CorrectT1w, tmp_path, t1w=image)
    found = nib.load(given.t1w).get_fdata()
    assert np.isfinite(found).all()
    assert not found[head == 0].any()
    assert 'NotUsed' not in given.quality


@pytest.mark.parametrize(
    ('data', 'words'),
    [
        (np.stack([ball(), ball()], -1), 'several echoes'),
        (np.zeros((8, 8, 8)), 'only zeros'),
        (np.full((8, 8, 8), np.nan), 'only zeros'),
    ],
)
def test_a_t1w_that_cannot_be_used_is_named_and_fails_nothing(tmp_path, data, words):
    image = saved(tmp_path / 'sub-01_T1w.nii', data)
    given = after(CorrectT1w, tmp_path, t1w=image)
    assert not isdefined(given.t1w)
    assert words in given.quality['NotUsed']
    assert 'sub-01_T1w' in given.quality['NotUsed']
    assert words in given.quality['Warnings'][0]


def test_a_file_that_is_cut_off_fails_nothing(tmp_path):
    image = tmp_path / 'sub-01_T1w.nii.gz'
    saved(image, np.random.default_rng(0).uniform(size=(24, 24, 24)))
    image.write_bytes(image.read_bytes()[: image.stat().st_size // 2])
    given = after(CorrectT1w, tmp_path, t1w=str(image))
    assert not isdefined(given.t1w)
    assert 'sub-01_T1w.nii.gz' in given.quality['NotUsed']


def test_a_t1w_elsewhere_in_the_world_fails_nothing(tmp_path):
    far = AFFINE.copy()
    far[0, 3] = 3000
    t1w, head = saved(tmp_path / 't1w.nii', ball(), far), saved(tmp_path / 'b0.nii', ball())
    given = after(RegisterT1w, tmp_path, t1w=t1w, image=head, mask=head, quality={})
    assert not isdefined(given.matrix)
    assert '0% of the head' in given.quality['NotUsed']


def test_steps_after_it_pass_the_reason_on(tmp_path):
    head = saved(tmp_path / 'b0.nii', ball())
    registered = after(RegisterT1w, tmp_path, image=head, mask=head, quality=REASON)
    assert not isdefined(registered.matrix)
    segmented = after(SegmentTissue, tmp_path, mask=head, quality=registered.quality)
    assert not isdefined(segmented.posteriors)
    assert segmented.quality == REASON


def test_how_much_the_t1w_shows_is_the_first_warning_of_the_label(tmp_path, monkeypatch):
    head, matrix = ball() > 0, tmp_path / 'run_to_t1w.txt'
    np.savetxt(matrix, np.eye(4))
    fractions = head * np.array([0.5, 0.4, 0.1])[:, None, None, None]
    monkeypatch.setattr('bidsapp.physics.template.template_maps', lambda mm: None)
    monkeypatch.setattr('bidsapp.physics.anatomy.tissue_on_run', lambda *all_: (fractions, 0.88))
    image, said = saved(tmp_path / 't1w.nii', head), {'Warnings': ['only 3 of 15 starts agree']}
    given = after(SegmentTissue, tmp_path, t1w=image, mask=image, matrix=str(matrix), quality=said)
    assert 'covers 88% of the brain' in given.quality['Warnings'][0]
    assert given.quality['Warnings'][1:] == said['Warnings']


def test_the_distortion_goes_without_it_and_says_so(tmp_path):
    head = saved(tmp_path / 'b0.nii', ball())
    way = {'method': 't1w', 'words': 'registration to sub-01_T1w.nii.gz', 'axis': 1}
    given = after(
        EstimateDistortion, tmp_path, b0=head, mask=head, candidates=[way], t1w_quality=REASON
    )
    assert not isdefined(given.displacement)
    said = ['registration to sub-01_T1w.nii.gz: it holds only zeros']
    assert given.quality == {'Method': 'none', 'NotUsed': said}


def test_the_tissue_label_alone_is_missing_and_that_is_noted(tmp_path):
    files = {kind: saved(tmp_path / f'{kind}.nii.gz', ball()) for kind in PREPARED.names}
    write = WriteReference(
        tuple(files), ('tissue_posteriors',), modality='dwi', task='tissue', source='reference',
        out_root=str(tmp_path / 'out'), entities={'subject': '01', 'datatype': 'dwi'},
        quality=REASON, more_sources=['bids:raw:sub-01/anat/sub-01_T1w.nii.gz'], **files,
    )  # fmt: skip
    assert write.run(cwd=str(tmp_path)).outputs.out_files == []
    note = json.loads((tmp_path / 'problem.json').read_text())
    assert note['exit_code'] == 65
    assert 'sub-01_T1w.nii.gz cannot be used: it holds only zeros' in note['message']
