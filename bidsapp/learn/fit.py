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
from bidsapp.learn.evaluate import Rows, evaluate, score_of
from bidsapp.learn.patches import seeded
from bidsapp.learn.predict import precision
from bidsapp.learn.running import Clock, drawn_ahead, until_terminated
from bidsapp.learn.state import BestWeights, State, copied, restore_state, save_state
from bidsapp.networks.registry import build
from bidsapp.physics.geometry import turned_voxels
from bidsapp.problems import Problem, TryAgain

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from bidsapp.core import Head, Sample
    from bidsapp.learn.inputs import Input, Turned
    from bidsapp.networks.base import Network

    Progress = Callable[[str], None]

#: Share of the steps over which the learning rate rises from nothing.
WARM_UP = 0.05


def start_network(
    own: Input, head: Head, start: Checkpoint | None, channels_in: int, seed: int
) -> Network:
    """A new network, or the body of ``start`` with those of its heads that are to be learnt.

    Raises Problem if the start cannot carry this input.
    """
    shape = own.network
    if start is None:
        with seeded(seed):
            return build(own.modality, shape.name, channels_in, head.heads, **shape.options)
    found = start.card['network']
    if (modality_of(start.card), found['name'], found['channels_in']) != (
        own.modality, shape.name, channels_in,
    ):  # fmt: skip
        raise Problem(
            f'The start model {start.card["name"]} is a {found["name"]} of '
            f'{modality_of(start.card)} for {found["channels_in"]} input channels; task '
            f'{head.name} needs a {shape.name} of {own.modality} for {channels_in}. Choose another '
            '--init.'
        )
    with seeded(seed):
        network = build(own.modality, shape.name, channels_in, head.heads, **found['options'])
    network.body.load_state_dict(start.body)
    for name in head.heads:
        if name in start.heads:
            network.heads[name].load_state_dict(start.heads[name])
    return network


def rated(network: Network, plan: Plan) -> list[dict[str, Any]]:
    """Parameters by the factor of their learning rate, for an optimizer; what has none is frozen.

    A part of ``plan.rates`` has its own factor, the smallest of the parts it belongs to; all else
    has 1. Raises Problem for a part that the network has not.
    """
    parts = network.parts()
    if unknown := plan.rates.keys() - parts.keys():
        raise Problem(
            f'The network {type(network).__name__} has no part {", ".join(sorted(unknown))}; it '
            f'has {", ".join(parts)}.'
        )
    factors = {id(p): 1.0 for p in network.parameters()}
    for name, factor in plan.rates.items():
        for p in parts[name].parameters():
            factors[id(p)] = min(factors[id(p)], factor)
    groups: dict[float, list[Any]] = {}
    for p in network.parameters():
        groups.setdefault(factors[id(p)], []).append(p)
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
) -> tuple[Network, State]:
    """Fit a network to ``train``; return it as it was at its best step on ``validation``.

    With ``plan.average`` the weights that are scored and returned are a moving average.
    ``state_file`` holds the run's state while it lasts; an existing one is continued, and the
    caller removes it. Raises TryAgain on SIGTERM, after saving.
    """
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments import LightningEnvironment

    network = start_network(own, head, start, train.channels_in, plan.seed)
    groups = rated(network, plan)
    network = network.to(device=plan.device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(groups, lr=plan.lr, weight_decay=1e-2)
    weights = BestWeights(network, plan.average)
    state = restore_state(state_file, network, optimizer, weights)
    if start is not None and state.best_score is None:
        # A start that no step betters is kept.
        keep_if_best(head, network, validation, state, plan, weights)
    kind, _, index = plan.device.partition(':')
    fabric = Fabric(
        accelerator=kind,
        devices=[int(index or 0)] if kind == 'cuda' else 1,
        precision='bf16-mixed' if half_precision(plan, network.stride) else '32-true',
        # One process, whatever the scheduler that started it says of tasks.
        plugins=[LightningEnvironment()],
    )
    model, optimizer = fabric.setup(network, optimizer)
    clock = Clock()
    clock.start('data')
    draw = partial(drawn, head, train, plan, own.turned)
    with (
        until_terminated() as terminated,
        drawn_ahead(draw, state.step, plan.steps) as batches,
    ):
        for batch in batches:
            for group in optimizer.param_groups:
                group['lr'] = learning_rate(plan, state.step) * group['factor']
            clock.start('network')
            image = batch.image.contiguous(memory_format=torch.channels_last_3d)
            image, target, mask = (x.to(fabric.device) for x in (image, batch.target, batch.mask))
            context = {name: value.to(fabric.device) for name, value in batch.context.items()}
            loss = head.loss(model(image, context), target, mask)
            fabric.backward(loss)
            fabric.clip_gradients(model, optimizer, max_norm=1.0)
            optimizer.step()
            optimizer.zero_grad()
            weights.follow(network, state.step)
            clock.stop()
            state.step += 1
            state.log.append({'step': state.step, 'loss': float(loss.detach())})
            last = state.step == plan.steps
            if state.step % plan.validate_every == 0 or last:
                note_validation(head, network, validation, state, plan, weights)
                save_state(state_file, network, optimizer, state, weights)
                progress(progress_line(head, state, plan, clock))
            if terminated.is_set() and not last:
                save_state(state_file, network, optimizer, state, weights)
                raise TryAgain(
                    f'Stopped at step {state.step} of {plan.steps}; start again to go on.'
                )
            clock.start('data')
    network.load_state_dict(weights.best)
    return network, state


def drawn(head: Head, train: Source, plan: Plan, turned: Turned, step: int) -> Batch:
    """The batch of step ``step``, augmented."""
    generator = torch.Generator().manual_seed(plan.seed * 1_000_003 + step)
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


def note_validation(
    head: Head,
    network: Network,
    validation: Sequence[Sample],
    state: State,
    plan: Plan,
    weights: BestWeights,
) -> None:
    """Score the network as `keep_if_best` does, and say so in the log."""
    with weights.averaged(network):
        score, rows = keep_if_best(head, network, validation, state, plan, weights)
    state.log[-1]['validation'] = score
    for name in head.parts:
        values = [v for sample in rows for _, label, v in sample if label == name]
        state.log[-1][name] = sum(values) / len(values)


def keep_if_best(
    head: Head,
    network: Network,
    validation: Sequence[Sample],
    state: State,
    plan: Plan,
    weights: BestWeights,
) -> tuple[float, list[Rows]]:
    """Score the network on whole validation samples; keep the weights if they lead."""
    rows = evaluate(head, network, validation, plan.device, None)
    score = score_of(head, rows)
    sign = 1 if head.higher_is_better else -1
    if state.best_score is None or sign * score > sign * state.best_score:
        state.best_score, state.best_step = score, state.step
        weights.best = copied(network.state_dict())
    network.train()
    return score, rows


def progress_line(head: Head, state: State, plan: Plan, clock: Clock) -> str:
    """One line a person can follow."""
    recent = [row['loss'] for row in state.log[-plan.validate_every :]]
    parts = ''.join(f', {name} {state.log[-1][name]:.3f}' for name in head.parts)
    return (
        f'{head.name}: step {state.step}/{plan.steps}, loss {sum(recent) / len(recent):.4f}, '
        f'validation {head.score} {state.log[-1]["validation"]:.4g} '
        f'(best {state.best_score:.4g} at step {state.best_step}){parts}; '
        f'network {clock.share("network"):.0%} of the time'
    )
