"""Models of before still apply: what they read of today's input, and what they said then."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bidsapp.core import Sample
from bidsapp.learn.checkpoint import load
from bidsapp.learn.predict import network_of, predict
from bidsapp.modalities.dwi.physics.qspace import N_CHANNELS, N_SH, SLOT_CHANNELS

V2 = Path(__file__).parent / 'v2'
#: Mean and mean square of what each head of v2 said of `drawn`, when it was the bundled model.
SAID = {
    'crossings': (-0.5188291, 1.504154),
    'microstructure': (-1.281902, 2.353259),
    'orientation': (0.01162733, 0.03222404),
    'restore': (0.00523177, 0.2805892),
    'tissue': (-0.3768941, 1.66984),
}


def drawn():
    """An input of random numbers with one filled bin; the same wherever it is drawn."""
    numbers = np.random.default_rng(7).standard_normal((N_CHANNELS, 9, 8, 10))
    numbers[SLOT_CHANNELS : 3 * SLOT_CHANNELS] = 0
    numbers[N_SH], numbers[N_SH + 2] = 1, 0.1
    image = torch.from_numpy(numbers.astype(np.float32))
    return Sample(image, torch.ones(1, 9, 8, 10).bool(), np.eye(4))


@pytest.mark.parametrize('name', SAID)
def test_a_model_of_142_channels_says_what_it_said(name, monkeypatch):
    """In single precision: bfloat16, which some processors have, is not so exact."""
    monkeypatch.setattr('bidsapp.learn.predict.precision', lambda device: None)
    said = predict(network_of(load(V2), [name]), drawn()).double()
    found = float(said.mean()), float(said.square().mean())
    assert found == pytest.approx(SAID[name], rel=1e-4)


def test_every_head_is_looked_at():
    assert set(SAID) == set(load(V2).heads)
