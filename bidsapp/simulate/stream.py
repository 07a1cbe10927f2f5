"""Batches of patches cut from the endless scans of a scanner.

Everything follows from (seed, step): which scan is drawn when, and what is cut from it. Each scan
serves several batches, turned and cut differently, so that making scans costs little beside
learning from them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from bidsapp.core import Batch
from bidsapp.physics.streams import stream
from bidsapp.simulate.material import labelled

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from bidsapp.core import Patch, Sample, Task
    from bidsapp.simulate.material import Scanner


class SimulatedStream:
    """Batches of patches cut from a moving window of a scanner's scans."""

    def __init__(
        self,
        scanner: Scanner,
        tasks: Sequence[Task[Any]],
        patch: Patch,
        window: int = 32,
        steps_a_scan: int = 24,
    ) -> None:
        self._scanner, self._tasks, self._patch = scanner, tuple(tasks), patch
        self._window, self._steps = window, steps_a_scan
        self._scans: dict[int, Sample] = {}

    @property
    def channels_in(self) -> int:
        """Channels of an image."""
        return self._scan(0).image.shape[0]

    def _scan(self, number: int) -> Sample:
        if number not in self._scans:
            self._scans[number] = labelled(self._scanner.scan(number), self._tasks)
        return self._scans[number]

    def batch(self, size: int, seed: int, step: int) -> Batch:
        """Batch ``step``; the same numbers give the same batch."""
        newest = step // self._steps + self._window - 1
        alive = range(newest - self._window + 1, newest + 1)
        for gone in [k for k in self._scans if k not in alive]:
            del self._scans[gone]
        generator = stream(seed, step, of='patches')
        chosen = torch.randint(self._window, (size,), generator=generator).tolist()
        samples = [self._scan(alive[k]) for k in chosen]
        parts = [self._cut(sample, generator) for sample in samples]
        image, target, mask = (torch.stack(tensors) for tensors in zip(*parts, strict=True))
        names = samples[0].context
        context = {name: torch.stack([s.context[name] for s in samples]) for name in names}
        return Batch(image, target, mask, context)

    def _cut(self, sample: Sample, generator: torch.Generator) -> tuple[Tensor, ...]:
        """A patch around a voxel of the mask, drawn evenly."""
        assert sample.target is not None
        shape = sample.mask.shape[1:]
        sides = torch.tensor([n if side is None else min(side, n)
                              for side, n in zip(self._patch, shape, strict=True)])  # fmt: skip
        where = sample.mask[0].nonzero()
        pick = int(torch.randint(max(len(where), 1), (), generator=generator))
        middle = where[pick] if len(where) else torch.tensor(shape) // 2
        corner = torch.minimum((middle - sides // 2).clamp_min(0), torch.tensor(shape) - sides)
        i, j, k = (slice(int(c), int(c + n)) for c, n in zip(corner, sides, strict=True))
        return tuple(t[:, i, j, k] for t in (sample.image, sample.target, sample.mask))
