"""Endless simulated dMRI: blocks of varied heads, scanned with varied schemes."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from bidsapp.modalities.dwi.physics import qspace
from bidsapp.modalities.dwi.simulate.blocks import Block, draw_block_grid, make_block
from bidsapp.modalities.dwi.simulate.corruption import Table, draw_corruption, draw_table
from bidsapp.modalities.dwi.simulate.model_mismatch import draw_model_mismatch
from bidsapp.modalities.dwi.simulate.scanned import ScanParameters, scan_block
from bidsapp.modalities.dwi.simulate.tissue_parameters import draw_tissue_parameters
from bidsapp.modalities.dwi.simulate.varied_bundles import abstract_bundles, draw_varied_bundles
from bidsapp.physics.streams import stream
from bidsapp.simulate.anatomy import WM
from bidsapp.simulate.domain_randomisation import (
    ABSTRACT,
    abstract_head,
    abstract_template,
    draw_varied_head,
)
from bidsapp.simulate.grids import chance

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from bidsapp.modalities.dwi.simulate.fibres import Bundles
    from bidsapp.modalities.dwi.simulate.scanned import DwiScan
    from bidsapp.simulate.anatomy import Head, Template

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


def block_with_brain(head: Head, bundles: Bundles, side: int, generator: torch.Generator) -> Block:
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
        return stream(self._seed, *numbers)

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
                self._blocks[k] = block_with_brain(head, bundles, self._side, own)
            while len(self._blocks) > ROUND + 3 * BLOCKS:
                self._blocks.popitem(last=False)
        return self._blocks[number]

    def drawn(self, number: int) -> ScanParameters:
        """What scan number ``number`` is of: a block, made of something else each time."""
        block = self.block(block_of(number))
        generator = self._generator(2, number)
        tissue_parameters = draw_tissue_parameters(block, generator)
        table = self._draw(generator)
        corruption = draw_corruption(block.grid, table, float(tissue_parameters.s0[WM]), generator)
        if not self._corrupt:
            corruption = corruption.undone
        mismatch = draw_model_mismatch(block, generator)
        return ScanParameters(block, tissue_parameters, table, corruption, mismatch, generator)

    def scan(self, number: int) -> DwiScan:
        """Scan number ``number``."""
        drawn = self.drawn(number)
        scan = scan_block(drawn)
        if chance(NO_CONTRAST, drawn.generator):
            scan.image[qspace.S0_CHANNEL] = 0
        return scan
