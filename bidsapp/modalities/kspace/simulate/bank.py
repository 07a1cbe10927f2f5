"""A bank of simulated slices as networks see them: with their maps and where they start.

Making one takes as long as several steps of learning, so each is drawn some twenty times, mirrored
and rephased anew (`simulate.stream`), while worker processes make the next ones. Number i of a seed
is the same whoever makes it.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from bidsapp.modalities.kspace.physics.seen import seen
from bidsapp.modalities.kspace.simulate.slices import EVERYTHING, draw_slice
from bidsapp.physics.streams import stream
from bidsapp.simulate.anatomy import Template
from bidsapp.simulate.grids import Grid, chance
from bidsapp.simulate.material import Scan

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bidsapp.modalities.kspace.simulate.slices import Slice, Variety

log = logging.getLogger('transfermri')

#: Readout positions of a slice of whole lines, and at either end of them those that see the end:
#: of a crop the operator is exact, but not total variation, nor what a network sees around it.
COLUMNS, EDGE = 64, 8
#: Lines of slices, and readout positions before the crop; of slices with a mask of samples, which
#: cannot be cropped, fewer of both. Drawn evenly, odd ones too.
LINES, READOUT, FEWER = (112, 256), (128, 256), (80, 144)
#: Scans that workers make before they are asked for.
AHEAD = 4


def drawn_scan(template: Template, seed: int, number: int, variety: Variety = EVERYTHING) -> Scan:
    """Scan ``number`` of a seed: a slice with its maps and start, and the truth."""
    generator = stream(seed, number, of='shape')
    of_samples = chance(variety.samples, generator)
    x, y = (
        int(torch.randint(low, high + 1, (), generator=generator))
        for low, high in ((FEWER, FEWER) if of_samples else (READOUT, LINES))
    )
    variety = replace(variety, samples=float(of_samples))
    return scan_of(draw_slice(template, (x, y), seed, number, variety, COLUMNS))


def scan_of(one: Slice) -> Scan:
    """A slice as a network sees it; ``image`` of the truth is (2, X, Y, 1)."""
    image, context = seen(one.plane)
    mask = torch.ones(1, *image.shape[1:], dtype=torch.bool)
    if one.cropped:
        mask[:, :EDGE] = mask[:, -EDGE:] = False
    truth = torch.view_as_real(one.target).movedim(-1, 0)[..., None]
    return Scan(image, mask, {'image': truth.contiguous()}, (1.0, 1.0, 1.0), context)


class Bank:
    """Scans of one seed; with ``makers`` those that come next are made while one is at work."""

    def __init__(
        self,
        template: Template,
        seed: int,
        variety: Variety = EVERYTHING,
        makers: ProcessPoolExecutor | None = None,
    ) -> None:
        self._template, self._seed, self._variety = template, seed, variety
        self._makers = makers
        self._coming: dict[int, Future[dict[str, Any]]] = {}

    def scan(self, number: int) -> Scan:
        """Scan ``number``, made here where no worker is left to make it."""
        if self._makers is not None:
            try:
                return self._from_workers(self._makers, number)
            except BrokenProcessPool:
                log.warning('a process that makes slices was killed: they are made one by one')
                self._makers = None
        return drawn_scan(self._template, self._seed, number, self._variety)

    def _from_workers(self, makers: ProcessPoolExecutor, number: int) -> Scan:
        for ahead in range(number, number + AHEAD + 1):
            if ahead not in self._coming:
                self._coming[ahead] = makers.submit(_made, self._seed, ahead, self._variety)
        return _received(self._coming.pop(number).result())


def makers_of(template: Template, processes: int) -> ProcessPoolExecutor:
    """Processes that make scans of a template beside what else is to be done; they end with it."""
    arrays = template.fractions.numpy(), template.grid.shape, template.grid.affine.numpy()
    return ProcessPoolExecutor(
        processes, multiprocessing.get_context('spawn'), initializer=_begun, initargs=arrays
    )


_template: list[Template] = []  #: of a worker process


def _begun(fractions: Any, shape: tuple[int, int, int], affine: Any) -> None:
    torch.set_num_threads(1)
    os.nice(10)
    for number in (signal.SIGTERM, signal.SIGINT):  # it ends with the process that asked for it
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:  # one that was killed asks for no more

        def follow() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=follow, daemon=True).start()
    _template[:] = [Template(torch.from_numpy(fractions), Grid(shape, torch.from_numpy(affine)))]


def _made(seed: int, number: int, variety: Variety) -> dict[str, Any]:
    """A scan as arrays: tensors would go through shared memory, of which containers have little."""
    scan = drawn_scan(_template[0], seed, number, variety)
    tensors = {'image': scan.image, 'mask': scan.mask, 'truth': scan.truth['image']}
    tensors |= {f'context.{name}': value for name, value in scan.context.items()}
    return {name: value.numpy() for name, value in tensors.items()}


def _received(arrays: Mapping[str, Any]) -> Scan:
    found = {name: torch.from_numpy(value) for name, value in arrays.items()}
    context = {
        name.removeprefix('context.'): value
        for name, value in found.items()
        if name.startswith('context.')
    }
    return Scan(found['image'], found['mask'], {'image': found['truth']}, (1.0, 1.0, 1.0), context)
