"""A network's figures on whole brains that carry a label."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bidsapp.learn.predict import predict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bidsapp.core import Sample, Task
    from bidsapp.networks.unet3d import UNet3d

Rows = list[tuple[str, str, float]]


def evaluate(task: Task, network: UNet3d, samples: Sequence[Sample], device: str) -> list[Rows]:
    """For each sample its rows (metric, label, value)."""
    return [task.metrics(predict(network, s.image, device), s) for s in samples]


def score_of(task: Task, rows: Sequence[Rows]) -> float:
    """Mean of the task's deciding metric over samples."""
    values = [v for sample in rows for metric, _, v in sample if metric == task.score]
    return float(np.mean(values))
