"""Stated uncertainty is what the predicted distribution says."""

from __future__ import annotations

import numpy as np
import pytest

from bidsapp.learn.uncertainty import entropy


def test_certain_and_ignorant_classes():
    probability = np.array([[1, 0, 0], [1 / 3, 1 / 3, 1 / 3], [0.5, 0.5, 0], [0, 0, 0]])
    assert entropy(probability) == pytest.approx([0, 1, np.log(2) / np.log(3), 0], abs=1e-6)
