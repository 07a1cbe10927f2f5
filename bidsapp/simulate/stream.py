"""Endless labelled scans: blocks of varied heads, scanned with varied schemes, as batches.

Everything follows from (seed, step): which block is drawn when, and what is cut from it. A block is
scanned several times, and each scan serves several batches, turned and cut differently, so that
making scans costs little beside learning from them.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from bidsapp.core import GradientTable, Sample
from bidsapp.physics import qspace
from bidsapp.physics.harmonics import degrees
from bidsapp.simulate.anatomy import GM, WM
from bidsapp.simulate.blocks import (
    Block,
    Substance,
    Texture,
    blurred,
    draw_block_grid,
    draw_substance,
    draw_texture,
    fractions_of,
    make_block,
    parameters,
    signal_at_rest,
    signal_harmonics,
    textured,
)
from bidsapp.simulate.corruption import (
    Corruption,
    Table,
    corrupted,
    draw_corruption,
    draw_table,
    true_volumes,
)
from bidsapp.simulate.fibres import MAX_FIBRES
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
    from collections.abc import Callable, Collection, Mapping, Sequence

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


@dataclass(frozen=True, slots=True, eq=False)
class Scan:
    """A canonical input and the truth behind it, on one block."""

    image: Tensor  #: (97, X, Y, Z)
    mask: Tensor  #: (1, X, Y, Z) bool
    targets: Mapping[str, Tensor]  #: by task, in the task's own layout
    voxel_mm: tuple[float, ...]
    table: Table


def clean_harmonics(
    harmonics: Mapping[float, Tensor], s0: Tensor, b_of_slot: Mapping[int, float]
) -> Tensor:
    """(slots · N_SH, X, Y, Z) the canonical harmonics that an endless noiseless scan would give."""
    clean = s0.new_zeros(len(qspace.SLOTS) * qspace.N_SH, *s0.shape)
    for slot, b in b_of_slot.items():
        values = harmonics[b][: qspace.N_SH] / s0.clamp_min(1e-6)
        mean = float(qspace.prior(np.array([b]), np.array([b]))[0][0])
        values[0] -= mean * (4 * torch.pi) ** 0.5
        spread = qspace.prior_deviation(b)[degrees(qspace.ORDER) // 2]
        first = slot * qspace.N_SH
        clean[first : first + qspace.N_SH] = (
            values / torch.from_numpy(spread).to(values)[:, None, None, None]
        )
    return clean


def canonical(
    volumes: Tensor, table: Table, mask: Tensor, spacing: Sequence[float]
) -> tuple[Tensor, GradientTable]:
    """The canonical input (97, X, Y, Z) of ``volumes`` (N, X, Y, Z), and their table."""
    gtab = GradientTable(table.bvecs.double().numpy(), table.bvals.double().numpy())
    s0 = volumes[table.bvals == 0].mean(0)
    floor = 1e-3 * float(s0[mask].median()) + 1e-12
    attenuation = (volumes[table.bvals > 0] / s0.clamp_min(floor)).clamp(0, 1.5).cpu().numpy()
    brain = mask.cpu().numpy()
    variance = qspace.noise_variance(attenuation, brain, gtab[~gtab.b0])
    image = qspace.canonical_channels(
        attenuation, s0.cpu().numpy(), brain, gtab, variance, np.array(spacing)
    )
    return torch.from_numpy(image), gtab


def scan_block(
    block: Block,
    substance: Substance,
    table: Table,
    corruption: Corruption,
    texture: Texture,
    generator: torch.Generator,
) -> Scan:
    """Scan a block and tell the truth."""
    sharp, mask = signal_at_rest(block, substance), block.mask

    def signal(b: float) -> Tensor:
        return textured(signal_harmonics(block, substance, b), sharp, b, texture)

    harmonics = {float(b): signal(float(b)) for b in table.bvals.unique() if b > 0}
    s0 = blurred(sharp, texture.blur)
    volumes = true_volumes(harmonics, s0, table, corruption.motion)
    volumes = corrupted(volumes, corruption, block.grid, generator)
    image, gtab = canonical(volumes, table, mask, block.grid.spacing)
    slots = qspace.filled_slots(gtab)
    # Shells that lie close together stand in the canonical input as one, at their mean b.
    for b in slots.values():
        if b not in harmonics:
            harmonics[b] = signal(b)
    clean = clean_harmonics(harmonics, s0, slots).to(image)
    return Scan(
        image, mask[None].cpu(), targets_of(block, substance, image, clean, slots),
        tuple(block.grid.spacing), table,
    )  # fmt: skip


def correction_to(clean: Tensor, image: Tensor, mask: Tensor, slots: Collection[int]) -> Tensor:
    """(87, X, Y, Z) what task restore shall say of ``image``, whose clean harmonics are known."""
    filled = torch.stack([mask & (slot in slots) for slot in range(len(qspace.SLOTS))]).float()
    wanted = (clean - qspace.input_harmonics(image)) * filled.repeat_interleave(qspace.N_SH, 0)
    return torch.cat([wanted, filled])


def targets_of(
    block: Block, substance: Substance, image: Tensor, clean: Tensor, slots: Mapping[int, float]
) -> dict[str, Tensor]:
    """What each task shall say, in its own layout, zero outside the brain."""
    mask = block.mask.cpu()
    fractions = fractions_of(block.tissues).cpu() * mask
    directions = block.directions.cpu() * mask
    n_fibres = directions.unflatten(0, (MAX_FIBRES, 3)).norm(dim=1).gt(0.5).sum(0)
    structure = parameters(block, substance).cpu()
    # One shell does not tell density from dispersion; and fluid has neither.
    if len(slots) < 2:
        structure = torch.full_like(structure, -1.0)
    neurites = (block.tissues[[GM, WM]].sum(0) > 0.2).cpu()
    structure[:2, ~neurites] = -1
    return {
        'tissue': fractions / fractions.sum(0).clamp_min(1e-6),
        'orientation': directions,
        'crossings': ((n_fibres + 1) * mask)[None].float(),
        'microstructure': structure,
        'restore': correction_to(clean, image, mask, slots),
    }


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

    def scan(self, number: int) -> Scan:
        """Scan number ``number``: of a block that is made of something else each time."""
        block = self.block(block_of(number))
        generator = self._generator(2, number)
        substance = draw_substance(block, generator)
        table = self._draw(generator)
        corruption = draw_corruption(block.grid, table, float(substance.s0[WM]), generator)
        if not self._corrupt:
            corruption = corruption.undone
        texture = draw_texture(block, generator)
        scan = scan_block(block, substance, table, corruption, texture, generator)
        if chance(NO_CONTRAST, generator):
            scan.image[qspace.S0_CHANNEL] = 0
        return scan


class SimulatedStream:
    """Batches of patches cut from a moving window of a simulator's scans."""

    channels_in = qspace.N_CHANNELS

    def __init__(
        self,
        simulator: Simulator,
        tasks: Sequence[str],
        patch: int,
        window: int = 32,
        steps_a_scan: int = 24,
    ) -> None:
        self._simulator, self._tasks, self._patch = simulator, tuple(tasks), patch
        self._window, self._steps = window, steps_a_scan
        self._scans: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    def _scan(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        if number not in self._scans:
            scan = self._simulator.scan(number)
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
    simulator: Simulator, tasks: Sequence[str], numbers: Sequence[int]
) -> list[Sample]:
    """Whole blocks with their truth."""
    samples = []
    for number in numbers:
        scan = simulator.scan(number)
        target = torch.cat([scan.targets[task] for task in tasks])
        affine = np.diag([*scan.voxel_mm, 1.0])
        samples.append(Sample(scan.image, scan.mask, affine, target))
    return samples
