"""Whole blocks of simulated scans: what a joint network says of them, calibration, metrics."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from bidsapp.learn.predict import averaged_turns, predict_tta, split_heads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from torch import Tensor
    from torch.nn import Module

    from bidsapp.core import Head, Sample, Task
    from bidsapp.learn.inputs import Turned
    from bidsapp.networks.base import Network

    #: Index → a block with the targets of all tasks in a row.
    Blocks = Callable[[int], Sample]

log = logging.getLogger('transfermri')


def on_block(
    network: Network,
    sample: Sample,
    tasks: Sequence[Task[Any]],
    head: Head,
    turned: Turned,
    device: str,
) -> dict[str, tuple[Tensor, Sample]]:
    """Task → what the network says of a block, and the block with that task's truth."""
    assert sample.target is not None
    turns = averaged_turns(head.turns)
    output = predict_tta(network, sample, [head], turns, turned, device)
    outputs = split_heads(output, head.heads)
    targets = sample.target.split([task.head.targets for task in tasks])
    return {
        task.name: (outputs[task.name], replace(sample, target=target))
        for task, target in zip(tasks, targets, strict=True)
    }


def calibrate(
    network: Network,
    blocks: Iterable[Sample],
    tasks: Sequence[Task[Any]],
    head: Head,
    turned: Turned,
    device: str,
) -> None:
    """Make the heads' stated uncertainty the error found on ``blocks``."""
    wanted = [task for task in tasks if task.head.calibrate is not None]
    if not wanted:
        return
    said = [on_block(network, block, tasks, head, turned, device) for block in blocks]
    for task in wanted:
        assert task.head.calibrate is not None
        outputs, samples = zip(*(block[task.name] for block in said), strict=True)
        factor, shift = task.head.calibrate(outputs, samples)
        fold(network.heads[task.name], factor, shift)
        log.info('%s: uncertainty calibrated by factors %s, then %s', task.name,
                 factor.tolist(), shift.tolist())  # fmt: skip


def fold(layer: Module, factor: Tensor, shift: Tensor) -> None:
    """Make the channels c of a last layer c · ``factor`` + ``shift``, (K,) each.

    It is linear, so that this is exact, and a mean over turns changes in the same way.
    """
    import torch

    weight, bias = cast('Tensor', layer.weight), cast('Tensor', layer.bias)
    with torch.no_grad():
        weight.mul_(factor.to(weight).view(-1, *[1] * (weight.ndim - 1)))
        bias.mul_(factor.to(bias)).add_(shift.to(bias))


def tested(
    network: Network,
    blocks: Iterable[Sample],
    tasks: Sequence[Task[Any]],
    head: Head,
    turned: Turned,
    device: str,
) -> list[dict[str, Any]]:
    """Every metric of every task over ``blocks``: mean, standard deviation and their number."""
    values: dict[tuple[str, str, str], list[float]] = {}
    for block in blocks:
        said = on_block(network, block, tasks, head, turned, device)
        for task in tasks:
            for metric, label, value in task.head.metrics(*said[task.name]):
                values.setdefault((task.name, metric, label), []).append(value)
    return [
        {'task': name, 'metric': metric, 'label': label, 'mean': float(np.nanmean(found)),
         'sd': float(np.nanstd(found)), 'n': int(np.isfinite(found).sum())}
        for (name, metric, label), found in values.items() if np.isfinite(found).any()
    ]  # fmt: skip
