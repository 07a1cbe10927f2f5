"""A model that was fine-tuned before the code was rearranged still applies.

Made by ``group --tasks tissue --freeze body --steps 8`` on simulated heads with version 0.1.0: its
head and card are here, its body is that of v2, which was bundled then.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bidsapp.core import Sample
from bidsapp.learn.cards import load_card, modality_of, sha256
from bidsapp.learn.checkpoint import load
from bidsapp.learn.predict import network_of, predict

EARLIER = Path(__file__).parents[3] / 'data' / 'earlier_model'
V2 = Path(__file__).parent / 'v2'


@pytest.fixture
def model(tmp_path):
    """The model's folder, put together again."""
    body = load_file(V2 / 'weights.safetensors')
    weights = {name: value for name, value in body.items() if name.startswith('body.')}
    save_file(weights | load_file(EARLIER / 'head.safetensors'), tmp_path / 'weights.safetensors')
    card = json.loads((EARLIER / 'card.json').read_text())
    card['sha256'] = sha256(tmp_path / 'weights.safetensors')
    (tmp_path / 'card.json').write_text(json.dumps(card))
    return tmp_path


def test_its_card_is_understood_though_it_names_no_modality(model):
    card = load_card(model)
    assert 'modality' not in card
    assert modality_of(card) == 'dwi'


def test_it_says_what_it_said(model):
    """On an input of noise; processors differ in the precision of their products."""
    image = torch.randn(142, 12, 10, 9, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(1, 12, 10, 9, dtype=torch.bool)
    network = network_of(load(model), ['tissue'])
    output = predict(network, Sample(image, mask, np.eye(4)), 'cpu')
    said = json.loads((EARLIER / 'expected.json').read_text())
    assert torch.allclose(output.mean((1, 2, 3)), torch.tensor(said['mean']), atol=0.02)
    assert torch.allclose(output[:, 5, 5, 4], torch.tensor(said['middle']), atol=0.1)
