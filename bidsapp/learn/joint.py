"""Several heads as one: a body with all of them, fitted by the same loop."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from bidsapp.core import Head

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from bidsapp.core import Sample, Turn


def joint(heads: Sequence[Head]) -> Head:
    """The head of doing all ``heads`` on one input: the weighted sum of their losses.

    Outputs and targets stand one after another in the order of ``heads``. It is scored by that sum
    on whole validation samples, lower is better. How a batch is augmented is the first one's word.
    """
    channels = [head.channels for head in heads]
    targets = [head.targets for head in heads]

    def losses(prediction: Tensor, target: Tensor, mask: Tensor) -> list[Tensor]:
        parts = zip(heads, prediction.split(channels, 1), target.split(targets, 1), strict=True)
        return [head.weight * head.loss(p, t, mask) for head, p, t in parts]

    def loss(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        return torch.stack(losses(prediction, target, mask)).sum()

    def metrics(output: Tensor, sample: Sample) -> list[tuple[str, str, float]]:
        if sample.target is None:
            raise ValueError('metrics need a labelled sample')
        values = losses(output[None], sample.target[None], sample.mask[None])
        named = [('loss', head.name, float(v)) for head, v in zip(heads, values, strict=True)]
        return [('total', 'all', sum(v for *_, v in named)), *named]

    def turn_target(target: Tensor, turn: Turn) -> Tensor:
        parts = zip(heads, target.split(targets, 1), strict=True)
        return torch.cat([head.turn_target(part, turn) for head, part in parts], 1)

    def turn_output(output: Tensor, turn: Turn) -> Tensor:
        parts = zip(heads, output.split(channels, 1), strict=True)
        return torch.cat([head.turn_output(part, turn) for head, part in parts], 1)

    return Head(
        name='joint',
        channels=sum(channels),
        targets=sum(targets),
        loss=loss,
        metrics=metrics,
        score='total',
        higher_is_better=False,
        turns=max((head.turns for head in heads), key=len),
        turn_target=turn_target,
        turn_output=turn_output,
        augment=heads[0].augment,
        parts={head.name: head.channels for head in heads},
        zeros=tuple(head.name for head in heads if head.from_nothing),
    )
