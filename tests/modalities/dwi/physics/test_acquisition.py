"""What of a dMRI run decides whether a model was tested for the like, and its sentences."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from bidsapp.core import Sample
from bidsapp.learn.ranges import has_ranges, outside
from bidsapp.modalities.dwi.physics.acquisition import Acquisition, acquisition
from bidsapp.modalities.dwi.physics.gradients import GradientTable
from bidsapp.modalities.dwi.physics.harmonics import fibonacci_hemisphere

CARD = {
    'tested_ranges': {
        'directions': [6, 150], 'shells': [1, 3], 'b': [[700, 3300]], 'voxel_mm': [1, 4.5],
        'snr': [6, 60],
    }
}  # fmt: skip
USUAL = Acquisition(32, ((1000.0, 32),), 1.5, b=(1000.0,), voxel_mm=(2.0, 2.0, 2.0))


def of_noise(snr):
    """A sample of which no more is known than its noise; None if nobody has looked yet."""
    told = {} if snr is None else {'noise_variance': torch.tensor(1 / snr**2)}
    return Sample(torch.zeros(0), torch.zeros(0), np.eye(4), context=told)


def strange(card, own, snr=20.0):
    return outside(card, own.quantities(of_noise(snr)))


def test_a_usual_scan_is_in_range():
    assert strange(CARD, USUAL) == []
    assert strange(CARD, replace(USUAL, voxel_mm=(0.99, 1.0, 4.5), b=(690.0, 3000.0))) == []


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        ({'directions': 200}, '200 different directions; the model was tested with 6 to 150'),
        ({'b': (1000.0, 500.0)}, 'b=500'),
        ({'b': (5000.0,)}, 'b=5000'),
        ({'voxel_mm': (2.0, 2.0, 6.0)}, '2 x 2 x 6 mm'),
        ({'voxel_mm': (0.7, 0.7, 2.0)}, 'edges of 1 to 4.5 mm'),
        ({'snr': 3.0}, 'about 3.0; the model was tested with 6 or more'),
    ],
)
def test_what_differs_is_said_and_nothing_else(change, words):
    own = replace(USUAL, **{k: v for k, v in change.items() if k != 'snr'})
    (sentence,) = strange(CARD, own, change.get('snr', 20.0))
    assert words in sentence


def test_more_signal_is_no_reason_for_doubt():
    assert strange(CARD, USUAL, 300.0) == []


def test_noise_that_nobody_has_looked_at_yet_is_not_judged():
    assert strange(CARD, USUAL, None) == []
    assert outside(CARD, USUAL.quantities()) == []


def test_a_model_of_a_group_says_what_it_has_learnt_from():
    card = {'learnt_b_ranges': [[700, 1300]]}
    assert not has_ranges(card)
    assert strange(card, USUAL) == []
    (sentence,) = strange(card, replace(USUAL, b=(1000.0, 2500.0)))
    assert 'b=2500' in sentence
    assert 'has learnt with 700 to 1300' in sentence


def test_a_card_that_says_nothing_judges_nothing():
    assert strange({}, replace(USUAL, b=(9000.0,), directions=1)) == []


def test_quantities_are_those_of_the_table():
    """Opposite gradients are one direction; the shell with most volumes stands for its bin."""
    vectors = fibonacci_hemisphere(20)
    gtab = GradientTable(
        np.vstack([np.zeros((1, 3)), vectors, -vectors[:5], vectors[:6]]),
        np.concatenate([[0.0], np.full(25, 1000.0), np.full(6, 2000.0)]),
    )
    own = acquisition(gtab, voxel_mm=np.array([2.0, 2.0, 3.0]))
    assert own.shells == ((1000.0, 20), (2000.0, 6))
    found = {q.name: q.values for q in own.quantities(of_noise(20.0))}
    assert found == {
        'directions': (20.0,), 'shells': (2.0,), 'b': (1000.0, 2000.0),
        'voxel_mm': (2.0, 2.0, 3.0), 'snr': pytest.approx((20.0,)),
    }  # fmt: skip


def test_it_loads_no_torch():
    code = (
        'import sys; from bidsapp.modalities.dwi.physics.acquisition import Acquisition; '
        'Acquisition(6, ((1000.0, 6),), 1.0).quantities(); print("torch" in sys.modules)'
    )
    said = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert said.stdout.strip() == 'False', said.stderr
