"""Whether a model is applied to a run that alone does not determine the answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bidsapp import registry
from bidsapp.bids.runs import Size, Survey
from bidsapp.core import Case
from bidsapp.modalities.dwi.bids.runs import DwiRun
from bidsapp.modalities.dwi.physics.acquisition import acquisition
from bidsapp.modalities.dwi.physics.gradients import GradientTable
from bidsapp.modalities.dwi.physics.harmonics import fibonacci_hemisphere
from bidsapp.workflows.plan import RunPlan, _applies

TASK = registry.task('microstructure')
RANGES = {'directions': [20, 20], 'shells': [1, 1], 'voxel_mm': [2.5, 2.5], 'b': [[1000, 1000]]}


@pytest.fixture
def made():
    """A run of one shell."""
    vectors = np.r_[np.zeros((1, 3)), fibonacci_hemisphere(20)]
    facts = acquisition(GradientTable(vectors, np.r_[0, [1e3] * 20]), voxel_mm=(2.5,) * 3)
    case = Case({'subject': '01', 'datatype': 'dwi'}, {'dwi': Path('sub-01_dwi.nii.gz')})
    return RunPlan(DwiRun('dwi', case), Survey(facts, Size(1, 1)))


def test_a_model_of_two_shells_is_not(made):
    assert not _applies(made, TASK, {'tested_ranges': RANGES})
    assert 'microstructure' in made.inapplicable
    assert not made.warnings


def test_one_that_was_made_for_the_like_is_and_that_is_said(made):
    assert _applies(made, TASK, {'input_like': {'words': '…'}, 'tested_ranges': RANGES})
    assert not made.inapplicable
    assert 'does not determine it' in made.warnings[0]


def test_one_that_was_made_for_another_protocol_is_not(made):
    other = {**RANGES, 'b': [[2000, 2000]]}
    assert not _applies(made, TASK, {'input_like': {'words': '…'}, 'tested_ranges': other})
