"""The bundled network: total variation is where it starts, the field has the last word."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bidsapp.core import Sample
from bidsapp.learn.predict import predict
from bidsapp.modalities.gre.learn.head import HEAD, loss
from bidsapp.modalities.gre.learn.input import turned
from bidsapp.modalities.gre.networks.dipole_unet import over_nyquist, told
from bidsapp.modalities.gre.physics import inversion
from bidsapp.modalities.gre.physics.agreement import nrmse
from bidsapp.modalities.gre.physics.dipole import convolved, dipole, enlarged
from bidsapp.modalities.gre.physics.maps import MARGIN, transfer_of
from bidsapp.modalities.gre.physics.seen import seen
from bidsapp.networks.registry import build
from bidsapp.physics.geometry import turned_voxels
from bidsapp.physics.operators import Padded

SHAPE = (21, 18, 20)
VOXEL, B = (1.0, 1.2, 1.5), (0.0, 0.6, 0.8)
HEADS = {'susceptibility': 2}


def network():
    torch.manual_seed(0)
    return build('gre', 'dipole_unet', 6, HEADS, widths=[4, 8])


@pytest.fixture(scope='module')
def scene():
    """χ (X, Y, Z), mask, and image and context of its field."""
    chi = np.zeros(SHAPE, np.float32)
    chi[6:10, 6:11, 7:12], chi[12:15, 8:12, 8:10] = 0.1, -0.06
    mask = np.zeros(SHAPE, bool)
    mask[2:-2, 2:-2, 2:-2] = True
    chi = np.where(mask, chi - chi[mask].mean(), 0).astype(np.float32)
    rng = np.random.default_rng(0)
    noise = np.full(SHAPE, 1e-3)
    field = dipole(SHAPE, VOXEL, B)(torch.from_numpy(chi)).numpy() + rng.normal(size=SHAPE) * noise
    return chi, mask, *seen(field, noise, mask, VOXEL, B)


def batch(image, context):
    return image[None], {k: v[None] for k, v in context.items()}


def test_it_begins_with_the_start_and_a_step_towards_the_field(scene):
    chi, mask, image, context = scene
    net = network().eval()
    out = net(*batch(image, context))[0]
    found, start = out[0].detach().numpy(), image[1].numpy()
    assert nrmse(found, chi, mask) < 1.1 * nrmse(start, chi, mask)
    assert np.isfinite(out.detach().numpy()).all()


def test_the_last_layer_is_the_closed_form_of_the_whole_map(scene):
    """Written with what the start leaves, which a patch can hold."""
    _, _, image, context = scene
    net = network()
    c = 0.01 * torch.randn(1, 1, *SHAPE, generator=torch.Generator().manual_seed(1))
    all_of_it = torch.ones(1, 1, *SHAPE)
    stepped = net.body.consistent(c, all_of_it, *batch(image, context))
    padded = enlarged(SHAPE, MARGIN)
    frame, a = Padded(SHAPE, padded), transfer_of(padded, VOXEL, B).float()
    k = over_nyquist(padded, VOXEL).float()
    strength = net.body.regularisation(batch(image, context)[1], k[None, None])[0, 0]
    assert strength[0, 0, 0] < strength[4, 4, 4]  # fine detail is trusted less
    trusted = frame(image[4] * image[5].clamp(0, 1))
    # The start reaches beyond the image, so its field is taken from what it leaves.
    field = frame(image[2]) + convolved(frame(image[1]), a)
    whole = inversion.consistent(frame(image[1] + c[0, 0]), field, a, trusted, strength)
    assert torch.allclose(image[1] + stepped[0, 0], frame.adjoint(whole), atol=1e-5)


@pytest.mark.parametrize('wrong', [{'voxel_mm': (1.5, 1.2, 1.0)}, {'b': (0.8, 0.6, 0.0)}])
def test_a_wrong_geometry_makes_it_worse(scene, wrong):
    """From nothing, the step towards the field is the closed form of it."""
    chi, mask, image, context = scene
    net, nothing = network(), torch.zeros(1, 1, *SHAPE)
    net.body.strength.data[:] = -1.0  # a strong step
    image = torch.stack([image[0], nothing[0, 0], image[0], *image[3:]])
    told_wrong = {**context, **{k: torch.tensor(v) for k, v in wrong.items()}}
    error = [
        nrmse(
            net.body.consistent(nothing, 1 + nothing, *batch(image, own))[0, 0].detach().numpy(),
            chi,
            mask,
        )
        for own in (context, told_wrong)
    ]
    assert error[1] > 1.2 * error[0]


def test_what_is_told_of_the_geometry_turns_with_it(scene):
    _, _, image, context = scene
    turn = ((0, -1, 0), (0, 0, 1), (1, 0, 0))
    moved, own = turned(*batch(image, context), turn)
    assert moved.shape == (1, 6, 18, 20, 21)
    assert own['voxel_mm'].tolist() == [pytest.approx((1.2, 1.5, 1.0))]
    assert own['b'].tolist() == [pytest.approx((-0.6, 0.8, 0.0))]
    net = network()
    c = 0.01 * torch.randn(1, 1, *SHAPE, generator=torch.Generator().manual_seed(1))
    share = torch.rand(1, 1, *SHAPE, generator=torch.Generator().manual_seed(2))
    here = net.body.consistent(c, share, *batch(image, context))
    there = net.body.consistent(turned_voxels(c, turn), turned_voxels(share, turn), moved, own)
    assert torch.allclose(turned_voxels(here, turn), there, atol=1e-6)


def test_the_sign_of_b_is_nothing(scene):
    _, _, image, context = scene
    mirrored = {**context, 'b': -context['b']}
    assert torch.equal(told(batch(image, context)[1]), told(batch(image, mirrored)[1]))


def test_all_of_it_learns(scene):
    chi, mask, image, context = scene
    net = network()
    target, inside = torch.from_numpy(chi)[None, None], torch.from_numpy(mask)[None, None]
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    losses = []
    for _ in range(6):
        value = loss(net(*batch(image, context)), target, inside)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(float(value.detach()))
    assert losses[-1] < losses[0]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_a_whole_head_is_never_cut(scene):
    _, mask, image, context = scene
    net = network().eval()
    sample = Sample(image, torch.from_numpy(mask)[None], np.eye(4), context=context)
    with torch.inference_mode():
        whole = net(*batch(image, context))[0]
    assert torch.allclose(predict(net, sample, whole=False), whole, atol=1e-5)


def test_a_single_step_has_the_filter_on_both_sides(scene):
    chi, mask, *_ = scene
    noise = np.full(SHAPE, 1e-3)
    field = dipole(SHAPE, VOXEL, B)(torch.from_numpy(chi)).numpy() + 3.0
    image, context = seen(field, noise, mask, VOXEL, B, radius=2.0)
    assert image[4].sum() < mask.sum()
    assert not image[0][image[4] == 0].any()
    out = network().eval()(*batch(image, context))[0, 0].detach().numpy()
    assert nrmse(out, chi, image[4].numpy() > 0) < 60


def test_heads_are_of_two_channels():
    with pytest.raises(ValueError, match='heads of 2'):
        build('gre', 'dipole_unet', 6, {'susceptibility': 1})
    assert HEAD.channels == 2
