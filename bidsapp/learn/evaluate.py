"""A network's figures on whole samples that carry a label."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from bidsapp import registry
from bidsapp.learn.predict import averaged_turns, predict, predict_tta, split_heads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Any

    from torch import Tensor

    from bidsapp.core import Case, Head, Sample, Task
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
    written: Callable[[Tensor, Sample], Tensor] = lambda output, sample: output,
) -> list[Rows]:
    """For each sample its rows (metric, label, value).

    With the modality's ``turned``: as `participant` predicts, averaged over turns; else in one
    pass, for a quick look. ``before_each`` sample may raise what ends it. ``written``: what is
    written of an output, in the same channels.
    """
    turns = averaged_turns(head.turns)
    found = []
    for sample in samples:
        before_each()
        if turned is None:
            output = predict(network, sample, device)
        else:
            output = predict_tta(network, sample, [head], turns, turned, device)
        found.append(head.metrics(written(output, sample), sample))
    return found


def judged(
    task: Task[Any],
    network: Network,
    case: Case,
    sample: Sample,
    device: str,
    turned: Turned,
) -> Rows:
    """Rows (metric, label, value) of what `participant` would write of one input.

    ``network`` has the task's head, and those that the task uses where its model has them.
    """
    names = list(network.heads)
    heads = [registry.task(name).head for name in names]
    turns = averaged_turns(task.head.turns)
    output = predict_tta(network, sample, heads, turns, turned, device)
    outputs = split_heads(output, {head.name: head.channels for head in heads})
    return task.head.metrics(as_written(task, outputs, sample, case), sample)


def as_written(
    task: Task[Any], outputs: Mapping[str, Tensor], sample: Sample, case: Case
) -> Tensor:  # fmt: skip
    """What is written of a network's outputs, in the channels of the task's head."""
    if task.written is None:
        return outputs[task.name]
    return task.written(outputs, sample, case)


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
