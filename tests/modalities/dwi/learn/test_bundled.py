"""The weights in the package: whole, small, said what they are, and worth having."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bidsapp import registry
from bidsapp.core import Sample
from bidsapp.learn.cards import BUNDLED, bundled_models, load_card
from bidsapp.learn.checkpoint import load
from bidsapp.learn.metrics import angular_errors
from bidsapp.learn.predict import network_of, predict_tta, split_heads, turns_of
from bidsapp.modalities.dwi.learn.losses import axis_and_spread, signal_errors
from bidsapp.modalities.dwi.physics.diffusion import fit_tensor
from bidsapp.modalities.dwi.physics.gradients import GradientTable
from bidsapp.modalities.dwi.physics.turns import turned_channels
from bidsapp.modalities.dwi.simulate import scanned
from bidsapp.modalities.dwi.simulate.blocks import make_block
from bidsapp.modalities.dwi.simulate.corruption import Corruption, Table, spread_directions
from bidsapp.modalities.dwi.simulate.fibres import draw_bundles
from bidsapp.modalities.dwi.simulate.model_mismatch import ModelMismatch
from bidsapp.modalities.dwi.simulate.tissue_parameters import draw_tissue_parameters
from bidsapp.physics.geometry import turned_voxels
from bidsapp.physics.template import template_maps
from bidsapp.simulate.anatomy import draw_head, head_template
from bidsapp.simulate.grids import Grid

SIDE, VOXEL = 32, 2.6
TASKS = [task for task in registry.tasks_of('dwi') if task.truth is not None]
NAMES = [task.name for task in TASKS]


@pytest.fixture(scope='module')
def folder():
    found = {name: at for name, at in bundled_models().items() if name in NAMES}
    assert set(found) == set(NAMES)
    (only,) = set(found.values())
    return only


@pytest.fixture(scope='module')
def network(folder):
    return network_of(load(folder), NAMES)


@pytest.fixture(scope='module')
def noisy():
    """An ordinary head, 15 directions at SNR 15: (image, truth (3, …), tensor's axes (V, 3))."""
    _, gm, wm, csf, affine = template_maps(2.0)
    template = head_template(*(torch.from_numpy(a) for a in (gm, wm, csf, affine)))
    generator = torch.Generator().manual_seed(3)
    head, bundles = draw_head(template, generator), draw_bundles(template, generator)
    place = torch.diag(torch.tensor([VOXEL, VOXEL, VOXEL, 1.0]))
    place[:3, 3] = torch.tensor([0.0, -18.0, 12.0]) - VOXEL * (SIDE - 1) / 2
    block = make_block(head, bundles, Grid((SIDE,) * 3, place))
    u = spread_directions(15, generator, even=True)
    table = Table(torch.cat([torch.zeros(2, 3), u]), torch.tensor([0.0, 0.0] + [1000.0] * 15))
    still = torch.eye(4).expand(17, 4, 4)
    noise = Corruption(still, None, 1, torch.ones(17, SIDE), 0.0, torch.ones((SIDE,) * 3), 1 / 15,
                       None, (0.0,) * 3, 1.0, 17, (1.0,) * 3)  # fmt: skip
    seen = {}
    original = scanned.canonical

    def note(volumes, *rest):
        seen['volumes'] = volumes
        return original(volumes, *rest)

    model_mismatch = ModelMismatch(None, (0.0, 0.0, 0.0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scanned, 'canonical', note)
        tissue_parameters = draw_tissue_parameters(block, generator)
        scan = scanned.scan_block(
            scanned.ScanParameters(
                block, tissue_parameters, table, noise, model_mismatch, generator
            )
        )
    gtab = GradientTable(table.bvecs.double().numpy(), table.bvals.double().numpy())
    lone = scan.truth['fibres'].unflatten(0, (3, 3)).norm(dim=1).sum(0) == 1
    tensor = fit_tensor(seen['volumes'][:, lone].numpy(), gtab).direction
    return scan, lone, torch.from_numpy(tensor).float()


@pytest.fixture(scope='module')
def outputs_of(folder, network):
    """A head's canonical input → each task's channels, as `participant` predicts."""
    heads, turns = [task.head for task in TASKS], turns_of(load_card(folder))
    turned = registry.input('dwi').turned

    def predicted(image):
        sample = Sample(image, torch.ones(1, *image.shape[1:], dtype=torch.bool), np.eye(4))
        output = predict_tta(network, sample, heads, turns, turned)
        return split_heads(output, {head.name: head.channels for head in heads})

    return predicted


def test_all_heads_stand_in_one_small_folder_with_a_card(folder):
    assert sum(f.stat().st_size for f in BUNDLED.rglob('*') if f.is_file()) <= 20e6
    assert not [f for f in BUNDLED.rglob('*') if f.suffix in ('.pt', '.pth', '.pkl', '.ckpt')]
    card = load_card(folder)
    for field in ('training', 'input', 'tested_ranges', 'metrics', 'command', 'seed', 'license'):
        assert card[field] or card[field] == 0, field
    assert {row['task'] for row in card['metrics']} == set(NAMES)
    assert all({'mean', 'sd', 'n'} <= row.keys() for row in card['metrics'])


def test_directions_are_nearer_to_the_truth_than_the_tensors(outputs_of, noisy):
    scan, lone, tensor = noisy
    truth = scan.truth['fibres'][:3, lone].T
    axes, _ = axis_and_spread(outputs_of(scan.image)['orientation'][:6, lone].T)
    ours, theirs = (float(angular_errors(a, truth).median()) for a in (axes, tensor))
    assert ours < 0.7 * theirs


def test_what_is_restored_is_nearer_to_the_clean_scan(outputs_of, noisy):
    scan = noisy[0]
    said = outputs_of(scan.image)['restore'][None]
    left, before = signal_errors(said, scan.truth['correction'][None], scan.mask[None])
    assert float(left) < 0.8 * float(before)


def test_it_knows_where_it_errs(outputs_of, noisy):
    """Its uncertainty is a root mean square, so it is judged by that, where there are fibres."""
    scan, _, _ = noisy
    white = scan.truth['fibres'][:3].norm(dim=0) > 0.5
    truth = scan.truth['fibres'][:3, white].T
    axes, degrees = axis_and_spread(outputs_of(scan.image)['orientation'][:6, white].T)
    error = angular_errors(axes, truth)[degrees.argsort()]
    rms = [float(part.square().mean().sqrt()) for part in error.tensor_split(3)]
    assert rms[0] < rms[1] < rms[2]
    assert rms[2] > 1.5 * rms[0]


def test_a_mirrored_head_gives_mirrored_directions(outputs_of, noisy):
    scan, lone, _ = noisy
    mirror = ((-1, 0, 0), (0, 1, 0), (0, 0, 1))
    there = outputs_of(turned_channels(scan.image.clone(), mirror))['orientation']
    back = turned_voxels(there[:6], mirror)[:, lone].T
    axes, _ = axis_and_spread(outputs_of(scan.image)['orientation'][:6, lone].T)
    other, _ = axis_and_spread(back)
    other = other * torch.tensor([-1.0, 1.0, 1.0])
    assert float(angular_errors(axes, other).median()) < 3
