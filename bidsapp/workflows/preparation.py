"""Place, Size, and the part `preparation`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bidsapp.resources import NETWORK_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Place:
    """Where a call reads and writes, and what it may use."""

    roots: Mapping[str, Path]  #: name in BIDS URIs → dataset: 'raw', 'qsiprep'
    out_root: Path
    seed: int
    device: str
    omp_nthreads: int


@dataclass(frozen=True, slots=True)
class Size:
    """What the memory that steps need is estimated from."""

    voxels: int  #: of one volume
    volumes: int

    @property
    def run_gb(self) -> float:
        """GiB of all volumes as float32."""
        return 4 * self.voxels * self.volumes / 2**30

    @property
    def network_gb(self) -> float:
        """GiB that applying the bundled network takes beside the program itself."""
        return NETWORK_BYTES * self.voxels / 2**30


#: Of a run whose header could not be read.
EMPTY = Size(0, 0)
