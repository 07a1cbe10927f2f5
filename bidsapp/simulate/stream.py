"""Endless labelled scans: blocks of varied heads, scanned with varied schemes, as batches.

Everything follows from (seed, step): which block is drawn when, and what is cut from it. A block is
scanned several times, and each scan serves several batches, turned and cut differently, so that
making scans costs little beside learning from them.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from bidsapp.core import Sample
from bidsapp.physics import qspace
from bidsapp.simulate.anatomy import WM
from bidsapp.simulate.blocks import Block, draw_block_grid, make_block
from bidsapp.simulate.corruption import Table, draw_corruption, draw_table
from bidsapp.simulate.scanned import Drawn, Scan, Scanner, scan_block
from bidsapp.simulate.substance import draw_substance
from bidsapp.simulate.texture import draw_texture
from bidsapp.simulate.variety import (
    ABSTRACT,
    abstract_bundles,
    abstract_head,
    abstract_template,
    chance,
    draw_varied_bundles,
    draw_varied_head,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bidsapp.simulate.anatomy import Head, Template
    from bidsapp.simulate.fibres import Bundles

#: Voxels along the edge of a block; scans of a block; blocks that share one person's bundles.
SIDE, SCANS, BLOCKS = 48, 8, 3
#: Blocks that are scanned in turn, so that scans in a row are of different people.
ROUND = 24
#: Voxels of brain that a block must hold.
LEAST_BRAIN = 64
#: Chance that a scan comes without the contrast of its b=0 image.
NO_CONTRAST = 0.3


def block_of(scan: int) -> int:
    """Which block scan number ``scan`` is of.

    ROUND blocks take turns; each is replaced after SCANS scans, not all at the same time.
    """
    turn, place = divmod(scan, ROUND)
    return (turn + place // BLOCKS) // SCANS * ROUND + place


def _block_with_brain(head: Head, bundles: Bundles, side: int, generator: torch.Generator) -> Block:
    """A block of which enough is brain."""
    while True:
        block = make_block(head, bundles, draw_block_grid(head, side, generator))
        if int(block.mask.sum()) >= LEAST_BRAIN:
            return block


def scan_of_person(index: int) -> int:
    """The number of a scan of person ``index``: different people for different numbers."""
    turn, place = divmod(index * BLOCKS, ROUND)
    return max(0, turn * SCANS - place // BLOCKS) * ROUND + place


class Simulator:
    """Draws scan number i of a seed, each the same whenever it is asked for in order or not."""

    def __init__(
        self,
        template: Template,
        seed: int,
        side: int = SIDE,
        corrupt: bool = True,
        draw: Callable[[torch.Generator], Table] = draw_table,
    ) -> None:
        self._template, self._seed, self._side = template, seed, side
        self._corrupt, self._draw = corrupt, draw
        self._blocks: OrderedDict[int, Block] = OrderedDict()

    def _generator(self, *numbers: int) -> torch.Generator:
        state = np.random.SeedSequence((self._seed, *numbers)).generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(state[0] >> 1))

    def block(self, number: int) -> Block:
        """Block number ``number``; BLOCKS of one person have numbers in a row."""
        if number not in self._blocks:
            generator = self._generator(0, number // BLOCKS)
            if chance(ABSTRACT, generator):
                template = abstract_template(generator, self._template.fractions.device)
                head, bundles = abstract_head(template), abstract_bundles(template, generator)
            else:
                head = draw_varied_head(self._template, generator)
                bundles = draw_varied_bundles(self._template, generator)
            # All blocks of the person at once, so that the head need not be kept.
            own = self._generator(1, number // BLOCKS)
            first = number - number % BLOCKS
            for k in range(first, first + BLOCKS):
                self._blocks[k] = _block_with_brain(head, bundles, self._side, own)
            while len(self._blocks) > ROUND + 3 * BLOCKS:
                self._blocks.popitem(last=False)
        return self._blocks[number]

    def drawn(self, number: int) -> Drawn:
        """What scan number ``number`` is of: a block, made of something else each time."""
        block = self.block(block_of(number))
        generator = self._generator(2, number)
        substance = draw_substance(block, generator)
        table = self._draw(generator)
        corruption = draw_corruption(block.grid, table, float(substance.s0[WM]), generator)
        if not self._corrupt:
            corruption = corruption.undone
        return Drawn(block, substance, table, corruption, draw_texture(block, generator), generator)

    def scan(self, number: int) -> Scan:
        """Scan number ``number``."""
        drawn = self.drawn(number)
        scan = scan_block(drawn)
        if chance(NO_CONTRAST, drawn.generator):
            scan.image[qspace.S0_CHANNEL] = 0
        return scan


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
