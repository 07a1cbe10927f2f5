"""One loop for pretraining and fine-tuning, to be read aloud: draw, predict, compare, step.

Runs with torch, numpy, safetensors and Fabric (and TorchIO for patches of whole brains).
Every batch is drawn from (seed, step), so a run that was stopped goes on as if it had not been.
"""

from __future__ import annotations

import json
import math
import os
import signal
import threading
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from bidsapp.core import Checkpoint, Plan, Problem, TryAgain
from bidsapp.learn.evaluate import evaluate, score_of
from bidsapp.learn.patches import PatchSource, seeded
from bidsapp.learn.predict import precision
from bidsapp.networks.registry import build
from bidsapp.physics.turns import turned_channels, turned_voxels

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from bidsapp.core import Sample, Task
    from bidsapp.networks.unet3d import UNet3d

    Progress = Callable[[str], None]

#: Share of the steps over which the learning rate rises from nothing.
WARM_UP = 0.05


@dataclass
class State:
    """What a stopped run needs to go on."""

    step: int = 0
    best_step: int = 0
    best_score: float | None = None
    log: list[dict[str, float]] = field(default_factory=list)


def start_network(task: Task, start: Checkpoint | None, channels_in: int, seed: int) -> UNet3d:
    """A new network, or the body of ``start`` with its head where that was learnt for this task.

    Raises Problem if the start cannot carry this task's input.
    """
    if start is None:
        with seeded(seed):
            return build(task.network, channels_in, task.channels, **task.options)
    shape = start.card['network']
    if (shape['name'], shape['channels_in']) != (task.network, channels_in):
        raise Problem(
            f'The start model {start.card["name"]} is a {shape["name"]} for '
            f'{shape["channels_in"]} input channels; task {task.name} needs a {task.network} for '
            f'{channels_in}. Choose another --init.'
        )
    with seeded(seed):
        network = build(task.network, channels_in, task.channels, **shape['options'])
    network.body.load_state_dict(start.body)
    if start.head is not None and start.card['task'] == task.name:
        network.head.load_state_dict(start.head)
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


def fit(
    task: Task,
    train: Sequence[Sample],
    validation: Sequence[Sample],
    start: Checkpoint | None,
    plan: Plan,
    state_file: Path,
    progress: Progress = lambda line: None,
) -> tuple[UNet3d, State]:
    """Fit a network to ``train``; return it as it was at its best step on ``validation``.

    ``state_file`` holds the run's state while it lasts; an existing one is continued, and the
    caller removes it. Raises TryAgain on SIGTERM, after saving.
    """
    from lightning_fabric import Fabric

    channels_in = train[0].image.shape[0]
    network = start_network(task, start, channels_in, plan.seed)
    freeze(network, plan.freeze)
    network = network.to(device=plan.device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    learnt = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learnt, lr=plan.lr, weight_decay=1e-2)
    state, best = restore_state(state_file, network, optimizer)
    kind, _, index = plan.device.partition(':')
    fabric = Fabric(
        accelerator=kind,
        devices=[int(index or 0)] if kind == 'cuda' else 1,
        precision='bf16-mixed' if half_precision(plan) else '32-true',
    )
    model, optimizer = fabric.setup(network, optimizer)
    source = PatchSource(train, plan.patch)
    with until_terminated() as terminated:
        while state.step < plan.steps:
            for group in optimizer.param_groups:
                group['lr'] = learning_rate(plan, state.step)
            generator = torch.Generator().manual_seed(plan.seed * 1_000_003 + state.step)
            batch = source.batch(plan.batch, plan.seed, state.step)
            image, target, mask = turned(task, batch, generator)
            image = task.corrupt(image, generator).contiguous(memory_format=torch.channels_last_3d)
            image, target, mask = (x.to(fabric.device) for x in (image, target, mask))
            loss = task.loss(model(image), target, mask)
            fabric.backward(loss)
            fabric.clip_gradients(model, optimizer, max_norm=1.0)
            optimizer.step()
            optimizer.zero_grad()
            state.step += 1
            state.log.append({'step': state.step, 'loss': float(loss.detach())})
            last = state.step == plan.steps
            if state.step % plan.validate_every == 0 or last:
                note_validation(task, network, validation, state, plan, best)
                save_state(state_file, network, optimizer, state, best)
                progress(progress_line(task, state, plan))
            if terminated.is_set() and not last:
                save_state(state_file, network, optimizer, state, best)
                raise TryAgain(
                    f'Stopped at step {state.step} of {plan.steps}; start again to go on.'
                )
    network.load_state_dict(best)
    return network, state


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
    best: dict[str, Tensor],
) -> None:
    """Score the network on whole validation brains; keep the weights in ``best`` if they lead."""
    score = score_of(task, evaluate(task, network, validation, plan.device))
    network.train()
    state.log[-1]['validation'] = score
    sign = 1 if task.higher_is_better else -1
    if state.best_score is None or sign * score > sign * state.best_score:
        state.best_score, state.best_step = score, state.step
        best.update({k: v.detach().cpu().clone() for k, v in network.state_dict().items()})


def progress_line(task: Task, state: State, plan: Plan) -> str:
    """One line a person can follow."""
    recent = [row['loss'] for row in state.log[-plan.validate_every :]]
    return (
        f'{task.name}: step {state.step}/{plan.steps}, loss {sum(recent) / len(recent):.4f}, '
        f'validation {task.score} {state.log[-1]["validation"]:.4g} '
        f'(best {state.best_score:.4g} at step {state.best_step})'
    )


@contextmanager
def until_terminated() -> Iterator[threading.Event]:
    """An event that SIGTERM sets, so that a scheduler's end of time loses nothing."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    previous = signal.signal(signal.SIGTERM, lambda *_: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGTERM, previous)


def save_state(
    path: Path,
    network: UNet3d,
    optimizer: torch.optim.Optimizer,
    state: State,
    best: Mapping[str, Tensor],
) -> None:
    """One safetensors file: weights, the optimizer's moments, best weights; the rest as text."""
    tensors = {f'now.{k}': v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
    tensors |= {f'best.{k}': v.contiguous() for k, v in best.items()}
    for index, moments in optimizer.state_dict()['state'].items():
        for name, value in moments.items():
            tensors[f'optimizer.{index}.{name}'] = torch.as_tensor(value).cpu().contiguous()
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = path.with_name(f'.{path.name}.{os.getpid()}')
    save_file(tensors, whole, metadata={'state': json.dumps(asdict(state))})
    whole.replace(path)


def restore_state(
    path: Path, network: UNet3d, optimizer: torch.optim.Optimizer
) -> tuple[State, dict[str, Tensor]]:
    """Put a saved run back into ``network`` and ``optimizer``: (state, best weights).

    Where nothing was saved, a fresh State and the network's own weights.
    """
    if not path.is_file():
        own = network.state_dict().items()
        return State(), {k: v.detach().cpu().clone() for k, v in own}
    with safe_open(path, 'pt') as file:
        saved = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (not iterable)
        text = file.metadata()
    parts: dict[str, dict[str, Tensor]] = {'now': {}, 'best': {}, 'optimizer': {}}
    for key, value in saved.items():
        part, _, name = key.partition('.')
        parts[part][name] = value
    network.load_state_dict(parts['now'])
    moments: dict[int, dict[str, Any]] = {}
    for key, value in parts['optimizer'].items():
        index, _, name = key.partition('.')
        moments.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), 'state': moments})
    return State(**json.loads(text['state'])), parts['best']
