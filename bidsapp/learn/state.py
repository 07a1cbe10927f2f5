"""What a fit keeps while it runs: its state on disk, and the weights worth keeping."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from bidsapp.hidden import hidden

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from torch import Tensor

    from bidsapp.networks.base import Network


@dataclass
class State:
    """What a stopped run needs to go on."""

    step: int = 0
    best_step: int = 0
    best_score: float | None = None
    log: list[dict[str, float]] = field(default_factory=list)


class BestWeights:
    """Best and averaged weights: the best so far, and their moving average (EMA) where wanted."""

    def __init__(self, network: Network, decay: float) -> None:
        self.decay = decay
        self.best = copied(network.state_dict())
        self.average = copied(network.state_dict()) if decay else None

    @torch.no_grad()
    def follow(self, network: Network, step: int) -> None:
        """One step of the average; at first it follows closely."""
        if self.average is None:
            return
        decay = min(self.decay, (step + 1) / (step + 10))
        for name, value in network.state_dict().items():
            self.average[name].lerp_(value.detach().cpu(), 1 - decay)

    @contextmanager
    def averaged(self, network: Network) -> Iterator[None]:
        """``network`` with the average for weights inside, with its own again outside."""
        if self.average is None:
            yield
            return
        own = copied(network.state_dict())
        network.load_state_dict(self.average)
        try:
            yield
        finally:
            network.load_state_dict(own)


def copied(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights as they are now, on the CPU."""
    return {name: value.detach().cpu().clone() for name, value in weights.items()}


def save_state(
    path: Path,
    network: Network,
    optimizer: torch.optim.Optimizer,
    state: State,
    weights: BestWeights,
) -> None:
    """One safetensors file: weights, the optimizer's moments, kept weights; the rest as text."""
    tensors = {f'now.{k}': v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
    tensors |= {f'best.{k}': v.contiguous() for k, v in weights.best.items()}
    tensors |= {f'average.{k}': v.contiguous() for k, v in (weights.average or {}).items()}
    for index, moments in optimizer.state_dict()['state'].items():
        for name, value in moments.items():
            tensors[f'optimizer.{index}.{name}'] = torch.as_tensor(value).cpu().contiguous()
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = hidden(path)
    try:
        save_file(tensors, whole, metadata={'state': json.dumps(asdict(state))})
        whole.replace(path)
    finally:
        whole.unlink(missing_ok=True)


def restore_state(
    path: Path, network: Network, optimizer: torch.optim.Optimizer, weights: BestWeights
) -> State:
    """A saved run, put back into ``network``, ``optimizer``, ``weights``; a fresh State if none."""
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
    weights.best, weights.average = parts['best'], parts['average'] or None
    return State(**json.loads(text['state']))
