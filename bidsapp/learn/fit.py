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
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from bidsapp.core import Checkpoint, Plan, Problem, TryAgain
from bidsapp.learn.evaluate import evaluate, score_of
from bidsapp.learn.patches import seeded
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

    network = start_network(task, start, train.channels_in, plan.seed)
    freeze(network, plan.freeze)
    network = network.to(device=plan.device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    learnt = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learnt, lr=plan.lr, weight_decay=1e-2)
    kept = Kept(network, plan.average)
    state = restore_state(state_file, network, optimizer, kept)
    kind, _, index = plan.device.partition(':')
    fabric = Fabric(
        accelerator=kind,
        devices=[int(index or 0)] if kind == 'cuda' else 1,
        precision='bf16-mixed' if half_precision(plan) else '32-true',
    )
    model, optimizer = fabric.setup(network, optimizer)
    clock = Clock()
    with until_terminated() as terminated:
        while state.step < plan.steps:
            for group in optimizer.param_groups:
                group['lr'] = learning_rate(plan, state.step)
            generator = torch.Generator().manual_seed(plan.seed * 1_000_003 + state.step)
            clock.start('data')
            batch = train.batch(plan.batch, plan.seed, state.step)
            image, target, mask = turned(task, batch, generator)
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
    network.load_state_dict(kept.best)
    return network, state


class Clock:
    """Seconds of the loop by what they went into."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._what: str | None = None
        self._since = 0.0

    def start(self, what: str) -> None:
        """From now on it is ``what``."""
        self.stop()
        self._what, self._since = what, time.perf_counter()

    def stop(self) -> None:
        """Nothing of the loop from now on."""
        if self._what is not None:
            passed = time.perf_counter() - self._since
            self.seconds[self._what] = self.seconds.get(self._what, 0.0) + passed
        self._what = None

    def share(self, what: str) -> float:
        """Part of all seconds."""
        return self.seconds.get(what, 0.0) / max(sum(self.seconds.values()), 1e-9)


class Kept:
    """The weights to keep: the best so far, and their moving average where one is wanted."""

    def __init__(self, network: UNet3d, decay: float) -> None:
        self.decay = decay
        self.best = _copy(network.state_dict())
        self.average = _copy(network.state_dict()) if decay else None

    @torch.no_grad()
    def follow(self, network: UNet3d, step: int) -> None:
        """One step of the average; at first it follows closely."""
        if self.average is None:
            return
        decay = min(self.decay, (step + 1) / (step + 10))
        for name, value in network.state_dict().items():
            self.average[name].lerp_(value.detach().cpu(), 1 - decay)

    @contextmanager
    def averaged(self, network: UNet3d) -> Iterator[None]:
        """``network`` with the average for weights inside, with its own again outside."""
        if self.average is None:
            yield
            return
        own = _copy(network.state_dict())
        network.load_state_dict(self.average)
        yield
        network.load_state_dict(own)


def _copy(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in weights.items()}


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
    """Score the network on whole validation brains; keep the weights if they lead."""
    with kept.averaged(network):
        rows = evaluate(task, network, validation, plan.device)
        score = score_of(task, rows)
        sign = 1 if task.higher_is_better else -1
        if state.best_score is None or sign * score > sign * state.best_score:
            state.best_score, state.best_step = score, state.step
            kept.best = _copy(network.state_dict())
    network.train()
    state.log[-1]['validation'] = score
    for name in task.parts:
        values = [v for sample in rows for _, label, v in sample if label == name]
        state.log[-1][name] = sum(values) / len(values)


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
    kept: Kept,
) -> None:
    """One safetensors file: weights, the optimizer's moments, kept weights; the rest as text."""
    tensors = {f'now.{k}': v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
    tensors |= {f'best.{k}': v.contiguous() for k, v in kept.best.items()}
    tensors |= {f'average.{k}': v.contiguous() for k, v in (kept.average or {}).items()}
    for index, moments in optimizer.state_dict()['state'].items():
        for name, value in moments.items():
            tensors[f'optimizer.{index}.{name}'] = torch.as_tensor(value).cpu().contiguous()
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = path.with_name(f'.{path.name}.{os.getpid()}')
    save_file(tensors, whole, metadata={'state': json.dumps(asdict(state))})
    whole.replace(path)


def restore_state(
    path: Path, network: UNet3d, optimizer: torch.optim.Optimizer, kept: Kept
) -> State:
    """Put a saved run back into ``network``, ``optimizer`` and ``kept``; a fresh State if none."""
    if not path.is_file():
        return State()
    with safe_open(path, 'pt') as file:
        saved = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (not iterable)
        text = file.metadata()
    parts: dict[str, dict[str, Tensor]] = {'now': {}, 'best': {}, 'average': {}, 'optimizer': {}}
    for key, value in saved.items():
        part, _, name = key.partition('.')
        parts[part][name] = value
    network.load_state_dict(parts['now'])
    moments: dict[int, dict[str, Any]] = {}
    for key, value in parts['optimizer'].items():
        index, _, name = key.partition('.')
        moments.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), 'state': moments})
    kept.best, kept.average = parts['best'], parts['average'] or None
    return State(**json.loads(text['state']))
