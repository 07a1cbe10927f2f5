"""Random numbers that follow from what they are for."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def stream(*numbers: int, of: str = '') -> torch.Generator:
    """The generator, on the CPU, that ``numbers`` (0 or more each) name for one purpose.

    Every other name is that of an independent one. Two things that are drawn for the same numbers,
    such as which scan a step shows and how it is turned, are told apart by ``of``: from generators
    of equal seeds they would agree.
    """
    import torch

    key = (zlib.crc32(of.encode()),) if of else ()
    state = np.random.SeedSequence(numbers, spawn_key=key).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0] >> 1))
