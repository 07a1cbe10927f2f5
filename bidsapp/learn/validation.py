"""How a fit is judged: by whole validation samples; the best step, and a state to go on from."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn

from bidsapp.learn.evaluate import Rows, evaluate, mean, score_of, scores
from bidsapp.learn.state import BestWeights, State, copied, save_state
from bidsapp.problems import BadData, TryAgain
from bidsapp.stopping import STOPPED, Stopped

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import torch
    from torch import Tensor

    from bidsapp.core import Head, Plan, Sample
    from bidsapp.learn.running import Clock
    from bidsapp.networks.base import Network

    Progress = Callable[[str], None]


@dataclass(eq=False)
class Validation:
    """What a fit under way is judged by, and what is kept of it."""

    head: Head
    samples: Sequence[Sample]
    plan: Plan
    network: Network
    optimizer: torch.optim.Optimizer
    weights: BestWeights
    state: State
    state_file: Path
    progress: Progress
    written: Callable[[Tensor, Sample], Tensor] = lambda output, sample: output
    stopping: threading.Event = field(default_factory=threading.Event)
    unscored: set[str] = field(default_factory=set)  #: names that were said

    @property
    def due(self) -> bool:
        """Whether this step is to be judged."""
        return self.state.step % self.plan.validate_every == 0 or self.last

    @property
    def last(self) -> bool:
        """Whether all steps are done."""
        return self.state.step == self.plan.steps

    def note(self, clock: Clock) -> None:
        """Judge the step, keep its state, say so. SIGTERM leaves the judging to the next call."""
        recent = [row['loss'] for row in self.state.log[-self.plan.validate_every :]]
        if math.isnan(mean(recent)):
            raise BadData(
                f'{self.head.name}: none of the last {len(recent)} steps had a loss that is a '
                'number. Look at the labels and the preprocessed runs of those it learns from.'
            )
        try:
            with self.weights.averaged(self.network):
                score, rows = self.judge()
        except Stopped:
            self.stop()
        self.state.log[-1]['validation'] = score
        for name in self.head.parts:
            values = (v for sample in rows for _, label, v in sample if label == name)
            self.state.log[-1][name] = mean(values)
        self.save()
        self.progress(progress_line(self.head, self.state, self.plan, clock))
        if self.stopping.is_set() and not self.last:
            self.stop()

    def judge(self) -> tuple[float, list[Rows]]:
        """Score the network on whole validation samples; keep the weights if they lead."""
        head, state = self.head, self.state
        rows = evaluate(
            head, self.network, self.samples, self.plan.device, None, self.unless_stopped,
            self.written,
        )  # fmt: skip
        self.say_unscored(rows)
        score = score_of(head, rows)
        sign = 1 if head.higher_is_better else -1
        if math.isfinite(score) and (
            state.best_score is None or sign * score > sign * state.best_score
        ):
            state.best_score, state.best_step = score, state.step
            self.weights.best = copied(self.network.state_dict())
        self.network.train()
        return score, rows

    def say_unscored(self, rows: Sequence[Rows]) -> None:
        """Name those, once, whose score is no number and has no part in the mean."""
        found = zip(self.samples, scores(self.head, rows), strict=True)
        lost = {sample.name for sample, score in found if math.isnan(score)}
        for name in sorted(lost - self.unscored):
            self.progress(
                f'{self.head.name}: {name or "a validation sample"} has no {self.head.score} that '
                'is a number and has no part in choosing the step'
            )
        self.unscored |= lost

    def unless_stopped(self) -> None:
        """Raises Stopped where SIGTERM came."""
        if self.stopping.is_set():
            raise Stopped(STOPPED)

    def save(self) -> None:
        """All that a later call needs to go on."""
        save_state(self.state_file, self.network, self.optimizer, self.state, self.weights)

    def stop(self) -> NoReturn:
        """Save, and raise TryAgain."""
        self.save()
        raise TryAgain(
            f'Stopped at step {self.state.step} of {self.plan.steps}; start again to go on.'
        )


def progress_line(head: Head, state: State, plan: Plan, clock: Clock) -> str:
    """One line a person can follow."""
    recent = mean(row['loss'] for row in state.log[-plan.validate_every :])
    parts = ''.join(f', {name} {state.log[-1][name]:.3f}' for name in head.parts)
    best = f'{state.best_score or math.nan:.4g} at step {state.best_step}'
    return (
        f'{head.name}: step {state.step}/{plan.steps}, loss {recent:.4f}, '
        f'validation {head.score} {state.log[-1]["validation"]:.4g} '
        f'(best {best}){parts}; '
        f'network {clock.share("network"):.0%} of the time'
    )
