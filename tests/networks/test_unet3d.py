"""The network keeps the grid and is the same in pieces as in one."""

from __future__ import annotations

import pytest
import torch

from bidsapp.networks.registry import build


@pytest.mark.parametrize('shape', [(16, 16, 16), (17, 9, 30), (5, 8, 1)])
def test_output_has_the_grid_of_the_input(shape):
    network = build('unet3d', 3, 2).eval()
    assert network(torch.randn(2, 3, *shape)).shape == (2, 2, *shape)


def test_answer_does_not_depend_on_what_else_is_in_the_batch():
    network = build('unet3d', 3, 2).eval()
    pair = torch.randn(2, 3, 16, 16, 16)
    alone = network(pair[:1])
    assert torch.allclose(network(pair)[:1], alone, atol=1e-5)


def test_background_that_is_added_changes_nothing_far_from_it():
    """Normalisation is within a voxel, so more zeros around a head do not move its features."""
    torch.manual_seed(0)
    network = build('unet3d', 3, 2, widths=(4, 4, 8, 8)).eval()
    head = torch.zeros(1, 3, 96, 16, 16)
    head[:, :, :16] = torch.randn(1, 3, 16, 16, 16)
    wider = torch.nn.functional.pad(head, [0, 0, 0, 0, 0, 64])
    middle = slice(0, 16)
    assert torch.allclose(network(head)[:, :, middle], network(wider)[:, :, middle], atol=1e-4)


def test_body_moves_to_a_network_with_another_head():
    first, second = build('unet3d', 3, 2), build('unet3d', 3, 6)
    second.body.load_state_dict(first.body.state_dict())
    x = torch.randn(1, 3, 8, 8, 8)
    assert torch.equal(first.body(x), second.body(x))


def test_unknown_network_is_refused_with_the_names_that_exist():
    with pytest.raises(ValueError, match='unet3d'):
        build('vnet', 1, 1)


def test_levels_that_do_not_fit_the_padding_are_refused():
    with pytest.raises(ValueError, match='levels'):
        build('unet3d', 1, 1, widths=(4, 8))


def test_slots_share_their_weights_and_an_empty_one_adds_nothing():
    """What stands in one slot of b means the same in another."""
    network = build('unet3d', 3 * 5 + 1, 2, slots=3).eval()
    first, second = torch.zeros(2, 1, 16, 8, 8, 8)
    first[:, :5] = torch.randn(1, 5, 8, 8, 8)
    second[:, 5:10] = first[:, :5]
    assert torch.allclose(network(first), network(second), atol=1e-6)
