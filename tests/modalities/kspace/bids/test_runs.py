"""Which raw scans a dataset has, what they are called, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import h5py
import nibabel as nib
import numpy as np
import pytest

from bidsapp.bids.dataset import select, subjects_of
from bidsapp.bids.names import parse
from bidsapp.bids.prepared import main_sidecar, promised_files
from bidsapp.bids.search import find_runs
from bidsapp.check import main as check
from bidsapp.modalities.kspace.bids import PREPARED, find
from bidsapp.modalities.kspace.bids.prepared import acquisition_of_raw, opened
from bidsapp.modalities.kspace.bids.survey import examine_run, survey
from bidsapp.modalities.kspace.physics.fourier import BOTH
from bidsapp.problems import BadData
from tests.modalities.kspace import raw


def write(root, name, session='', **given):
    subject = name.partition('_')[0]
    return raw.write(root / 'sourcedata' / subject / session / 'anat' / name, **given)


def runs_in(root, options=None, **selected):
    return find(replace(select(root, ['01'], **selected), options=options or {}), {})


def only(root, **given):
    (run,) = runs_in(root, **given)
    return run


def halved(number=raw.Y):
    """Every other line, and ten in the middle."""
    lines = np.arange(number) % 2 == 0
    lines[number // 2 - 5 : number // 2 + 5] = True
    return lines


def test_a_scan_is_known_by_its_name_and_keeps_its_suffix(tmp_path):
    write(tmp_path, 'sub-01_ses-b_acq-fast_T2w.h5', 'ses-b', measured=halved())
    run = only(tmp_path)
    assert run.name == 'sub-01_ses-b_acq-fast_T2w'
    stem = 'sub-01/ses-b/anat/sub-01_ses-b_acq-fast_rec-zerofilled_desc-recon_T2w'
    assert {str(p) for p in promised_files(PREPARED, run)} == {f'{stem}.json', f'{stem}.nii.gz'}
    assert str(main_sidecar(PREPARED, run.case.entities)) == f'{stem}.json'
    found = survey(run)
    assert found.acquisition.words == ('3 coils, 48 x 28, 2 slices, R = 1.47, 10 calibration lines')
    assert not runs_in(tmp_path, sessions=['a'])
    assert not runs_in(tmp_path, filters={'kspace': {'acquisition': 'slow'}})
    assert runs_in(tmp_path, filters={'kspace': {'acquisition': 'fast', 'suffix': 'T2w'}})


def test_a_full_scan_promises_its_image_and_with_lines_left_out_more(tmp_path):
    write(tmp_path, 'sub-01_T1w.h5')
    run = only(tmp_path)
    names = [p.name for p in promised_files(PREPARED, run)]
    assert names == [f'sub-01_rec-full_desc-reference_T1w{e}' for e in ('.json', '.nii.gz')]
    assert survey(run).acquisition.full
    some = only(tmp_path, options={'undersample': 2.0})
    more = {parse(p.name)['reconstruction'] for p in promised_files(PREPARED, some)}
    assert more == {'full', 'zerofilled'}
    assert survey(some).acquisition.acceleration == pytest.approx(2)
    assert some.told() != run.told()
    with pytest.raises(BadData, match='Give --undersample less'):
        survey(only(tmp_path, options={'undersample': 12.0}))


def test_lines_are_left_out_of_full_scans_only(tmp_path):
    write(tmp_path, 'sub-01_T1w.h5', measured=halved())
    run = only(tmp_path, options={'undersample': 2.0})
    assert not run.undersample
    assert 'R = 1.47 was measured' in run.notes[-1]


def test_rec_of_the_raw_data_is_replaced_and_two_of_one_name_are_refused(tmp_path):
    write(tmp_path, 'sub-01_rec-a_T1w.h5')
    run = only(tmp_path)
    assert run.name == 'sub-01_T1w'
    assert 'rec-a of the raw data is replaced' in run.notes[0]
    write(tmp_path, 'sub-01_rec-b_T1w.h5')
    write(tmp_path, 'sub-01_FLAIR.h5')
    by_name = {run.name: run for run in runs_in(tmp_path)}
    assert by_name['sub-01_FLAIR'].problem is None
    assert 'one run by their names' in str(by_name['sub-01_T1w'].problem)


@pytest.mark.parametrize(
    ('name', 'said'),
    [
        ('sub-01_bold.h5', 'expected one of anat: T1w, T2w'),
        ('sub-02_T1w.h5', 'folder sub-01'),
        ('sub-01_b-1_T1w.h5', 'has no place'),
    ],
)
def test_a_name_that_is_no_anatomical_image_is_bad_data(name, said, tmp_path):
    raw.write(tmp_path / 'sourcedata/sub-01/anat' / name)
    problem = only(tmp_path).problem
    assert said in str(problem)
    assert problem.exit_code == 65


def test_contrasts_are_echoes_and_orientations_are_chunks(tmp_path):
    both = np.ones((2, 2, raw.COILS, raw.X, raw.Y), np.complex64) * raw.scan()
    path = write(tmp_path, 'sub-01_PDw.h5', kspace=both, given=raw.protocol())
    with h5py.File(path, 'r+') as file:
        lines = file['dataset/data'][()]
        idx = lines['head']['idx']
        idx['contrast'], idx['average'] = idx['average'].copy(), 0
        file['dataset/data'][...] = lines
    assert [run.name for run in runs_in(tmp_path)] == ['sub-01_echo-1_PDw', 'sub-01_echo-2_PDw']
    assert [run.number for run in runs_in(tmp_path)] == [0, 1]
    with h5py.File(path, 'r+') as file:
        lines = file['dataset/data'][()]
        head = lines['head']
        other = head['idx']['contrast'] == 1
        head['idx']['contrast'] = 0
        turned = head['read_dir'][other].copy()
        head['read_dir'][other], head['phase_dir'][other] = head['phase_dir'][other], turned
        file['dataset/data'][...] = lines
    assert [run.name for run in runs_in(tmp_path)] == ['sub-01_chunk-1_PDw', 'sub-01_chunk-2_PDw']


def test_what_cannot_be_served_is_named_and_noise_alone_is_no_run(tmp_path):
    anat = tmp_path / 'sourcedata/sub-01/anat'
    raw.write_noise(anat / 'sub-01_acq-noise_T1w.h5')
    assert not runs_in(tmp_path)
    (anat / 'meas_MID7.dat').write_bytes(b'siemens')
    run = only(tmp_path)
    assert run.problem is None
    assert 'siemens_to_ismrmrd' in str(run.unserved)


def test_one_damaged_file_leaves_the_others(tmp_path):
    write(tmp_path, 'sub-01_T1w.h5')
    (tmp_path / 'sourcedata/sub-01/anat/sub-01_T2w.h5').write_text('a scan')
    first, other = runs_in(tmp_path)
    assert first.problem is None
    assert 'cannot be read as HDF5' in str(other.problem)


def test_few_calibration_lines_are_noticed_before_anything_is_made(tmp_path):
    write(tmp_path, 'sub-01_T1w.h5', measured=np.arange(raw.Y) % 3 == 2)
    with pytest.raises(BadData, match='need at least 4'):
        survey(only(tmp_path))


def test_what_is_beside_the_raw_data_is_read(tmp_path):
    path = write(tmp_path, 'sub-01_T1w.h5')
    path.with_suffix('.json').write_text(json.dumps({'BodyPart': 'KNEE'}))
    run = only(tmp_path)
    assert run.metadata == {'BodyPart': 'KNEE'}
    path.with_suffix('.json').write_text('[')
    assert only(tmp_path).problem.exit_code == 65


def test_the_acquisition_is_that_of_the_lines_that_are_left(tmp_path):
    write(tmp_path, 'sub-01_T1w.h5')
    image = only(tmp_path).image
    whole = acquisition_of_raw(image)
    assert whole.full
    assert whole.pattern == 'all lines'
    assert {q.name for q in whole.quantities()} == {'acceleration', 'coils', 'voxel_mm'}


def described(root):
    root.mkdir(parents=True, exist_ok=True)
    said = {'Name': 'x', 'BIDSVersion': '1.10.0'}
    (root / 'dataset_description.json').write_text(json.dumps(said))


def test_participants_of_source_data_alone_are_participants(tmp_path):
    write(tmp_path, 'sub-01_T1w.h5')
    described(tmp_path)
    assert subjects_of(tmp_path) == ['01']
    (found,) = find_runs(select(tmp_path, ['01']), ['kspace'], {})
    assert found.problem is None


def test_check_says_what_a_scan_is_and_what_is_wrong(tmp_path, capsys):
    described(tmp_path)
    path = write(tmp_path, 'sub-01_T1w.h5', measured=halved())
    assert check([str(tmp_path)]) == 0
    assert '3 coils, 48 x 28, 2 slices, R = 1.47' in capsys.readouterr().out
    assert check([str(tmp_path), '--json']) == 0
    assert json.loads(capsys.readouterr().out) == []
    with h5py.File(path, 'r+') as file:
        lines = file['dataset/data'][()]
        lines[-1]['data'][:] = np.nan
        file['dataset/data'][...] = lines
    (error,) = examine_run(only(tmp_path))
    assert (error.severity, error.code) == ('error', 'UNREADABLE')
    assert check([str(tmp_path)]) == 65


def test_images_become_k_space_again_where_lines_are_to_be_left_out(tmp_path):
    """Of an image beside raw data of its name the raw data are taken; phase joins its magnitude."""
    anat = tmp_path / 'sub-01/anat'
    anat.mkdir(parents=True)
    rng = np.random.default_rng(1)
    volume = rng.uniform(0, 9, (16, 20, 3)).astype(np.float32)
    angle = rng.uniform(-3, 3, volume.shape).astype(np.float32)
    affine = np.diag([-1.0, 1.5, 4.0, 1])
    for name, array in (
        ('T1w', volume), ('part-mag_T2w', volume), ('part-phase_T2w', angle), ('FLAIR', volume),
    ):  # fmt: skip
        nib.save(nib.Nifti1Image(array, affine), anat / f'sub-01_{name}.nii.gz')
    write(tmp_path, 'sub-01_FLAIR.h5')
    assert [run.name for run in runs_in(tmp_path)] == ['sub-01_FLAIR']
    found = {run.name: run for run in runs_in(tmp_path, options={'undersample': 2.0})}
    assert set(found) == {'sub-01_FLAIR', 'sub-01_T1w', 'sub-01_T2w'}
    assert found['sub-01_FLAIR'].path.suffix == '.h5'
    run = found['sub-01_T2w']
    assert [path.name for path in run.sources()] == [
        'sub-01_part-mag_T2w.nii.gz', 'sub-01_part-phase_T2w.nii.gz'
    ]  # fmt: skip
    with opened(run.path, 0, None) as samples:
        assert np.allclose(samples.image.affine, affine)
        back = BOTH.H(samples.read(1).kspace[0, ..., 0])
    assert np.allclose(back.numpy(), volume[..., 1] * np.exp(1j * angle[..., 1]), atol=1e-4)
