"""A network's figures on whole brains that carry a label."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bidsapp.learn.predict import averaged_turns, predict, predict_turned

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bidsapp.core import Sample, Task
    from bidsapp.modalities.dwi.networks.qspace_unet import UNet3d

Rows = list[tuple[str, str, float]]


def evaluate(
    task: Task, network: UNet3d, samples: Sequence[Sample], device: str, turned: bool = True
) -> list[Rows]:
    """For each sample its rows (metric, label, value).

    ``turned``: as `participant` predicts, averaged over turns; else in one pass, for a quick look.
    """
    if turned:
        turns = averaged_turns(task)
        outputs = (predict_turned(network, s.image, [task], turns, device) for s in samples)
        return [task.metrics(output, s) for output, s in zip(outputs, samples, strict=True)]
    return [task.metrics(predict(network, s.image, device), s) for s in samples]


def score_of(task: Task, rows: Sequence[Rows]) -> float:
    """Mean of the task's deciding metric over samples."""
    values = [v for sample in rows for metric, _, v in sample if metric == task.score]
    return float(np.mean(values))
