"""Steps on files of a ball with iron in it: from what scanners write to maps with sidecars."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch

from bidsapp.bids.prepared import prepared_files
from bidsapp.interfaces.base import PROBLEM
from bidsapp.modalities.gre.bids.prepared import NOISE_FIELD, PREPARED
from bidsapp.modalities.gre.interfaces.field import (
    CheckSign,
    FitDecay,
    FitField,
    ReadField,
    RemoveBackground,
)
from bidsapp.modalities.gre.interfaces.inversion import MAPS, Invert
from bidsapp.modalities.gre.interfaces.outputs import WriteField
from bidsapp.modalities.gre.interfaces.signal import BrainMask, ReadSignal
from bidsapp.modalities.gre.physics.dipole import dipole
from bidsapp.modalities.gre.simulate.files import ENCODINGS
from bidsapp.problems import BadData
from tests.modalities.gre.skeletons import affine_of, image

MHZ, TIMES, EDGE = 123.2, [0.005, 0.010, 0.015], 3.0
SHAPE = (34, 32, 30)
AFFINE = affine_of((EDGE,) * 3)
ENTITIES = {'subject': '01', 'datatype': 'anat'}
NUMBER = ('first', 'second', 'third')


@pytest.fixture(scope='module')
def ball():
    """A ball of 38 mm with two lumps of iron, R2* along with it, and a source outside."""
    rng = np.random.default_rng(1)
    place = np.stack(np.meshgrid(*(np.arange(n) - n / 2 for n in SHAPE), indexing='ij')) * EDGE
    mask = np.linalg.norm(place, axis=0) < 38
    chi = np.zeros(SHAPE)
    for centre in ((-9, 0, 3), (12, 9, -6)):
        chi[np.linalg.norm(place - np.reshape(centre, (3, 1, 1, 1)), axis=0) < 8] = 0.2
    outside = np.zeros(SHAPE)
    outside[15:18, 15:18, 0:1] = 3
    field = dipole(SHAPE, (EDGE,) * 3, (0, 0, 1))
    local, total = (field(torch.from_numpy(x)).numpy() for x in (chi, chi + outside))
    rate = 20 + 140 * chi
    times = np.array(TIMES)[:, None, None, None]
    phase = 2 * np.pi * MHZ * total * times + 1 + place[0] / 60
    signal = mask * np.exp(-times * rate) * np.exp(1j * phase)
    noise = 0.01 * (rng.standard_normal(signal.shape) + 1j * rng.standard_normal(signal.shape))
    return SimpleNamespace(
        chi=chi, local=local, total=total, mask=mask, rate=rate, signal=signal + noise
    )


def written(folder, signal, encode=ENCODINGS['radians']):
    """(magnitudes, phases) as files."""
    echoes = list(zip(NUMBER, signal, strict=True))
    first = [image(folder / f'{n}_part-mag.nii', np.abs(s), AFFINE) for n, s in echoes]
    second = [image(folder / f'{n}_part-phase.nii', encode(np.angle(s)), AFFINE) for n, s in echoes]
    return [str(p) for p in first], [str(p) for p in second]


def ran(step, folder):
    folder.mkdir(parents=True, exist_ok=True)
    return step.run(cwd=str(folder)).outputs


def refused(step, folder, words):
    folder.mkdir(parents=True, exist_ok=True)
    with pytest.raises(BadData, match=words):
        step.run(cwd=str(folder))
    assert json.loads((folder / PROBLEM).read_text())['exit_code'] == 65


def array(path):
    return np.asanyarray(nib.load(path).dataobj)


@pytest.fixture(scope='module')
def mask(ball, tmp_path_factory):
    return str(image(tmp_path_factory.mktemp('mask') / 'mask.nii', ball.mask, AFFINE))


@pytest.fixture(scope='module')
def read(ball, tmp_path_factory):
    folder = tmp_path_factory.mktemp('read')
    parts, others = written(folder, ball.signal)
    return ran(ReadSignal(parts=parts, others=others), folder / 'step')


@pytest.fixture(scope='module')
def fitted(read, mask, tmp_path_factory):
    step = FitField(magnitude=read.magnitude, phase=read.phase, mask=mask, echo_times=TIMES)
    return ran(step, tmp_path_factory.mktemp('fit'))


@pytest.fixture(scope='module')
def prepared(ball, read, fitted, mask, tmp_path_factory):
    """Everything that a raw run leaves, below a folder; and the decay and the sign."""
    folder = tmp_path_factory.mktemp('prepared')
    shared = {'magnitude': read.magnitude, 'mask': mask, 'echo_times': TIMES}
    decay = ran(FitDecay(sigma=fitted.sigma, **shared), folder / 'decay')
    local = ran(RemoveBackground(field=fitted.field, mask=fitted.reliable), folder / 'local')
    told = {'imaging_mhz': MHZ, 'direction': [0.0, 0.0, 1.0]}
    sign = ran(
        CheckSign(field=local.field, mask=fitted.reliable, r2star=decay.r2star, **told),
        folder / 'sign',
    )
    step = WriteField(
        like=mask, out_root=str(folder / 'out'), entities=ENTITIES, sources=['bids:raw:x'],
        frequency_from='ImagingFrequency', echo_times=TIMES, brain=mask, mask=fitted.reliable,
        magnitude=fitted.magnitude, field=local.field, total=fitted.field, noise=fitted.noise,
        r2star=decay.r2star, t2star=decay.t2star, phase_quality=read.quality,
        field_quality=fitted.quality, background_quality=local.quality,
        sign_quality=sign.quality, phase_warnings=read.warnings, notes=['a note'], **told,
    )  # fmt: skip
    files = ran(step, folder / 'write')
    return SimpleNamespace(out=folder / 'out', decay=decay, local=local, sign=sign, files=files)


@pytest.mark.parametrize('encoding', [name for name in ENCODINGS if name != 'radians'])
def test_every_encoding_is_the_same_signal(ball, read, tmp_path, encoding):
    parts, others = written(tmp_path, ball.signal, ENCODINGS[encoding])
    found = ran(ReadSignal(parts=parts, others=others), tmp_path / 'step')
    apart = np.angle(np.exp(1j * (array(found.phase) - array(read.phase))))
    assert np.abs(apart).max() < 0.01
    assert found.quality['AlternatingSlices'] == (encoding == 'alternating') == bool(found.warnings)


def test_real_and_imaginary_parts_are_the_same_signal_and_a_sign_can_be_turned(
    ball, read, tmp_path
):
    files = {
        name: [str(image(tmp_path / f'{n}_{name}.nii', part, AFFINE))
               for n, part in zip(NUMBER, parts, strict=True)]
        for name, parts in (('real', ball.signal.real), ('imag', ball.signal.imag))
    }  # fmt: skip
    given = {'parts': files['real'], 'others': files['imag'], 'cartesian': True}
    found = ran(ReadSignal(**given), tmp_path / 'a')
    assert array(found.phase) == pytest.approx(array(read.phase), abs=1e-4)
    assert array(found.magnitude) == pytest.approx(array(read.magnitude), abs=1e-5)
    turned = ran(ReadSignal(turned=True, **given), tmp_path / 'b')
    assert array(turned.phase) == pytest.approx(-array(found.phase))
    assert turned.quality['Turned']


def test_what_is_no_phase_is_refused(ball, tmp_path):
    parts, _ = written(tmp_path, ball.signal)
    steady = [str(image(tmp_path / f'{n}_s.nii', np.full(SHAPE, 0.1), AFFINE)) for n in NUMBER]
    refused(ReadSignal(parts=parts, others=steady), tmp_path / 'step', 'in every voxel')


def test_the_brain_is_found_or_it_is_said(ball, read, tmp_path):
    found = array(ran(BrainMask(magnitude=read.magnitude), tmp_path / 'a').mask) > 0
    assert 2 * (found & ball.mask).sum() / (found.sum() + ball.mask.sum()) > 0.9
    empty = image(tmp_path / 'empty.nii', np.zeros((*SHAPE, 2)), AFFINE)
    refused(BrainMask(magnitude=str(empty)), tmp_path / 'b', 'No brain was found')


def test_the_field_is_that_of_the_sources_with_its_noise(ball, fitted):
    total, reliable = array(fitted.field), array(fitted.reliable) > 0
    error = (total / MHZ - ball.total)[reliable]
    error -= np.median(error)
    noise = fitted.noise / array(fitted.magnitude)[reliable] / MHZ
    assert np.median(np.abs(error)) < 2 * np.median(noise)
    assert fitted.sigma == pytest.approx(0.01, rel=0.2)
    assert not fitted.quality['Bipolar']
    assert fitted.quality['ReliableShare'] > 0.95
    assert fitted.quality['NoiseMedian'] == pytest.approx(np.median(noise) * MHZ, rel=1e-3)
    assert not fitted.warnings


def test_no_number_is_harmless_outside_the_head_and_refused_inside(ball, mask, fitted, tmp_path):
    for where, words in (((0, 0, 0), None), ((17, 16, 15), '1 voxels of the brain hold no number')):
        signal = ball.signal.copy()
        signal[1][where] = np.nan
        folder = tmp_path / str(words is None)
        parts, others = written(folder, signal)
        found = ran(ReadSignal(parts=parts, others=others), folder / 'read')
        assert found.quality['VoxelsWithoutNumber'] == 1
        given = {'magnitude': found.magnitude, 'phase': found.phase, 'mask': mask}
        step = FitField(echo_times=TIMES, **given)
        if words:
            refused(step, folder / 'fit', words)
        else:
            same = array(ran(step, folder / 'fit').field)
            assert same == pytest.approx(array(fitted.field), abs=0.05)


def test_a_bipolar_readout_is_seen_and_taken_off(ball, mask, fitted, tmp_path):
    signal = ball.signal.copy()
    signal[1] *= np.exp(1j * np.linspace(-1, 1, SHAPE[0]))[:, None, None]
    parts, others = written(tmp_path, signal)
    found = ran(ReadSignal(parts=parts, others=others), tmp_path / 'read')
    given = {'magnitude': found.magnitude, 'phase': found.phase, 'mask': mask}
    again = ran(FitField(echo_times=TIMES, **given), tmp_path / 'fit')
    assert again.quality['Bipolar']
    assert 'read backwards' in again.warnings[0]
    inside = array(again.reliable) > 0
    assert np.abs(array(again.field) - array(fitted.field))[inside].mean() < 0.5


def test_decay_background_and_sign(ball, prepared):
    rate, local = array(prepared.decay.r2star), array(prepared.local.field)
    deep = ball.mask & (local != 0)
    assert np.median(np.abs(rate - ball.rate)[deep]) < 2
    assert array(prepared.decay.t2star)[deep] == pytest.approx(1 / rate[deep], rel=1e-4)
    a, b = local[deep] / MHZ, ball.local[deep]
    assert np.corrcoef(a, b)[0, 1] > 0.9
    assert prepared.local.quality['Method'] == 'V-SHARP'
    assert prepared.sign.quality['Contrast'] > 0


def test_what_is_written_is_whole_and_says_how_it_was_made(prepared, fitted):
    names = sorted(p.relative_to(prepared.out).as_posix() for p in prepared.out.rglob('*.nii.gz'))
    assert names == [
        'sub-01/anat/sub-01_R2starmap.nii.gz',
        'sub-01/anat/sub-01_T2starmap.nii.gz',
        'sub-01/anat/sub-01_desc-brain_mask.nii.gz',
        'sub-01/anat/sub-01_desc-reliable_mask.nii.gz',
        'sub-01/fmap/sub-01_desc-local_fieldmap.nii.gz',
        'sub-01/fmap/sub-01_desc-local_magnitude.nii.gz',
        'sub-01/fmap/sub-01_desc-total_fieldmap.nii.gz',
        'sub-01/fmap/sub-01_desc-total_magnitude.nii.gz',
    ]
    for name in names:
        path = prepared.out / name.replace('.nii.gz', '.json')
        said = json.loads(path.read_text())
        assert said['Description']
        assert said['Sources'] == ['bids:raw:x']
        assert ('Units' in said) != ('_mask' in name)
    main = Path(prepared.files.field.replace('.nii.gz', '.json'))
    said = json.loads(main.read_text())
    assert (said['Units'], said['ImagingFrequency'], said['EchoTimes']) == ('Hz', MHZ, TIMES)
    assert said[NOISE_FIELD] == pytest.approx(fitted.noise)
    assert said['BackgroundRemoval']['Method'] == 'V-SHARP'
    assert said['Notes'] == ['a note']


@pytest.mark.parametrize('total', [True, False])
def test_classical_maps_of_a_prepared_run(ball, prepared, tmp_path, total):
    out = prepared.out
    if not total:  # as of a local field that was given
        out = tmp_path / 'out'
        for path in prepared.out.rglob('*_desc-[lr]*'):
            target = out / path.relative_to(prepared.out)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    kinds = {kind: str(out / path) for kind, path in prepared_files(PREPARED, ENTITIES).items()}
    step = Invert(list(kinds), modality='gre', entities=ENTITIES, **kinds)
    found = ran(step, tmp_path / 'step')
    maps = array(found.chimaps)
    assert maps.shape == (*SHAPE, len(MAPS))
    assert found.quality['ReferenceMethod'] == ('single-step' if total else 'tv')
    assert set(found.quality['Regularization']) == {
        found.quality['ReferenceMethod'], 'tkd', 'tikhonov'
    }  # fmt: skip
    known = array(kinds['field']) != 0
    for k in range(len(MAPS)):
        assert np.corrcoef(maps[known, k], ball.chi[known])[0, 1] > 0.7
    assert np.corrcoef(maps[known, 0], ball.chi[known])[0, 1] > 0.85


@pytest.mark.parametrize(('unit', 'factor'), [('Hz', 1), ('rad/s', 2 * np.pi), ('T', 2.3487e-8)])
def test_a_finished_field_is_read_in_its_unit(ball, mask, tmp_path, unit, factor):
    path = tmp_path / 'sub-01_desc-local_fieldmap.nii'
    nib.save(nib.Nifti1Image(ball.local * MHZ * factor, AFFINE), path)
    found = ran(ReadField(field=str(path), mask=mask, unit=unit), tmp_path / 'step')
    inside = ball.mask
    assert array(found.field)[inside] == pytest.approx(ball.local[inside] * MHZ, abs=1e-3)
    assert array(found.magnitude)[inside].all()


def test_a_field_that_is_still_wrapped_or_empty_is_refused(ball, mask, tmp_path):
    ramp = 0.7 * np.arange(SHAPE[0])[:, None, None]
    odd = {
        'jumps from': np.angle(np.exp(1j * (ramp + 40 * ball.total))),
        'constant values': np.ones(SHAPE),
        'NaN': np.where(ball.mask, np.nan, 0),
    }
    for number, (words, values) in enumerate(odd.items()):
        path = image(tmp_path / f'{number}.nii', values, AFFINE)
        step = ReadField(field=str(path), mask=mask, unit='Hz')
        refused(step, tmp_path / f'step{number}', words)
