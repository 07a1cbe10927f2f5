"""One loop for pretraining and fine-tuning, to be read aloud: draw, predict, compare, step.

Runs with torch, numpy, safetensors and Fabric (and TorchIO for patches of whole brains).
Every batch is drawn from (seed, step), so a run that was stopped goes on as if it had not been.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch

from bidsapp.learn.evaluate import Rows, evaluate, score_of
from bidsapp.learn.patches import seeded
from bidsapp.learn.predict import precision
from bidsapp.learn.running import Clock, drawn_ahead, until_terminated
from bidsapp.learn.state import Kept, State, copied, restore_state, save_state
from bidsapp.modalities.dwi.physics.turns import turned_channels
from bidsapp.networks.registry import build
from bidsapp.physics.geometry import turned_voxels
from bidsapp.problems import Problem, TryAgain

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch import Tensor

    from bidsapp.core import Checkpoint, Plan, Sample, Task
    from bidsapp.modalities.dwi.networks.qspace_unet import UNet3d

    Progress = Callable[[str], None]

#: Share of the steps over which the learning rate rises from nothing.
WARM_UP = 0.05


def start_network(task: Task, start: Checkpoint | None, channels_in: int, seed: int) -> UNet3d:
    """A new network, or the body of ``start`` with those of its heads that the task has.

    Raises Problem if the start cannot carry this task's input.
    """
    if start is None:
        with seeded(seed):
            return build(task.network, channels_in, task.heads, **task.options)
    shape = start.card['network']
    if (shape['name'], shape['channels_in']) != (task.network, channels_in):
        raise Problem(
            f'The start model {start.card["name"]} is a {shape["name"]} for '
            f'{shape["channels_in"]} input channels; task {task.name} needs a {task.network} for '
            f'{channels_in}. Choose another --init.'
        )
    with seeded(seed):
        network = build(task.network, channels_in, task.heads, **shape['options'])
    network.body.load_state_dict(start.body)
    for name in task.heads:
        if name in start.heads:
            network.heads[name].load_state_dict(start.heads[name])
    return network


def freeze(network: UNet3d, what: str) -> None:
    """Keep the encoder, or the whole body, as it is."""
    parts: dict[str, list[Any]] = {
        'none': [],
        'encoder': [network.body.encoder],
        'body': [network.body],
    }
    for part in parts[what]:
        part.requires_grad_(False)


def half_precision(plan: Plan) -> bool:
    """bfloat16 where the processor gains from it and its kernels are right.

    oneDNN as in torch 2.13 returns unset memory as the weight gradient of a bfloat16 3x3x3
    convolution over a volume of two slices, which is what the coarsest level sees of a patch of 16.
    """
    return precision(plan.device) is not None and plan.patch // 8 != 2


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

    def batch(self, size: int, seed: int, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """(image, target, mask) of batch ``step``; the same numbers give the same batch."""


def fit(
    task: Task,
    train: Source,
    validation: Sequence[Sample],
    start: Checkpoint | None,
    plan: Plan,
    state_file: Path,
    progress: Progress = lambda line: None,
) -> tuple[UNet3d, State]:
    """Fit a network to ``train``; return it as it was at its best step on ``validation``.

    With ``plan.average`` the weights that are scored and returned are a moving average.
    ``state_file`` holds the run's state while it lasts; an existing one is continued, and the
    caller removes it. Raises TryAgain on SIGTERM, after saving.
    """
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments import LightningEnvironment

    network = start_network(task, start, train.channels_in, plan.seed)
    freeze(network, plan.freeze)
    network = network.to(device=plan.device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    learnt = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learnt, lr=plan.lr, weight_decay=1e-2)
    kept = Kept(network, plan.average)
    state = restore_state(state_file, network, optimizer, kept)
    if start is not None and state.best_score is None:
        # A start that no step betters is kept.
        keep_if_best(task, network, validation, state, plan, kept)
    kind, _, index = plan.device.partition(':')
    fabric = Fabric(
        accelerator=kind,
        devices=[int(index or 0)] if kind == 'cuda' else 1,
        precision='bf16-mixed' if half_precision(plan) else '32-true',
        # One process, whatever the scheduler that started it says of tasks.
        plugins=[LightningEnvironment()],
    )
    model, optimizer = fabric.setup(network, optimizer)
    clock = Clock()
    clock.start('data')
    with (
        until_terminated() as terminated,
        drawn_ahead(partial(drawn, task, train, plan), state.step, plan.steps) as batches,
    ):
        for image, target, mask in batches:
            for group in optimizer.param_groups:
                group['lr'] = learning_rate(plan, state.step)
            clock.start('network')
            image = image.contiguous(memory_format=torch.channels_last_3d)
            image, target, mask = (x.to(fabric.device) for x in (image, target, mask))
            loss = task.loss(model(image), target, mask)
            fabric.backward(loss)
            fabric.clip_gradients(model, optimizer, max_norm=1.0)
            optimizer.step()
            optimizer.zero_grad()
            kept.follow(network, state.step)
            clock.stop()
            state.step += 1
            state.log.append({'step': state.step, 'loss': float(loss.detach())})
            last = state.step == plan.steps
            if state.step % plan.validate_every == 0 or last:
                note_validation(task, network, validation, state, plan, kept)
                save_state(state_file, network, optimizer, state, kept)
                progress(progress_line(task, state, plan, clock))
            if terminated.is_set() and not last:
                save_state(state_file, network, optimizer, state, kept)
                raise TryAgain(
                    f'Stopped at step {state.step} of {plan.steps}; start again to go on.'
                )
            clock.start('data')
    network.load_state_dict(kept.best)
    return network, state


def drawn(task: Task, train: Source, plan: Plan, step: int) -> tuple[Tensor, Tensor, Tensor]:
    """(image, target, mask) of step ``step``."""
    generator = torch.Generator().manual_seed(plan.seed * 1_000_003 + step)
    return turned(task, train.batch(plan.batch, plan.seed, step), generator)


def turned(
    task: Task, batch: tuple[Tensor, Tensor, Tensor], generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """(image, target, mask) with head and fibres turned together, by one of the task's turns."""
    if not task.turns:
        return batch
    turn = task.turns[int(torch.randint(len(task.turns), (), generator=generator))]
    image, target, mask = batch
    return (
        turned_channels(image, turn),
        task.turn_target(turned_voxels(target, turn), turn),
        turned_voxels(mask, turn),
    )


def note_validation(
    task: Task,
    network: UNet3d,
    validation: Sequence[Sample],
    state: State,
    plan: Plan,
    kept: Kept,
) -> None:
    """Score the network as `keep_if_best` does, and say so in the log."""
    with kept.averaged(network):
        score, rows = keep_if_best(task, network, validation, state, plan, kept)
    state.log[-1]['validation'] = score
    for name in task.parts:
        values = [v for sample in rows for _, label, v in sample if label == name]
        state.log[-1][name] = sum(values) / len(values)


def keep_if_best(
    task: Task,
    network: UNet3d,
    validation: Sequence[Sample],
    state: State,
    plan: Plan,
    kept: Kept,
) -> tuple[float, list[Rows]]:
    """Score the network on whole validation brains; keep the weights if they lead."""
    rows = evaluate(task, network, validation, plan.device, turned=False)
    score = score_of(task, rows)
    sign = 1 if task.higher_is_better else -1
    if state.best_score is None or sign * score > sign * state.best_score:
        state.best_score, state.best_step = score, state.step
        kept.best = copied(network.state_dict())
    network.train()
    return score, rows


def progress_line(task: Task, state: State, plan: Plan, clock: Clock) -> str:
    """One line a person can follow."""
    recent = [row['loss'] for row in state.log[-plan.validate_every :]]
    parts = ''.join(f', {name} {state.log[-1][name]:.3f}' for name in task.parts)
    return (
        f'{task.name}: step {state.step}/{plan.steps}, loss {sum(recent) / len(recent):.4f}, '
        f'validation {task.score} {state.log[-1]["validation"]:.4g} '
        f'(best {state.best_score:.4g} at step {state.best_step}){parts}; '
        f'network {clock.share("network"):.0%} of the time'
    )
