"""A network's figures on whole samples that carry a label."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from bidsapp.learn.predict import averaged_turns, predict, predict_tta

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from bidsapp.core import Head, Sample
    from bidsapp.learn.inputs import Turned
    from bidsapp.networks.base import Network

Rows = list[tuple[str, str, float]]


def evaluate(
    head: Head,
    network: Network,
    samples: Sequence[Sample],
    device: str,
    turned: Turned | None,
    before_each: Callable[[], None] = lambda: None,
) -> list[Rows]:
    """For each sample its rows (metric, label, value).

    With the modality's ``turned``: as `participant` predicts, averaged over turns; else in one
    pass, for a quick look. ``before_each`` sample may raise what ends it.
    """
    turns = averaged_turns(head.turns)
    found = []
    for sample in samples:
        before_each()
        if turned is None:
            output = predict(network, sample, device)
        else:
            output = predict_tta(network, sample, [head], turns, turned, device)
        found.append(head.metrics(output, sample))
    return found


def scores(head: Head, rows: Sequence[Rows]) -> list[float]:
    """The head's deciding metric of each sample; NaN where it is no number."""
    return [mean(v for metric, _, v in sample if metric == head.score) for sample in rows]


def score_of(head: Head, rows: Sequence[Rows]) -> float:
    """Mean of the head's deciding metric over the samples that have it."""
    return mean(scores(head, rows))


def mean(values: Iterable[float]) -> float:
    """Of those values that are numbers; NaN where none is."""
    numbers = [value for value in values if math.isfinite(value)]
    return sum(numbers) / len(numbers) if numbers else math.nan
