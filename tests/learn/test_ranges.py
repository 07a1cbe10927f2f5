"""A scan like those of the tests is in range; each way to differ has its own sentence."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from bidsapp.learn.ranges import has_ranges, outside
from bidsapp.modalities.dwi.physics.acquisition import Facts, facts_of
from bidsapp.modalities.dwi.physics.gradients import GradientTable
from bidsapp.modalities.dwi.physics.harmonics import fibonacci_hemisphere

CARD = {
    'tested_ranges': {
        'directions': [6, 150], 'shells': [1, 3], 'b': [[700, 3300]], 'voxel_mm': [1, 4.5],
        'snr': [6, 60],
    }
}  # fmt: skip
USUAL = Facts(32, (1000.0,), (2.0, 2.0, 2.0), 20.0)


def test_a_usual_scan_is_in_range():
    assert outside(CARD, USUAL) == []
    assert outside(CARD, replace(USUAL, voxel_mm=(0.99, 1.0, 4.5), b=(690.0, 3000.0))) == []


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
    (sentence,) = outside(CARD, replace(USUAL, **change))
    assert words in sentence


def test_more_signal_is_no_reason_for_doubt():
    assert outside(CARD, replace(USUAL, snr=300.0)) == []


def test_noise_that_nobody_has_looked_at_yet_is_not_judged():
    assert outside(CARD, replace(USUAL, snr=None)) == []


def test_a_model_of_a_group_says_what_it_has_learnt_from():
    card = {'learnt_b_ranges': [[700, 1300]]}
    assert not has_ranges(card)
    assert outside(card, USUAL) == []
    (sentence,) = outside(card, replace(USUAL, b=(1000.0, 2500.0)))
    assert 'b=2500' in sentence
    assert 'has learnt with 700 to 1300' in sentence


def test_a_card_that_says_nothing_judges_nothing():
    assert outside({}, replace(USUAL, b=(9000.0,), directions=1)) == []


def test_facts_are_those_of_the_table():
    """Opposite gradients are one direction; the shell with most volumes stands for its slot."""
    vectors = fibonacci_hemisphere(20)
    gtab = GradientTable(
        np.vstack([np.zeros((1, 3)), vectors, -vectors[:5], vectors[:6]]),
        np.concatenate([[0.0], np.full(25, 1000.0), np.full(6, 2000.0)]),
    )
    facts = facts_of(gtab, np.array([2.0, 2.0, 3.0]), 0.0025)
    assert facts == Facts(20, (1000.0, 2000.0), (2.0, 2.0, 3.0), pytest.approx(20))


def test_it_loads_no_torch():
    code = 'import sys; import bidsapp.learn.ranges; print("torch" in sys.modules)'
    said = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert said.stdout.strip() == 'False', said.stderr
