"""Endless labelled scans: blocks of varied heads, scanned with varied schemes, as batches.

Everything follows from (seed, step): which block is drawn when, and what is cut from it. A block is
scanned several times, and each scan serves several batches, turned and cut differently, so that
making scans costs little beside learning from them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from bidsapp.core import Sample
from bidsapp.modalities.dwi.physics import qspace

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from bidsapp.modalities.dwi.simulate.corruption import Table


@dataclass(frozen=True, slots=True, eq=False)
class Scan:
    """A canonical input and the truth behind it, on one block."""

    image: Tensor  #: (N_CHANNELS, X, Y, Z)
    mask: Tensor  #: (1, X, Y, Z) bool
    targets: Mapping[str, Tensor]  #: by task, in the task's own layout
    voxel_mm: tuple[float, ...]
    table: Table


class Scanner(Protocol):
    """What scans are drawn from."""

    def scan(self, number: int) -> Scan:
        """Scan number ``number``, always the same."""


class SimulatedStream:
    """Batches of patches cut from a moving window of a scanner's scans."""

    channels_in = qspace.N_CHANNELS

    def __init__(
        self,
        scanner: Scanner,
        tasks: Sequence[str],
        patch: int,
        window: int = 32,
        steps_a_scan: int = 24,
    ) -> None:
        self._scanner, self._tasks, self._patch = scanner, tuple(tasks), patch
        self._window, self._steps = window, steps_a_scan
        self._scans: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    def _scan(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        if number not in self._scans:
            scan = self._scanner.scan(number)
            target = torch.cat([scan.targets[task] for task in self._tasks])
            self._scans[number] = (scan.image, target, scan.mask)
        return self._scans[number]

    def batch(self, size: int, seed: int, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """(image, target, mask) of batch ``step``; the same numbers give the same batch."""
        newest = step // self._steps + self._window - 1
        alive = range(newest - self._window + 1, newest + 1)
        for gone in [k for k in self._scans if k not in alive]:
            del self._scans[gone]
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        chosen = torch.randint(self._window, (size,), generator=generator).tolist()
        parts = [self._cut(self._scan(alive[k]), generator) for k in chosen]
        image, target, mask = (torch.stack(tensors) for tensors in zip(*parts, strict=True))
        return image, target, mask

    def _cut(
        self, scan: tuple[Tensor, Tensor, Tensor], generator: torch.Generator
    ) -> tuple[Tensor, ...]:
        """A patch around a voxel of the brain, drawn evenly."""
        where = scan[2][0].nonzero()
        pick = int(torch.randint(max(len(where), 1), (), generator=generator))
        middle = where[pick] if len(where) else torch.tensor(scan[2].shape[1:]) // 2
        limit = torch.tensor(scan[2].shape[1:]) - self._patch
        corner = torch.minimum((middle - self._patch // 2).clamp_min(0), limit)
        i, j, k = (slice(int(c), int(c) + self._patch) for c in corner)
        return tuple(t[:, i, j, k] for t in scan)


def validation_samples(
    scanner: Scanner, tasks: Sequence[str], numbers: Sequence[int]
) -> list[Sample]:
    """Whole blocks with their truth."""
    samples = []
    for number in numbers:
        scan = scanner.scan(number)
        target = torch.cat([scan.targets[task] for task in tasks])
        affine = np.diag([*scan.voxel_mm, 1.0])
        samples.append(Sample(scan.image, scan.mask, affine, target))
    return samples
