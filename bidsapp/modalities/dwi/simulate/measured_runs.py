"""What of a prepared run was measured, for pretraining from real scans, and how noisy it is."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

from bidsapp import __version__
from bidsapp.core import Sample
from bidsapp.learn.inputs import states
from bidsapp.modalities.dwi.learn.input import brain_of, unmeasured
from bidsapp.modalities.dwi.physics.gradients import in_grid
from bidsapp.modalities.dwi.physics.noise import map_noise

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from bidsapp.core import BoolArray, Case, FloatArray
    from bidsapp.modalities.dwi.physics.gradients import GradientTable

#: Files that say what was measured.
KINDS = ('dwi', 'bval', 'bvec', 'mask')


def place_of(case: Case, folder: Path, more: Sequence[Path] = ()) -> Path:
    """Where what is worked out of a run, and of ``more`` files, is kept: by their states."""
    files = [*(case.files[kind] for kind in KINDS if kind in case.files), *more]
    identity = [__version__, *([str(path), *state] for path, state in states(files).items())]
    return folder / hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]


@dataclass(frozen=True, eq=False)
class MeasuredVolumes:
    """The volumes of a run without those of which slices were predicted from others."""

    data: FloatArray  #: (X, Y, Z, N)
    brain: BoolArray  #: (X, Y, Z)
    world: GradientTable  #: in world axes
    sample: Sample  #: the grid alone
    dropped: int | None  #: volumes that are not among them; None: no slice was predicted

    @cached_property
    def gtab(self) -> GradientTable:
        """In the axes of the grid."""
        return in_grid(self.world, self.sample.affine)

    @cached_property
    def s0(self) -> np.ndarray:
        """(X, Y, Z) the mean b=0 image."""
        return np.asarray(self.data[..., self.gtab.b0].mean(-1))

    @cached_property
    def unit(self) -> float:
        """The median of S0 in the brain."""
        return float(np.median(self.s0[self.brain])) + 1e-12

    @cached_property
    def variance(self) -> float:
        """Of the noise of S/S0."""
        b0 = self.gtab.b0
        relative = np.moveaxis(self.data, -1, 0) / np.maximum(self.s0, 1e-3 * self.unit)
        weighted = np.clip(relative[~b0], 0, 1.5)
        return map_noise(weighted, self.brain, self.gtab[~b0], relative[b0])


def measured_volumes(case: Case) -> MeasuredVolumes:
    """Those of a prepared run, in RAS, cropped to the brain. Raises BadData without a brain."""
    data, brain, world, affine = brain_of(case)
    sample = Sample(torch.zeros(0), torch.from_numpy(brain.copy())[None], affine)
    if (lost := unmeasured(case, sample)) is None:
        return MeasuredVolumes(data, brain, world, sample, None)
    keep = np.flatnonzero(~lost[:, brain].any(1))
    return MeasuredVolumes(data[..., keep], brain, world[keep], sample, len(lost) - len(keep))
