"""How sure a network is, read from what it predicts."""

from __future__ import annotations

import math

import numpy as np


def entropy(probability: np.ndarray) -> np.ndarray:
    """(…, K) probabilities → (…) entropy as a share of its largest value, ln K; 0 where all are 0.

    0: one class for certain; 1: all classes as likely.
    """
    logarithm = np.log(np.where(probability > 0, probability, 1))
    values = -(probability * logarithm).sum(-1) / math.log(probability.shape[-1])
    return np.asarray(np.clip(values, 0, 1), np.float32)
