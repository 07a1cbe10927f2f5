"""A network's figures on whole samples that carry a label."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bidsapp.learn.predict import averaged_turns, predict, predict_tta

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bidsapp.core import Head, Sample
    from bidsapp.learn.inputs import Turned
    from bidsapp.networks.base import Network

Rows = list[tuple[str, str, float]]


def evaluate(
    head: Head, network: Network, samples: Sequence[Sample], device: str, turned: Turned | None
) -> list[Rows]:
    """For each sample its rows (metric, label, value).

    With the modality's ``turned``: as `participant` predicts, averaged over turns; else in one
    pass, for a quick look.
    """
    if turned is None:
        return [head.metrics(predict(network, s, device), s) for s in samples]
    turns = averaged_turns(head.turns)
    return [
        head.metrics(predict_tta(network, s, [head], turns, turned, device), s) for s in samples
    ]


def score_of(head: Head, rows: Sequence[Rows]) -> float:
    """Mean of the head's deciding metric over samples."""
    values = [v for sample in rows for metric, _, v in sample if metric == head.score]
    return float(np.mean(values))
