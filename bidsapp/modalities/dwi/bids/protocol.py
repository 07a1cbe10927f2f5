"""A routine scan that others are made like: its table, its voxels, its noise."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from bidsapp.bids.images import load_volume, open_image
from bidsapp.bids.names import parse
from bidsapp.modalities.dwi.bids.tables import b0_threshold_of, examine_table, read_numbers
from bidsapp.modalities.dwi.physics.acquisition import acquisition
from bidsapp.modalities.dwi.physics.gradients import from_fsl
from bidsapp.physics.geometry import voxel_sizes
from bidsapp.problems import BadData, MissingInput

if TYPE_CHECKING:
    from pathlib import Path

    from bidsapp.core import BoolArray, FloatArray
    from bidsapp.modalities.dwi.physics.gradients import GradientTable

#: The greatest part of a vector or b that is told apart in a card.
_DIGITS = 4


@dataclass(frozen=True, slots=True, eq=False)
class Protocol:
    """What is taken from a scan."""

    gtab: GradientTable  #: world axes
    world_mm: tuple[float, ...]  #: edges of its voxel along the axes nearest to world x, y, z
    variance: float  #: of the noise of S/S0, as the app estimates it
    prepared: bool  #: whether the scan had been preprocessed
    sha256: str  #: of image and tables

    @property
    def words(self) -> str:
        """One line for people."""
        edges = ' x '.join(f'{edge:.3g}' for edge in self.world_mm)
        facts = acquisition(self.gtab)
        table = ', '.join(f'{n} directions at b={b:.0f}' for b, n in facts.shells)
        return (
            f'{table}, {int(self.gtab.b0.sum())} b=0, voxels of {edges} mm, signal-to-noise ratio '
            f'{1 / np.sqrt(self.variance):.1f}'
        )

    @property
    def described(self) -> dict[str, Any]:
        """What a card says of it; the scan is known by its hash, not by where it lay."""
        table = np.column_stack([self.gtab.bvecs, self.gtab.bvals])
        return {
            'words': self.words,
            'table': [[round(float(x), _DIGITS) for x in row] for row in table],
            'columns': 'x, y, z in world axes (RAS+), b in s/mm2',
            'voxel_mm': [round(edge, _DIGITS) for edge in self.world_mm],
            'noise': round(float(np.sqrt(self.variance)), 5),
            'scan': 'preprocessed' if self.prepared else 'raw',
            'sha256': self.sha256,
        }


def protocol_of(path: Path) -> Protocol:
    """What is to be taken from the scan ``path``, whose tables stand beside it.

    Raises MissingInput for what is not there, BadData for what cannot be used.
    """
    stem = path.name.removesuffix('.gz').removesuffix('.nii')
    if stem == path.name:
        raise BadData(f'--input-like {path}: expected a diffusion scan, *.nii or *.nii.gz.')
    files = [path, *(path.with_name(f'{stem}.{kind}') for kind in ('bval', 'bvec'))]
    if gone := [file for file in files if not file.is_file()]:
        raise MissingInput(
            f'--input-like {path}: {gone[0]} is not there. Expected the path of a routine scan, '
            'with its bval and bvec beside it and named as it is.'
        )
    states = tuple((file.stat().st_size, file.stat().st_mtime_ns) for file in files)
    return _read(path.absolute(), states)


@lru_cache(maxsize=4)
def _read(path: Path, states: tuple[tuple[int, int], ...]) -> Protocol:
    from bidsapp.modalities.dwi.physics.likeness import noise_of, world_order

    stem = path.name.removesuffix('.gz').removesuffix('.nii')
    files = [path, *(path.with_name(f'{stem}.{kind}') for kind in ('bval', 'bvec'))]
    bval, bvec = (read_numbers(file) for file in files[1:])
    found = examine_table(path, bvec, bval, b0_threshold_of(path))
    if found.errors:
        raise BadData(f'--input-like {path}: ' + '; '.join(found.errors) + '.')
    affine = open_image(path).affine
    gtab = from_fsl(found.bvecs, found.bvals, affine, found.b0_threshold)
    if not gtab.b0.any():
        raise BadData(f'--input-like {path}: it has no b=0 volume, against which noise is told.')
    data = load_volume(path)[..., found.kept]
    prepared = 'desc' in parse(path.name)
    beside = path.with_name(stem.partition('_desc-')[0] + '_desc-brain_mask.nii.gz')
    if prepared and beside.is_file():
        brain = load_volume(beside) > 0
    else:
        brain = brain_in(data, gtab, affine)
    if not brain.any():
        raise BadData(f'--input-like {path}: no brain was found in it.')
    digest = hashlib.sha256(b''.join(file.read_bytes() for file in files)).hexdigest()
    edges = voxel_sizes(affine)
    world = tuple(float(edges[axis]) for axis in world_order(affine))
    return Protocol(gtab, world, noise_of(data, gtab, brain), prepared, digest)


def brain_in(data: FloatArray, gtab: GradientTable, affine: FloatArray) -> BoolArray:
    """(X, Y, Z) the brain in the signals (X, Y, Z, N) of a raw run."""
    from bidsapp.physics.brain import brain_mask

    return brain_mask(data[..., gtab.b0].mean(-1), data[..., ~gtab.b0].mean(-1), affine)
