"""A lab's short protocol, simulated: labels of long scans, inputs made like a short one."""

from __future__ import annotations

import csv
import json
import os
import shutil
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

from bidsapp.bids.derivatives import write_dataset
from bidsapp.bids.prepared import find_prepared
from bidsapp.cli import main
from bidsapp.core import Case
from bidsapp.learn.inputs import open_input
from bidsapp.modalities.dwi.bids.protocol import brain_in, protocol_of
from bidsapp.modalities.dwi.bids.tables import load_table, read_numbers
from bidsapp.modalities.dwi.physics.gradients import from_fsl
from bidsapp.modalities.dwi.physics.likeness import noise_of
from bidsapp.modalities.dwi.workflows.like import poorer

SUBJECTS = ('01', '02', '03')
#: Truth of the simulation → the label whose place it takes here.
LABELS = {
    'seg-tissue_desc-truth_dseg': 'seg-tissue_desc-reference_dseg',
    'model-truth_param-direction_dwimap': 'model-csd_param-direction_dwimap',
    **{f'model-truth_param-{p}_dwimap': f'model-noddi_param-{p}_dwimap'
       for p in ('icvf', 'od', 'isovf')},
}  # fmt: skip


@pytest.fixture(scope='module')
def lab(tmp_path_factory):
    """Three long scans with labels, as `participant` would leave them, and one short scan."""
    from bidsapp.modalities.dwi.simulate.dataset import DwiDesign
    from bidsapp.simulated import Design
    from bidsapp.simulated import write_dataset as simulate

    root = tmp_path_factory.mktemp('lab')
    heads = {'t1w_voxel_size': 6.0, 'template_voxel_size': 3.0}
    long = DwiDesign(6.0, 3.0, directions=14, bval=(1000.0, 2000.0), snr=40)
    short = DwiDesign(8.0, 4.0, directions=6, bval=(1000.0, 2000.0), snr=10)
    quiet = {'say': lambda line: None}
    simulate(root / 'bids', Design(participants=3, seed=5, scans={'dwi': long}, **heads), **quiet)
    simulate(root / 'short', Design(participants=1, seed=6, scans={'dwi': short}, **heads), **quiet)
    for subject in SUBJECTS:  # without a T1w, which distortion would be corrected by at length
        shutil.rmtree(root / f'bids/sub-{subject}/anat')
    write_dataset(root / 'out', root / 'bids')
    for subject in SUBJECTS:
        prepared(root, subject)
    return root


def prepared(root, subject):
    """The raw run in the place of the preprocessed one, and the truth in that of labels."""
    start = f'sub-{subject}/dwi/sub-{subject}'
    raw, truth, out = (root / f / start for f in ('bids', 'bids/derivatives/truth', 'out'))
    out.parent.mkdir(parents=True)
    for kind in ('nii.gz', 'bval', 'bvec'):
        shutil.copy(f'{raw}_dwi.{kind}', f'{out}_desc-preproc_dwi.{kind}')
    sidecar = {'Description': 'Preprocessed.', 'Sources': [f'bids:raw:{start}_dwi.nii.gz']}
    (out.parent / f'{out.name}_desc-preproc_dwi.json').write_text(json.dumps(sidecar))
    shutil.copy(f'{truth}_desc-brain_mask.nii.gz', f'{out}_desc-brain_mask.nii.gz')
    for theirs, ours in LABELS.items():
        shutil.copy(f'{truth}_{theirs}.nii.gz', f'{out}_{ours}.nii.gz')


def group(lab, *argv, tasks=('microstructure',)):
    """`group` with few steps, in this process."""
    environment = dict(os.environ)
    try:
        return main([
            str(lab / 'bids'), str(lab / 'out'), 'group', '--tasks', *tasks, '--steps', '2',
            '--init', 'scratch', '--device', 'cpu', '--nprocs', '2', *map(str, argv),
        ])  # fmt: skip
    finally:
        os.environ.clear()
        os.environ.update(environment)


def scan_of(lab):
    return lab / 'short/sub-01/dwi/sub-01_dwi.nii.gz'


@pytest.fixture(scope='module')
def done(lab):
    """After `group --input-like`: the stand-ins by participant, and what labels were before."""
    before = {p: p.read_bytes() for p in (lab / 'out').rglob('*_dwimap.nii.gz')}
    assert group(lab, '--input-like', scan_of(lab), tasks=('microstructure', 'orientation')) == 0
    folders = {}
    for note in (lab / 'out/.work').glob('like-*/*/made.json'):
        (image,) = note.parent.glob('out/sub-*/dwi/*_desc-preproc_dwi.nii.gz')
        folders[image.name[4:6]] = note.parent
    return SimpleNamespace(folders=folders, before=before, lab=lab)


def case_in(folder, subject):
    stem = folder / f'out/sub-{subject}/dwi/sub-{subject}_desc'
    files = {kind: stem.with_name(f'{stem.name}-preproc_dwi.{kind}') for kind in ('bval', 'bvec')}
    files |= {'dwi': stem.with_name(f'{stem.name}-preproc_dwi.nii.gz'),
              'mask': stem.with_name(f'{stem.name}-brain_mask.nii.gz')}  # fmt: skip
    return Case({'subject': subject, 'datatype': 'dwi'}, files)


def test_every_run_was_made_from_its_raw_scan_and_prepared(done):
    assert sorted(done.folders) == list(SUBJECTS)
    for folder in done.folders.values():
        assert json.loads((folder / 'made.json').read_text())['source'] == 'raw'
        (sidecar,) = folder.glob('out/sub-*/dwi/*_desc-preproc_dwi.json')
        said = json.loads(sidecar.read_text())
        assert said['MotionCorrection']['Method'] != 'none'


def test_input_has_the_table_the_voxels_and_the_noise_of_the_scan(done):
    wanted = protocol_of(scan_of(done.lab))
    for subject, folder in done.folders.items():
        (raw,) = folder.glob('raw/sub-*/dwi/*_dwi.nii.gz')
        image = nib.load(raw)
        stem = raw.with_name(raw.name.removesuffix('.nii.gz'))
        bvals = read_numbers(stem.with_suffix('.bval')).ravel()
        gtab = from_fsl(read_numbers(stem.with_suffix('.bvec')), bvals, image.affine)
        assert [len(m) for _, m in gtab.shells()] == [len(m) for _, m in wanted.gtab.shells()]
        assert gtab.b0.sum() == wanted.gtab.b0.sum()
        assert np.allclose(image.header.get_zooms()[:3], 8.0, rtol=1e-3)
        data = image.get_fdata(dtype=np.float32)
        noise = np.sqrt(noise_of(data, gtab, brain_in(data, gtab, image.affine)))
        assert noise == pytest.approx(np.sqrt(wanted.variance), rel=0.1)
        measured = load_table(case_in(folder, subject))
        assert len(measured) == len(gtab)


def test_directions_are_measured_ones_each_once(done):
    for subject, folder in done.folders.items():
        (raw,) = folder.glob('raw/sub-*/dwi/*.bvec')
        own = read_numbers(raw)
        whole = read_numbers(done.lab / f'bids/sub-{subject}/dwi/sub-{subject}_dwi.bvec')
        found = [np.flatnonzero(np.abs(whole - v[:, None]).max(0) < 1e-5) for v in own.T if v.any()]
        assert all(len(f) for f in found)
        assert len({int(f[0]) for f in found}) == len(found)


def test_labels_of_the_whole_scans_are_as_they_were(done):
    assert {p: p.read_bytes() for p in done.before} == done.before
    for folder in done.folders.values():
        (label,) = folder.glob('labels/*/*_param-isovf_dwimap.nii.gz')
        assert np.allclose(nib.load(label).header.get_zooms(), 8.0, rtol=1e-3)


def test_card_says_what_the_model_was_made_for_and_no_place(done):
    text = (done.lab / 'out/models/microstructure/v1/card.json').read_text()
    card = json.loads(text)
    like, ranges = card['input_like'], card['tested_ranges']
    assert len(like['table']) == len(protocol_of(scan_of(done.lab)).gtab)
    assert np.allclose(like['voxel_mm'], 8.0, rtol=1e-3)
    assert len(like['sha256']) == 64
    assert 'short' not in text
    assert str(done.lab) not in text
    assert card['input_made_from'] == {'raw': 3}
    assert ranges['shells'] == [2, 2]
    assert np.allclose(ranges['voxel_mm'], [8.0, 8.0], rtol=1e-3)
    assert len(ranges['b']) == 2


def test_page_and_table_speak_of_that_input_and_of_what_does_without_a_network(done):
    page = (done.lab / 'out/group_microstructure.html').read_text()
    assert 'made like a routine scan' in page
    with (done.lab / 'out/group_orientation.tsv').open() as stream:
        rows = list(csv.DictReader(stream, delimiter='\t'))
    assert {r['model'] for r in rows} == {'scratch', 'classical'}
    angle = [float(r['value']) for r in rows if r['model'] == 'classical']
    assert 0 < min(angle) < 45


def test_a_second_call_makes_nothing_again(done):
    def state():
        kept = [*(done.lab / 'out/.work').glob('like-*/*/*/sub-*/dwi/*.nii.gz')]
        kept += [*(done.lab / 'out/models').rglob('*.json')]
        return {p: p.stat().st_mtime_ns for p in kept}

    before = state()
    assert len(before) > 6
    assert group(done.lab, '--input-like', scan_of(done.lab)) == 0
    assert state() == before


def test_what_is_made_is_the_same_twice_bit_for_bit(done, tmp_path):
    options = {'input_like': str(scan_of(done.lab))}
    (case,) = find_prepared(done.lab / 'out', 'dwi', ['02'])
    raw = done.lab / 'bids/sub-02/dwi/sub-02_dwi.nii.gz'
    made = poorer(case, (raw, done.lab / 'bids'), tmp_path, options)
    (first,) = done.folders['02'].glob('raw/sub-*/dwi/*_dwi.nii.gz')
    again = made.raw.case.files['dwi']
    assert np.array_equal(nib.load(first).get_fdata(), nib.load(again).get_fdata())
    for kind in ('bval', 'bvec'):
        stem = first.name.removesuffix('nii.gz')
        assert first.with_name(stem + kind).read_bytes() == made.raw.case.files[kind].read_bytes()


def test_without_raw_scans_the_prepared_ones_are_made_poorer_and_that_is_said(
    lab, tmp_path, capsys
):
    out = tmp_path / 'out'
    shutil.copytree(lab / 'out', out, ignore=shutil.ignore_patterns('.work', 'models', 'logs'))
    for sidecar in out.rglob('*_desc-preproc_dwi.json'):
        sidecar.write_text(json.dumps({'Description': 'Preprocessed elsewhere.'}))
    work = tmp_path / 'work'
    assert main([
        str(lab / 'bids'), str(out), 'group', '--tasks', 'microstructure', '--steps', '1',
        '--init', 'scratch', '--device', 'cpu', '-w', str(work),
        '--input-like', str(scan_of(lab)),
    ]) == 0  # fmt: skip
    assert 'made from the preprocessed volumes' in ''.join(capsys.readouterr())
    card = json.loads((out / 'models/microstructure/v1/card.json').read_text())
    assert card['input_made_from'] == {'prepared': 3}
    assert 'better than a routine' in (out / 'group_microstructure.html').read_text()
    (kept, *_) = (work / next(work.glob('inputs-*')).name).glob('*')
    assert open_input(kept).image.isfinite().all()


class TestRefused:
    def test_a_scan_that_is_not_there(self, lab, capsys):
        assert group(lab, '--input-like', lab / 'none_dwi.nii.gz') == 66
        assert 'none_dwi.nii.gz is not there' in capsys.readouterr().err

    def test_a_scan_without_its_table(self, lab, tmp_path):
        shutil.copy(scan_of(lab), tmp_path / 'sub-01_dwi.nii.gz')
        assert group(lab, '--input-like', tmp_path / 'sub-01_dwi.nii.gz') == 66

    def test_both_ways_of_saying_directions(self, lab):
        assert group(lab, '--input-like', scan_of(lab), '--input-directions', 6) == 64

    def test_b_that_no_run_has_measured(self, lab, tmp_path, capsys):
        for path in scan_of(lab).parent.glob('sub-01_dwi.*'):
            shutil.copy(path, tmp_path)
        b = read_numbers(tmp_path / 'sub-01_dwi.bval')
        np.savetxt(tmp_path / 'sub-01_dwi.bval', np.where(b > 1500, 3000, b), '%g')
        assert group(lab, '--input-like', tmp_path / 'sub-01_dwi.nii.gz') == 66
        assert 'b=3000' in ''.join(capsys.readouterr())
