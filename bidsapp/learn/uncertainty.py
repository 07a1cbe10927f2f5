"""How sure a network is, read from what it predicts."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from bidsapp.learn.losses import symmetric

if TYPE_CHECKING:
    from torch import Tensor


def entropy(probability: np.ndarray) -> np.ndarray:
    """(…, K) probabilities → (…) entropy as a share of its largest value, ln K; 0 where all are 0.

    0: one class for certain; 1: all classes as likely.
    """
    logarithm = np.log(np.where(probability > 0, probability, 1))
    values = -(probability * logarithm).sum(-1) / math.log(probability.shape[-1])
    return np.asarray(np.clip(values, 0, 1), np.float32)


def axis_and_spread(dyads: Tensor) -> tuple[Tensor, Tensor]:
    """(V, 6) mean dyads → principal axes (V, 3) and root mean square angles (V,) in degrees.

    A network fitted by squared error to v vᵀ predicts its mean T. With the axis a, the mean of
    sin² of the angle from a to v is 1 - aᵀTa / trace T, which gives the angle; no label and no
    second network is needed. 54.7 degrees is complete ignorance.
    """
    values, vectors = torch.linalg.eigh(symmetric(dyads).double())
    values = values.clamp_min(0)
    total = values.sum(-1)
    share = torch.where(total > 0, values[:, -1] / total.clamp_min(1e-12), 1 / 3)
    angle = torch.rad2deg(torch.asin((1 - share).clamp(0, 2 / 3).sqrt()))
    return vectors[..., -1].to(dyads.dtype), angle.to(dyads.dtype)
