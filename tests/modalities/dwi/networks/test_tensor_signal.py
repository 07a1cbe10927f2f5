"""The tensor's signal is what the canonical map would make of a Gaussian's measured signal."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bidsapp.modalities.dwi.networks.tensor_signal import TensorSignal
from bidsapp.modalities.dwi.physics.gradients import GradientTable
from bidsapp.modalities.dwi.physics.harmonics import fibonacci_hemisphere
from bidsapp.modalities.dwi.physics.qspace import (
    N_CHANNELS,
    N_SH,
    SLOT_CHANNELS,
    TENSOR_CHANNELS,
    canonical_channels,
    slot_of,
)

SIDE = 4


def channels(b, directions, axis, variance=1e-6):
    gtab = GradientTable(
        np.vstack([np.zeros(3), fibonacci_hemisphere(directions)]),
        np.r_[0.0, np.full(directions, b)],
    )
    cosine = gtab.bvecs[1:] @ np.asarray(axis)
    seen = np.exp(-1e-3 * b * (0.4 + 1.0 * cosine**2))[:, None, None, None]
    shape = (directions, SIDE, SIDE, SIDE)
    return canonical_channels(
        np.broadcast_to(seen, shape), np.ones(shape[1:]), np.ones(shape[1:], bool), gtab, variance,
        np.full(3, 2.0),
    )  # fmt: skip


@pytest.mark.parametrize('b', [900.0, 1000.0, 1400.0])
def test_from_many_directions_both_say_the_same(b):
    image = torch.from_numpy(channels(b, 90, (0.6, 0.0, 0.8)))[None]
    first = slot_of(b) * SLOT_CHANNELS
    tensor = TensorSignal()(image[:, TENSOR_CHANNELS], image[:, first + N_SH + 2])
    assert tensor.shape == (1, N_SH, SIDE, SIDE, SIDE)
    assert torch.allclose(tensor[:, :6], image[:, first : first + 6], atol=0.05)


def test_from_six_directions_the_tensor_is_nearer_to_what_many_say():
    whole, few = (torch.from_numpy(channels(1000.0, n, (0.0, 0.6, 0.8)))[None] for n in (90, 6))
    tensor = TensorSignal()(few[:, TENSOR_CHANNELS], few[:, N_SH + 2])
    wanted = whole[:, :6]
    assert (tensor[:, :6] - wanted).norm() < 0.5 * (few[:, :6] - wanted).norm()


def test_the_bins_own_b_is_found_beside_background():
    image = torch.zeros(1, N_CHANNELS, SIDE + 2, SIDE, SIDE)
    image[:, :, :SIDE] = torch.from_numpy(channels(700.0, 30, (1.0, 0.0, 0.0)))
    alone = TensorSignal()(image[:, TENSOR_CHANNELS, :SIDE], image[:, N_SH + 2, :SIDE])
    beside = TensorSignal()(image[:, TENSOR_CHANNELS], image[:, N_SH + 2])
    assert torch.allclose(alone, beside[:, :, :SIDE], atol=1e-6)


def test_a_network_in_half_precision_is_told_the_same():
    image = torch.from_numpy(channels(1000.0, 30, (0.0, 0.6, 0.8)))[None]
    tensor, log_b = image[:, TENSOR_CHANNELS], image[:, N_SH + 2]
    with torch.autocast('cpu', dtype=torch.bfloat16):
        half = TensorSignal()(tensor, log_b)
    assert torch.equal(half, TensorSignal()(tensor, log_b))
