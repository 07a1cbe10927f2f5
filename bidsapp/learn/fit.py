"""One loop for pretraining and fine-tuning, to be read aloud: draw, predict, compare, step.

Runs with torch, numpy, safetensors and Fabric (and TorchIO for patches of whole volumes).
Every batch is drawn from (seed, step), so a run that was stopped goes on as if it had not been.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch

from bidsapp.core import Batch, Checkpoint, Plan
from bidsapp.learn.cards import modality_of
from bidsapp.learn.patches import seeded
from bidsapp.learn.predict import described_by, precision
from bidsapp.learn.running import Clock, drawn_ahead
from bidsapp.learn.state import BestWeights, State, restore_state
from bidsapp.learn.validation import Validation
from bidsapp.networks.registry import build, reads, widened
from bidsapp.physics.geometry import turned_voxels
from bidsapp.physics.streams import stream
from bidsapp.problems import BadData, Problem
from bidsapp.stopping import held

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch import Tensor

    from bidsapp.core import Head, Sample
    from bidsapp.learn.inputs import Input, Turned
    from bidsapp.learn.validation import Progress
    from bidsapp.networks.base import Network

#: Share of the steps over which the learning rate rises from nothing.
WARM_UP = 0.05


def start_network(
    own: Input, head: Head, start: Checkpoint | None, channels_in: int, seed: int
) -> Network:
    """A new network, or the body of ``start`` with those of its heads that are to be learnt.

    Heads that begin ``from_nothing`` say what `Network.begin` has them say, unless the start has
    them. A start stays the network that it is, whichever of the modality's. Raises Problem if it
    cannot carry this input.
    """
    if start is None:
        shape = own.network
        with seeded(seed):
            network = build(own.modality, shape.name, channels_in, head.heads, **shape.options)
        network.begin(head.heads_from_nothing)
        return network
    refuse_other_start(own, head, start, channels_in)
    found = start.card['network']
    with seeded(seed), described_by(start.card):
        network = build(
            own.modality, found['name'], found['channels_in'], head.heads, **found['options']
        )
        network.begin(head.heads_from_nothing)
        network.body.load_state_dict(start.body)
        for name in head.heads:
            if name in start.heads:
                network.heads[name].load_state_dict(start.heads[name])
    return network


def refuse_other_start(own: Input, head: Head, start: Checkpoint, channels_in: int) -> None:
    """Raises Problem if ``start`` is of another modality or cannot carry this input.

    BadData if it is a network that the modality has not.
    """
    found, modality = start.card['network'], modality_of(start.card)
    same = modality == own.modality
    if same:
        with described_by(start.card):
            same = reads(modality, found, channels_in)
    if not same:
        raise Problem(
            f'The start model {start.card["name"]} is a {found["name"]} of {modality} for '
            f'{found["channels_in"]} input channels; task {head.name} needs a network of '
            f'{own.modality} for {channels_in}. Choose another --init.'
        )


def grown(start: Checkpoint, own: Input, head: Head, channels_in: int) -> Checkpoint:
    """``start`` with today's body, where it was made for an earlier input or body.

    What is new counts for nothing at first (`networks.registry.widened`): the network says what it
    said. Raises Problem as `start_network` does, and BadData for a body of another kind.
    """
    shape = own.network
    if start.card['network']['channels_in'] == channels_in:
        return start
    refuse_other_start(own, head, start, channels_in)
    kept = {name: n for name, n in head.heads.items() if name in start.heads}
    with seeded(0), described_by(start.card):
        wanted = build(own.modality, shape.name, channels_in, kept, **shape.options)
        card = {
            **start.card,
            'network': {
                'name': shape.name, 'channels_in': channels_in, 'options': dict(shape.options),
            },
        }  # fmt: skip
        return Checkpoint(
            card,
            widened(start.body, wanted.body.state_dict()),
            {n: widened(start.heads[n], wanted.heads[n].state_dict()) for n in kept},
        )


def rated(network: Network, plan: Plan) -> list[dict[str, Any]]:
    """Parameters by the factor of their learning rate, for an optimizer; what has none is frozen.

    A part of ``plan.rates`` has its own factor, the smallest of the parts it belongs to; all else
    has ``plan.rest``. Raises Problem for a part that the network has not.
    """
    parts = network.parts()
    if unknown := plan.rates.keys() - parts.keys():
        raise Problem(
            f'The network {type(network).__name__} has no part {", ".join(sorted(unknown))}; it '
            f'has {", ".join(parts)}.'
        )
    factors: dict[int, float] = {}
    for name, factor in plan.rates.items():
        for p in parts[name].parameters():
            factors[id(p)] = min(factors.get(id(p), factor), factor)
    groups: dict[float, list[Any]] = {}
    for p in network.parameters():
        groups.setdefault(factors.get(id(p), plan.rest), []).append(p)
    for p in groups.pop(0.0, []):
        p.requires_grad_(False)
    return [{'params': params, 'factor': factor} for factor, params in groups.items()]


def half_precision(plan: Plan, stride: Sequence[int]) -> bool:
    """bfloat16 where the processor gains from it and its kernels are right.

    oneDNN as in torch 2.13 returns unset memory as the weight gradient of a bfloat16 3x3x3
    convolution over a volume of two slices, which is what the coarsest level sees of a patch of 16.
    """
    two = any(side and side // step == 2 for side, step in zip(plan.patch, stride, strict=True))
    return precision(plan.device) is not None and not two


def learning_rate(plan: Plan, step: int) -> float:
    """Linear rise over the first steps, then half a cosine to zero."""
    warm = max(1, round(WARM_UP * plan.steps))
    if step < warm:
        return plan.lr * (step + 1) / warm
    return plan.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, plan.steps - warm)))


class Source(Protocol):
    """Where batches come from: patches of labelled scans, or a simulator."""

    @property
    def channels_in(self) -> int:
        """Channels of an image."""

    def batch(self, size: int, seed: int, step: int) -> Batch:
        """Batch ``step``; the same numbers give the same batch."""


def fit(
    own: Input,
    head: Head,
    train: Source,
    validation: Sequence[Sample],
    start: Checkpoint | None,
    plan: Plan,
    state_file: Path,
    progress: Progress = lambda line: None,
    written: Callable[[Tensor, Sample], Tensor] = lambda output, sample: output,
) -> tuple[Network, State]:
    """Fit a network to ``train``; return it as it was at its best step on ``validation``.

    A step is judged by what is ``written`` of the network's output, in the same channels.
    With ``plan.average`` the weights that are scored and returned are a moving average. A step
    whose loss is no number is left out, and so is a validation sample without a score.
    ``state_file`` holds the run's state while it lasts; an existing one is continued, and the
    caller removes it. Raises TryAgain on SIGTERM, after saving, and BadData where nothing can be
    learnt or judged.
    """
    network = start_network(own, head, start, train.channels_in, plan.seed)
    groups = rated(network, plan)
    network = network.to(device=plan.device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(groups, lr=plan.lr, weight_decay=1e-2)
    weights = BestWeights(network, plan.average)
    state = restore_state(state_file, network, optimizer, weights)
    judging = Validation(
        head, validation, plan, network, optimizer, weights, state, state_file, progress, written
    )
    if start is not None and state.best_score is None:
        judging.judge()  # a start that no step betters is kept
    stepper = Stepper(head, plan, network, optimizer)
    draw = partial(drawn, head, train, plan, own.turned)
    with held() as judging.stopping, drawn_ahead(draw, state.step, plan.steps) as batches:
        if state.log and judging.due and 'validation' not in state.log[-1]:
            judging.note(stepper.clock)  # SIGTERM had cut it off
        stepper.clock.start('data')
        for batch in batches:
            loss = stepper.step(batch, state.step)
            weights.follow(network, state.step)
            state.step += 1
            state.log.append({'step': state.step, 'loss': loss})
            if judging.due:
                judging.note(stepper.clock)
            elif judging.stopping.is_set():
                judging.stop()
            stepper.clock.start('data')
    if state.best_score is None:
        raise BadData(
            f'{head.name}: no {head.score} of a validation participant is a number, so no '
            'step can be chosen. Look at their labels, or give another --random-seed.'
        )
    network.load_state_dict(weights.best)
    return network, state


class Stepper:
    """A network with its optimizer, and the one step of learning."""

    def __init__(
        self, head: Head, plan: Plan, network: Network, optimizer: torch.optim.Optimizer
    ) -> None:
        from lightning_fabric import Fabric
        from lightning_fabric.plugins.environments import LightningEnvironment

        kind, _, index = plan.device.partition(':')
        self.fabric = Fabric(
            accelerator=kind,
            devices=[int(index or 0)] if kind == 'cuda' else 1,
            precision='bf16-mixed' if half_precision(plan, network.stride) else '32-true',
            # One process, whatever the scheduler that started it says of tasks.
            plugins=[LightningEnvironment()],
        )
        self.head, self.plan, self.clock = head, plan, Clock()
        self.model, self.optimizer = self.fabric.setup(network, optimizer)

    def step(self, batch: Batch, number: int) -> float:
        """Predict, compare, step; the loss. One that is no number changes nothing."""
        self.clock.start('network')
        for group in self.optimizer.param_groups:
            group['lr'] = learning_rate(self.plan, number) * group['factor']
        image = batch.image.contiguous(memory_format=torch.channels_last_3d)
        image, target, mask = (x.to(self.fabric.device) for x in (image, batch.target, batch.mask))
        context = {name: value.to(self.fabric.device) for name, value in batch.context.items()}
        loss = self.head.loss(self.model(image, context), target, mask)
        self.fabric.backward(loss)
        norm = self.fabric.clip_gradients(
            self.model, self.optimizer, max_norm=1.0, error_if_nonfinite=False
        )
        good = bool(torch.isfinite(loss.detach())) and bool(torch.isfinite(torch.as_tensor(norm)))
        if good:
            self.optimizer.step()
        self.optimizer.zero_grad()
        self.clock.stop()
        return float(loss.detach()) if good else math.nan


def drawn(head: Head, train: Source, plan: Plan, turned: Turned, step: int) -> Batch:
    """The batch of step ``step``, augmented."""
    generator = stream(plan.seed, step, of='turns')
    batch = train.batch(plan.batch, plan.seed, step)
    return head.augment(turned_batch(head, batch, turned, generator), generator)


def turned_batch(head: Head, batch: Batch, turned: Turned, generator: torch.Generator) -> Batch:
    """Input, context, target and mask turned together, by one of the head's turns."""
    if not head.turns:
        return batch
    turn = head.turns[int(torch.randint(len(head.turns), (), generator=generator))]
    image, context = turned(batch.image, batch.context, turn)
    target = head.turn_target(turned_voxels(batch.target, turn), turn)
    return Batch(image, target, turned_voxels(batch.mask, turn), context)
