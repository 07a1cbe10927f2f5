"""The dMRI of a written dataset, read back as anybody would read it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bidsapp.bids.scans import read_scan
from bidsapp.modalities.dwi.bids.fieldmaps import find_fieldmaps
from bidsapp.modalities.dwi.physics.gradients import from_fsl, tensor_design
from bidsapp.physics.geometry import grid_axes
from bidsapp.simulated import main, write_dataset


@pytest.fixture(scope='module')
def dataset(simulated):
    return simulated


@pytest.fixture(scope='module')
def distorted(coarse_design, tmp_path_factory):
    out = tmp_path_factory.mktemp('simulated') / 'distorted'
    scans = {'dwi': replace(coarse_design.scans['dwi'], susceptibility=50.0, dropout=0.05)}
    design = replace(coarse_design, participants=1, scans=scans)
    write_dataset(out, design, say=lambda line: None)
    return out


def truth_of(dataset, label, name):
    return nib.load(dataset / 'derivatives' / 'truth' / label / 'dwi' / f'{label}_{name}.nii.gz')


def run_of(dataset, label):
    stem = dataset / label / 'dwi' / f'{label}_dwi'
    image = nib.load(f'{stem}.nii.gz')
    table = from_fsl(np.loadtxt(f'{stem}.bvec'), np.loadtxt(f'{stem}.bval'), image.affine)
    return image, table


def principal_directions(signal, table):
    """(V, 3) of a least-squares tensor fit to ``signal`` (V, N)."""
    fit = np.linalg.lstsq(tensor_design(table), np.log(np.maximum(signal, 1)).T, rcond=None)[0]
    xx, yy, zz, xy, xz, yz = fit[:6]
    tensors = np.stack([xx, xy, xz, xy, yy, yz, xz, yz, zz], -1).reshape(-1, 3, 3)
    return np.linalg.eigh(tensors)[1][..., -1]


@pytest.mark.parametrize(('label', 'handedness'), [('sub-01', 1), ('sub-02', -1)])
def test_a_tensor_finds_the_true_directions_in_oblique_frames(dataset, label, handedness):
    image, table = run_of(dataset, label)
    axes = grid_axes(image.affine)
    assert np.linalg.det(axes) == pytest.approx(handedness)
    assert np.abs(axes).max(0).min() < 0.9995  # oblique
    single = truth_of(dataset, label, 'seg-nfib_desc-truth_dseg').get_fdata() == 1
    truth = truth_of(dataset, label, 'model-truth_param-direction_dwimap').get_fdata()[single][
        :, :3
    ]
    found = principal_directions(image.get_fdata()[single], table)
    error = np.degrees(np.arccos(np.clip(np.abs((truth * found).sum(1)), 0, 1)))
    assert single.sum() > 200
    assert np.median(error) < 12


def test_signal_is_lowest_for_gradients_along_a_fibre_that_runs_left_right(dataset):
    for label in ('sub-01', 'sub-02'):
        image, table = run_of(dataset, label)
        single = truth_of(dataset, label, 'seg-nfib_desc-truth_dseg').get_fdata() == 1
        first = truth_of(dataset, label, 'model-truth_param-direction_dwimap').get_fdata()[..., :3]
        signal = image.get_fdata()[single & (np.abs(first[..., 0]) > 0.9)].mean(0)
        along_x = np.abs(table.bvecs[:, 0])
        assert signal[along_x > 0.85].max() < signal[(along_x < 0.3) & ~table.b0].min()


def test_truth_is_consistent_on_the_grid_of_the_run(dataset):
    image, _ = run_of(dataset, 'sub-02')
    maps = {
        name: truth_of(dataset, 'sub-02', name)
        for name in (
            'seg-tissue_desc-truth_dseg',
            'seg-tissue_desc-truth_probseg',
            'seg-nfib_desc-truth_dseg',
            'desc-brain_mask',
            'model-truth_param-direction_dwimap',
            'model-truth_param-icvf_dwimap',
            'model-truth_param-od_dwimap',
            'model-truth_param-isovf_dwimap',
        )
    }
    for volume in maps.values():
        assert volume.shape[:3] == image.shape[:3]
        np.testing.assert_array_equal(volume.affine, image.affine)
    tissue, fractions, n_fibres, mask, directions, icvf, od, isovf = (
        volume.get_fdata() for volume in maps.values()
    )
    np.testing.assert_array_equal(tissue > 0, mask > 0)
    np.testing.assert_array_equal((fractions.argmax(-1) + 1)[mask > 0], tissue[mask > 0])
    assert fractions.sum(-1).max() < 1.001
    lengths = np.linalg.norm(directions.reshape(*mask.shape, 3, 3), axis=-1)
    np.testing.assert_array_equal((lengths > 0).sum(-1), n_fibres)
    np.testing.assert_allclose(lengths[lengths > 0], 1, atol=1e-5)
    np.testing.assert_array_equal(n_fibres > 0, tissue == 2)
    shares = [(n_fibres[tissue == 2] == k).mean() for k in (1, 2, 3)]
    assert shares[0] > 0.4
    assert shares[1] > 0.1
    for values in (icvf, od):
        assert values[n_fibres > 0].min() > 0
        assert (values[n_fibres == 0] == 0).all()
    assert isovf[tissue == 3].mean() > 0.6 > 0.2 > isovf[tissue == 2].mean()


def test_tissues_differ_in_both_scans_in_the_order_of_their_contrast(dataset):
    for label in ('sub-01', 'sub-02'):
        image, _ = run_of(dataset, label)
        b0 = image.get_fdata()[..., 0]
        fractions = truth_of(dataset, label, 'seg-tissue_desc-truth_probseg').get_fdata()
        t1w = nib.load(dataset / label / 'anat' / f'{label}_T1w.nii.gz')
        index = np.argwhere((fractions > 0.85).any(-1))
        kind = fractions[tuple(index.T)].argmax(-1)
        world = nib.affines.apply_affine(image.affine, index)
        seen = nib.affines.apply_affine(np.linalg.inv(t1w.affine), world).round().astype(int)
        on_t1w, on_b0 = t1w.get_fdata()[tuple(seen.T)], b0[tuple(index.T)]
        gm, wm, csf = ((on_t1w[kind == k].mean(), on_b0[kind == k].mean()) for k in range(3))
        assert csf[0] < gm[0] < wm[0]
        assert csf[1] > gm[1] > wm[1]


def test_noise_is_rician_on_the_signal_and_has_the_asked_strength(dataset, coarse_design):
    image, _ = run_of(dataset, 'sub-01')
    data = image.get_fdata()
    fractions = truth_of(dataset, 'sub-01', 'seg-tissue_desc-truth_probseg').get_fdata()
    white = data[..., 0][fractions[..., 1] > 0.9 * fractions[..., 1].max()].mean()
    air = np.concatenate([data[:2, :2].ravel(), data[-2:, :2].ravel()])
    floor = white / coarse_design.scans['dwi'].snr * np.sqrt(np.pi / 2)
    assert air.mean() == pytest.approx(floor, rel=0.1)


def test_a_distorted_run_comes_with_a_reversed_pair_that_is_found(distorted):
    assert not list(distorted.glob('sub-*/fmap/*dir-AP*'))
    run = read_scan(distorted, distorted / 'sub-01' / 'dwi' / 'sub-01_dwi.nii.gz')
    other = read_scan(distorted, distorted / 'sub-01' / 'fmap' / 'sub-01_dir-PA_epi.nii.gz')
    assert nib.load(other.path).shape == (*nib.load(run.path).shape[:3], 2)
    np.testing.assert_array_equal(nib.load(other.path).affine, nib.load(run.path).affine)
    # The first participant's k-space runs towards the back of the head, its opposite forward.
    assert run.metadata['PhaseEncodingDirection'] == 'j-'
    assert other.metadata['PhaseEncodingDirection'] == 'j'
    hz = truth_of(distorted, 'sub-01', 'model-truth_param-offresonance_dwimap')
    np.testing.assert_array_equal(hz.affine, nib.load(run.path).affine)
    assert np.abs(hz.get_fdata()).max() > 35
    (found,), notes = find_fieldmaps(run, [run, other])
    assert found.kind == 'pair'
    assert found.readout_ratio == 1
    assert 'B0FieldIdentifier' in found.note
    assert not notes


def test_polarity_is_told(dataset):
    told = {
        json.loads((dataset / label / 'dwi' / f'{label}_dwi.json').read_text())[
            'PhaseEncodingDirection'
        ]
        for label in ('sub-01', 'sub-02')
    }
    assert told == {'j', 'j-'}


@pytest.mark.parametrize('part', ['.', 'derivatives/truth'])
def test_the_bids_validator_finds_no_error_in_a_distorted_one(distorted, part):
    validator = Path(sys.executable).with_name('bids-validator-deno')
    if not validator.is_file():
        pytest.skip('bids-validator-deno is not installed in this environment')
    done = subprocess.run(
        [validator, distorted / part, '--ignoreWarnings'],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    'options',
    [
        ['--bval', '20'],
        ['--dropout', '1'],
        ['--susceptibility', '-5'],
        ['--voxel-size', '0'],
        ['--snr', '0'],
    ],
)
def test_wrong_usage_exits_64(tmp_path, options):
    assert main([str(tmp_path / 'out'), *options]) == 64
    assert not (tmp_path / 'out').exists()
