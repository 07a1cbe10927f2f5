"""Gradient echoes of a simulated head through `participant`: all that is promised, valid, right."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from bidsapp.bids.write import write_json
from bidsapp.cli import main
from bidsapp.learn.cards import load_card
from bidsapp.learn.checkpoint import checkpoint_of, save
from bidsapp.modalities.gre.physics.agreement import nrmse, slope
from bidsapp.modalities.gre.physics.seen import CHANNELS
from bidsapp.modalities.gre.simulate import files, scan
from bidsapp.networks.registry import build
from bidsapp.physics import brain
from bidsapp.simulate.acquisition import oblique
from bidsapp.simulate.t1w import field_of_view

PROTOCOL = scan.Protocol(echo_times=(0.005, 0.012, 0.019))
#: Voxels that are iron-rich, myelinated and fluid, by their truth in ppm.
REGIONS = ((1, 'Iron', 0.05, 1.0), (2, 'Myelin', -0.5, -0.02), (3, 'Fluid', -0.004, 0.004))
MAPS = ('reference', 'tkd', 'tikhonov')


@pytest.fixture(scope='module')
def simulated(head):
    """A tilted scan of few voxels."""
    grid = field_of_view(head, oblique(torch.tensor([12.0, 0, 5]), 'LAS'), 4.0, below=10.0)
    return scan.simulate_scan(head, grid, PROTOCOL, torch.Generator().manual_seed(3))


@pytest.fixture(scope='module')
def labels(simulated):
    """(X, Y, Z) the regions."""
    chi, inside = simulated.chi.numpy(), simulated.brain.numpy()
    found = np.zeros(chi.shape, np.uint8)
    for index, _, low, high in REGIONS:
        found[inside & (chi > low) & (chi < high)] = index
    return found


@pytest.fixture(scope='module')
def out(simulated, labels, tmp_path_factory):
    """01 of three echoes with regions, 02 of one echo, 03 of a magnitude alone; one call."""
    root = tmp_path_factory.mktemp('gre')
    raw, dseg = root / 'bids', root / 'dseg'
    write_json(raw / 'dataset_description.json', {'Name': 'Heads', 'BIDSVersion': '1.10.0'})
    files.write_scan(raw / 'sub-01', 'sub-01', simulated, 'siemens')
    last = replace(PROTOCOL, echo_times=PROTOCOL.echo_times[-1:])
    one = replace(simulated, signal=simulated.signal[-1:], protocol=last)
    files.write_scan(raw / 'sub-02', 'sub-02', one, 'alternating')
    for path in files.write_scan(raw / 'sub-03', 'sub-03', one):
        if 'part-phase' in path.name:
            path.unlink()
    path = dseg / 'sub-01/anat/sub-01_dseg.nii.gz'
    path.parent.mkdir(parents=True)
    nib.save(nib.Nifti1Image(labels, simulated.grid.affine.double().numpy()), path)
    rows = ''.join(f'{index}\t{name}\n' for index, name, *_ in REGIONS)
    path.with_name('sub-01_dseg.tsv').write_text(f'index\tname\n{rows}')
    assert main([
        str(raw), str(root / 'out'), 'participant', '--nprocs', '1', '--device', 'cpu',
        '-d', f'dseg={dseg}',
    ]) == 0  # fmt: skip
    return root / 'out'


def load(out, name, sub='01', folder='anat'):
    return nib.load(out / f'sub-{sub}/{folder}/sub-{sub}_{name}.nii.gz').get_fdata()


@pytest.fixture(scope='module')
def core(out, simulated):
    """(X, Y, Z) what is brain, 8 mm below its surface."""
    both = simulated.brain.numpy() & (load(out, 'desc-brain_mask') > 0)
    return brain.eroded(both, simulated.grid.affine.double().numpy(), 8)


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    """A small network that knows the physics alone; its card has it tested with several echoes."""
    torch.manual_seed(0)
    heads, options = {'susceptibility': 2}, {'widths': [4, 8]}
    network = build('gre', 'dipole_unet', len(CHANNELS), heads, **options)
    card = {
        'modality': 'gre', 'name': 'toy', 'version': 'v1', 'heads': heads,
        'network': {'name': 'dipole_unet', 'channels_in': len(CHANNELS), 'options': options},
        'tested_ranges': {'voxel_mm': [1, 4.5], 'tilt_deg': [0, 50], 'echoes': [2, 9]},
    }  # fmt: skip
    return save(checkpoint_of(network, card), tmp_path_factory.mktemp('model') / 'v1')


@pytest.fixture(scope='module')
def predicted(out, model):
    """The same with the network's maps of 01 and 02."""
    folder = out.with_name('predicted')
    shutil.copytree(out, folder)
    assert main([
        str(out.parent / 'bids'), str(folder), 'participant', '--nprocs', '1', '--device', 'cpu',
        '-d', f'dseg={out.parent / "dseg"}', '--model', str(model),
    ]) == 0  # fmt: skip
    return folder


def test_the_validator_accepts_it(predicted):
    validator = Path(sys.executable).with_name('bids-validator-deno')
    if not validator.is_file():
        pytest.skip('bids-validator-deno is not installed in this environment')
    said = subprocess.run(
        [validator, predicted, '--ignoreWarnings'], capture_output=True, text=True
    )
    assert said.returncode == 0, said.stdout


@pytest.mark.parametrize('name', MAPS)
def test_every_map_is_the_truth_to_a_good_part(out, simulated, core, name):
    """χ = 0 everywhere would be wrong by 100 per cent; voxels of 4 mm hold tissues mixed."""
    found, truth = load(out, f'desc-{name}_Chimap'), simulated.chi.numpy()
    assert nrmse(found, truth, core) < 75
    assert 0.4 < slope(found, truth, core) < 1.1


def test_one_echo_in_alternating_slices_gives_the_same_susceptibility(out, core):
    """To the noise of one echo; and there is nothing to tell its decay by."""
    one, all_of_them = (load(out, 'desc-reference_Chimap', sub) for sub in ('02', '01'))
    assert nrmse(one, all_of_them, core) < 60
    assert slope(one, all_of_them, core) > 0.6
    assert not list(out.rglob('sub-02_R2starmap*'))
    assert load(out, 'desc-swi_T2starw', '02').any()


def test_of_a_magnitude_alone_nothing_is_promised(out):
    assert not (out / 'sub-03').exists()


def test_what_is_iron_decays_faster_and_is_darker_where_it_is_weighted(out, labels, core):
    rate = load(out, 'R2starmap')
    iron, fluid = (core & (labels == index) for index in (1, 3))
    assert rate[iron].mean() > rate[fluid].mean() + 5
    weighted, lowest = (load(out, f'desc-{d}_T2starw') for d in ('swi', 'minip'))
    assert weighted[iron].mean() < weighted[fluid].mean()
    assert (lowest <= weighted + 1e-6).all()


def test_regions_stand_in_a_table_with_their_noise(out, simulated, labels):
    """In their order, and surer than they are far apart; the noise is that of the phase alone."""
    table = out / 'sub-01/anat/sub-01_desc-susceptibility_stats.tsv'
    with table.open(encoding='utf-8', newline='') as stream:
        rows = {row['name']: row for row in csv.DictReader(stream, delimiter='\t')}
    mean = {name: float(row['mean']) for name, row in rows.items()}
    assert mean['Iron'] > mean['Fluid'] + 0.02
    assert mean['Fluid'] > mean['Myelin']
    for name, index in (('Iron', 1), ('Myelin', 2)):
        assert 0 < float(rows[name]['deviation_of_mean']) < 0.003
        assert int(rows[name]['voxels']) <= (labels == index).sum()
    about = json.loads(table.with_suffix('.json').read_text())
    assert set(next(iter(rows.values()))) <= set(about)
    assert about['Sources'][0] == 'bids:dseg:sub-01/anat/sub-01_dseg.nii.gz'
    assert not list(out.rglob('sub-02*_stats.tsv'))


def test_a_sidecar_says_what_a_map_rests_on(out):
    path = out / 'sub-01/anat/sub-01_desc-reference_Chimap.json'
    said = json.loads(path.read_text())
    assert said['Units'] == 'ppm'
    assert said['SusceptibilityReference'] == 'mean of the mask'
    assert said['ReferenceMethod'] == 'single-step'
    assert said['EchoTimes'] == list(PROTOCOL.echo_times)
    assert np.linalg.norm(said['B0_dir']) == pytest.approx(1, abs=1e-4)
    assert {'ReferenceOffset', 'Regularization', 'Phase', 'BackgroundRemoval'} <= set(said)


def test_the_page_shows_it_and_says_which_map_to_use(out):
    text = (out / 'sub-01.html').read_text()
    assert 'that of total variation is the one to use' in text
    assert 'Magnetic susceptibility' in text
    for name in ('comparison_Chimap', 'brain_mask', 'phase_fieldmap', 'both_fieldmap',
                 'residual_fieldmap', 'swi_T2starw'):  # fmt: skip
        assert (out / f'sub-01/figures/sub-01_desc-{name}.png').is_file()
        assert f'sub-01_desc-{name}.png' in text


def test_a_network_makes_a_map_and_says_how_sure_it_is(predicted, simulated, core):
    """Nothing is prepared or derived again for it."""
    found, doubt = (load(predicted, f'desc-{d}_Chimap') for d in ('unet', 'uncertainty'))
    truth, known = simulated.chi.numpy(), load(predicted, 'desc-reliable_mask') > 0
    assert nrmse(found, truth, core) < 75
    assert slope(found, truth, core) > 0.4
    assert (doubt[core] > 0).all()
    assert not found[~known].any()
    assert not doubt[~known].any()
    assert found[found != 0].mean() == pytest.approx(0, abs=1e-5)
    for path in (predicted.with_name('out') / 'sub-01').rglob('*.nii.gz'):
        same = predicted / path.relative_to(predicted.with_name('out'))
        assert same.stat().st_mtime_ns == path.stat().st_mtime_ns


def test_a_prediction_says_by_which_model_and_whether_that_was_tested_for_it(predicted, model):
    said = {
        (sub, d): json.loads(
            (predicted / f'sub-{sub}/anat/sub-{sub}_desc-{d}_Chimap.json').read_text()
        )
        for sub in ('01', '02') for d in ('unet', 'uncertainty')
    }  # fmt: skip
    for own in said.values():
        assert own['ModelSHA256'] == load_card(model)['sha256']
        assert own['Units'] == 'ppm'
    map_of_three = said['01', 'unet']
    assert map_of_three['WithinTestedRange'] is True
    assert map_of_three['SusceptibilityReference'] == 'mean of the mask'
    assert 'ReferenceOffset' in map_of_three
    assert said['02', 'unet']['WithinTestedRange'] is False
    assert '1 echoes' in said['02', 'unet']['Warnings'][0]


def test_the_page_shows_the_network_and_where_it_is_not_to_be_used(predicted):
    one, other = ((predicted / f'sub-{sub}.html').read_text() for sub in ('01', '02'))
    assert 'Standard deviation: the error that the network expects of its own value.' in one
    assert 'that of total variation is the one to use' not in one
    assert 'the map of total variation is the one to use' in other


def test_regions_of_the_network_stand_in_a_table_of_their_own(predicted):
    table = predicted / 'sub-01/anat/sub-01_desc-susceptibilityunet_stats.tsv'
    with table.open(encoding='utf-8', newline='') as stream:
        rows = {row['name']: row for row in csv.DictReader(stream, delimiter='\t')}
    mean = {name: float(row['mean']) for name, row in rows.items()}
    assert mean['Iron'] > mean['Fluid'] > mean['Myelin']
    assert all(float(row['stated_deviation']) > 0 for row in rows.values())
    about = json.loads(table.with_suffix('.json').read_text())
    assert set(next(iter(rows.values()))) <= set(about)
    assert about['ModelName'] == 'toy'
    assert 'bids:dseg:sub-01/anat/sub-01_dseg.nii.gz' in about['Sources']
    assert not list(predicted.rglob('sub-02*_stats.tsv'))


def test_it_is_fine_tuned_on_maps_of_a_lab(predicted, simulated, model):
    """By two steps; it stays the network that it was, and is compared with total variation."""
    root = predicted.parent
    for folder in ('bids', 'predicted'):
        cloned(root / folder, 'sub-01', 'sub-04')
    for sub in ('01', '02', '04'):
        path = root / f'chimap/sub-{sub}/anat/sub-{sub}_Chimap.nii.gz'
        path.parent.mkdir(parents=True)
        affine = simulated.grid.affine.double().numpy()
        nib.save(nib.Nifti1Image(simulated.chi.numpy(), affine), path)
    assert main([
        str(root / 'bids'), str(predicted), 'group', '--tasks', 'susceptibility', '--steps', '2',
        '--init', str(model), '-d', f'chimap={root / "chimap"}', '--nprocs', '1', '--device', 'cpu',
    ]) == 0  # fmt: skip
    card = load_card(predicted / 'models/susceptibility/v1')
    assert card['network'] == load_card(model)['network']
    assert card['started_from']['sha256'] == load_card(model)['sha256']
    assert card['plan']['steps'] == 2
    with (predicted / 'group_susceptibility.tsv').open(encoding='utf-8', newline='') as stream:
        rows = list(csv.DictReader(stream, delimiter='\t'))
    assert {row['model'] for row in rows} == {'finetuned', 'classical'}
    test = {row['model']: float(row['value']) for row in rows
            if (row['split'], row['metric']) == ('test', 'nrmse')}  # fmt: skip
    assert 0 < test['finetuned'] < 100
    assert 0 < test['classical'] < 100


def cloned(root, one, other):
    """What a participant has, as that of another."""
    for path in [path for path in (root / one).rglob('*') if path.is_file()]:
        place = root / path.relative_to(root).as_posix().replace(one, other)
        place.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == '.json':
            place.write_text(path.read_text().replace(one, other))
        else:
            shutil.copy2(path, place)


def test_another_reference_moves_the_maps_and_nothing_else(out, simulated, labels):
    """Only the maps are made anew; the region that is named is 0 then."""
    before, field = load(out, 'desc-reference_Chimap'), out / 'sub-01/fmap'
    times = {path: path.stat().st_mtime_ns for path in field.iterdir()}
    root = out.parent
    assert main([
        str(root / 'bids'), str(out), 'participant', '--participant-label', '01', '--nprocs', '1',
        '--device', 'cpu', '-d', f'dseg={root / "dseg"}', '--reference', 'fluid',
    ]) == 0  # fmt: skip
    assert {path: path.stat().st_mtime_ns for path in field.iterdir()} == times
    after, mask = load(out, 'desc-reference_Chimap'), load(out, 'desc-reliable_mask') > 0
    assert after[mask & (labels == 3)].mean() == pytest.approx(0, abs=1e-6)
    moved = (after - before)[mask]
    assert np.ptp(moved) < 1e-5
    said = json.loads((out / 'sub-01/anat/sub-01_desc-reference_Chimap.json').read_text())
    assert said['SusceptibilityReference'] == 'mean of Fluid'
