"""A simulated gradient echo: its truth is consistent, and the chain finds it again."""

from __future__ import annotations

import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch

from bidsapp.modalities.gre.physics import echoes, inversion, quality, relaxation
from bidsapp.modalities.gre.physics.agreement import nrmse, xsim
from bidsapp.modalities.gre.physics.dipole import b0_direction, dipole, enlarged, kspace
from bidsapp.modalities.gre.simulate import files, matter, scan
from bidsapp.physics import brain
from bidsapp.physics.operators import Padded
from bidsapp.physics.phase import wrapped
from bidsapp.simulate.acquisition import oblique
from bidsapp.simulate.grids import Grid
from bidsapp.simulate.t1w import field_of_view

PROTOCOL = scan.Protocol()


@pytest.fixture(scope='module')
def grid(head):
    return field_of_view(head, oblique(torch.tensor([12.0, 0, 5]), 'RAS'), 6.0, below=10.0)


@pytest.fixture(scope='module')
def simulated(head, grid):
    return scan.simulate_scan(head, grid, PROTOCOL, torch.Generator().manual_seed(7))


@pytest.fixture(scope='module')
def measured(simulated):
    """(field, affine) of the simulated scan."""
    signal, affine = simulated.signal.numpy(), simulated.grid.affine.double().numpy()
    field = echoes.total_field(
        np.angle(signal), np.abs(signal), PROTOCOL.echo_times, simulated.brain.numpy(), affine
    )
    return field, affine


def test_bone_air_veins_and_iron_are_there(simulated):
    chi, inside = simulated.chi, simulated.brain
    assert chi.min() < -1.5
    assert chi.max() > 9
    assert chi[inside].abs().median() < 0.05
    assert 1 < float(inside.sum()) * 0.216 / 1000 < 2.5  # litres
    assert simulated.local[~inside].abs().max() > 0
    assert simulated.local[inside].std() < 0.2 * simulated.total[inside].std()


def test_the_field_is_that_of_the_sources(simulated):
    """On the scan's own grid, coarser than that of the simulation, the local field is D χ."""
    affine = simulated.grid.affine.double().numpy()
    inside = simulated.brain
    chi = (simulated.chi - simulated.chi[inside].mean()) * inside
    field = dipole(chi.shape, simulated.grid.spacing, b0_direction(affine).tolist())(chi)
    core = torch.as_tensor(brain.eroded(inside.numpy(), affine, 15))
    found, wanted = (x[core] - x[core].mean() for x in (field, simulated.local))
    assert float((found * wanted).sum() / (found.norm() * wanted.norm())) > 0.85


def test_the_chain_finds_the_total_field(simulated, measured):
    field, affine = measured
    core = brain.eroded(simulated.brain.numpy(), affine, 10)
    error = (field.hertz / PROTOCOL.imaging_mhz - simulated.total.numpy())[core]
    assert np.median(np.abs(error - np.median(error))) < 0.004
    assert field.sigma == pytest.approx(simulated.sigma, rel=0.6)


def test_the_chain_finds_r2star(simulated, measured):
    field, affine = measured
    core = brain.eroded(simulated.brain.numpy(), affine, 15)
    found = relaxation.r2star(
        simulated.signal.abs().numpy(), PROTOCOL.echo_times, core, field.sigma
    )
    ratio = found[core] / simulated.r2star.numpy()[core].clip(1)
    assert np.median(ratio) == pytest.approx(1, abs=0.12)  # large voxels dephase


def test_susceptibility_comes_back_from_the_local_field(simulated, measured):
    field, affine = measured
    inside = simulated.brain
    frame = Padded(tuple(inside.shape), enlarged(inside.shape, 1.25))
    voxel_mm = simulated.grid.spacing
    local = frame((simulated.local * inside).float())
    d = kspace(frame.padded, voxel_mm, b0_direction(affine).tolist())
    weights = frame(inside.float())
    noise = float(np.median(field.noise[inside.numpy()])) / PROTOCOL.imaging_mhz
    strength = inversion.strength_for(noise, voxel_mm)
    chi = inversion.total_variation(local, d, weights, voxel_mm, strength, iterations=60).chi
    found, truth = frame.H(chi).numpy(), simulated.chi.numpy()
    core = brain.eroded(inside.numpy(), affine, 9)  # no bone in part of a voxel
    assert nrmse(found, truth, core) < 40
    assert xsim(found, truth, core) > 0.8
    # Too coarse a scan for a verdict, but not for the contrast of iron.
    sign = quality.phase_sign(found, simulated.r2star.numpy(), inside.numpy(), affine)
    assert sign.contrast > 0.02


def test_a_scanner_of_the_other_sign_turns_the_phase(head, grid, simulated):
    other = scan.simulate_scan(
        head, grid, replace(PROTOCOL, sign=-1), torch.Generator().manual_seed(7)
    )
    inside = simulated.brain
    difference = other.signal[0].angle() + simulated.signal[0].angle()
    assert wrapped(difference[inside].numpy()) == pytest.approx(0, abs=0.5)
    assert torch.equal(other.chi, simulated.chi)  # the same seed gives the same head


def test_what_no_susceptibility_explains_is_as_spread_as_asked(head, grid, simulated):
    other = scan.simulate_scan(
        head, grid, replace(PROTOCOL, unexplained=0.2), torch.Generator().manual_seed(7)
    )
    inside = simulated.brain
    left = (other.total - simulated.total)[inside]
    share = float(left.std() / simulated.local[inside].std())
    assert 0.1 < share < 0.3
    assert torch.equal(other.chi, simulated.chi)


def test_a_tube_has_its_volume():
    grid = Grid((40, 40, 40), torch.diag(torch.tensor([1.0, 1, 1, 1])))
    line = torch.stack(
        [torch.full((61,), 20.2), torch.full((61,), 19.7), torch.linspace(5, 35, 61)]
    )
    share = matter.tube(line, torch.full((61,), 3.0), grid)
    assert float(share[:, :, 20].sum()) == pytest.approx(np.pi * 9, rel=0.05)
    assert share.max() == 1
    thin = matter.tube(line, torch.full((61,), 0.25), grid)
    assert float(thin[:, :, 20].sum()) == pytest.approx(np.pi / 16, rel=0.5)


@pytest.mark.parametrize('encoding', files.ENCODINGS)
def test_written_phase_is_read_again(simulated, encoding, tmp_path):
    images = files.write_scan(tmp_path, 'sub-01', simulated, encoding)
    assert len(images) == 2 * len(PROTOCOL.echo_times)
    phases = [path for path in images if 'part-phase' in path.name]
    read = np.stack([nib.load(path).get_fdata() for path in phases])
    radians, _ = echoes.phase_radians(read)
    radians, turned = echoes.slices_turned_back(radians, simulated.signal.abs().numpy())
    assert turned == (encoding == 'alternating')
    assert np.abs(wrapped(radians - simulated.signal.angle().numpy())).max() < 0.01
    sidecar = json.loads(
        phases[1].with_name(phases[1].name.replace('.nii.gz', '.json')).read_text()
    )
    assert sidecar['EchoTime'] == PROTOCOL.echo_times[1]


def test_truth_is_written_on_the_grid_of_the_scan(simulated, tmp_path):
    files.write_truth(tmp_path, 'sub-01', simulated)
    image = nib.load(tmp_path / 'anat/sub-01_desc-truth_Chimap.nii.gz')
    assert image.get_fdata() == pytest.approx(simulated.chi.numpy(), abs=1e-5)
    assert np.abs(image.affine - simulated.grid.affine.numpy()).max() < 1e-4
