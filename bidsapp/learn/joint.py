"""Several tasks as one: a body with all their heads, fitted by the same loop."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from bidsapp.core import Arrays, Case, Sample, Task
from bidsapp.problems import Unavailable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from bidsapp.core import Turn
    from bidsapp.modalities.dwi.physics.acquisition import Acquisition


def joint(tasks: Sequence[Task], weights: Mapping[str, float]) -> Task:
    """The task of doing all ``tasks`` on one input: the weighted sum of their losses.

    Outputs and targets stand one after another in the order of ``tasks``. It is scored by that
    sum on whole validation blocks, lower is better.
    """
    channels = [task.channels for task in tasks]
    targets = [task.targets for task in tasks]

    def losses(prediction: Tensor, target: Tensor, mask: Tensor) -> list[Tensor]:
        parts = zip(tasks, prediction.split(channels, 1), target.split(targets, 1), strict=True)
        return [weights[task.name] * task.loss(p, t, mask) for task, p, t in parts]

    def loss(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        return torch.stack(losses(prediction, target, mask)).sum()

    def metrics(output: Tensor, sample: Sample) -> list[tuple[str, str, float]]:
        if sample.target is None:
            raise ValueError('metrics need a labelled sample')
        values = losses(output[None], sample.target[None], sample.mask[None])
        named = [('loss', task.name, float(v)) for task, v in zip(tasks, values, strict=True)]
        return [('total', 'all', sum(v for *_, v in named)), *named]

    def turn_target(target: Tensor, turn: Turn) -> Tensor:
        parts = zip(tasks, target.split(targets, 1), strict=True)
        return torch.cat([task.turn_target(part, turn) for task, part in parts], 1)

    def turn_output(output: Tensor, turn: Turn) -> Tensor:
        parts = zip(tasks, output.split(channels, 1), strict=True)
        return torch.cat([task.turn_output(part, turn) for task, part in parts], 1)

    return Task(
        name='joint',
        modality=tasks[0].modality,
        writes=(),
        channels=sum(channels),
        targets=sum(targets),
        load=_not_from_files,
        loss=loss,
        finish=_nothing,
        metrics=metrics,
        score='total',
        higher_is_better=False,
        reference=_no_reference,
        learns=0,
        turns=max((task.turns for task in tasks), key=len),
        turn_target=turn_target,
        turn_output=turn_output,
        network=tasks[0].network,
        options=tasks[0].options,
        parts={task.name: task.channels for task in tasks},
    )


def _not_from_files(case: Case) -> Sample:
    raise ValueError('a joint task is learnt from simulated or auxiliary scans')


def _nothing(output: Tensor, sample: Sample, case: Case) -> Arrays:
    return {}


def _no_reference(acquisition: Acquisition) -> str:
    raise Unavailable('a joint task has no label of its own')
