"""Real raw scans for the evidence: one motion estimate, one interpolation, then the division.

Where the head was is estimated once from all volumes of a run (`physics.motion`, with the placement
against b = 0), as the app does; the parts of a division therefore lie on each other, which is
measured (`offset`) and refused where it is not so. What mixes volumes otherwise (replaced outlier
slices, MP-PCA, masks) comes from one part alone. The b = 0 volumes carry no direction and most
scans have one only: both parts use the same ones.

What takes long and holds no network is kept under the system's folder for temporary files, under
names that hold the scan's content and the code that made it: it is safe to use again.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, replace
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import numpy as np
from offset import offset

from bidsapp.bids.images import crop_to, load_volume, open_image, to_ras
from bidsapp.bids.scans import inherited, read_scan
from bidsapp.learn.seen import identity
from bidsapp.modalities.dwi import physics as of_diffusion
from bidsapp.modalities.dwi.bids.tables import examine_table, read_numbers
from bidsapp.modalities.dwi.interfaces.motion import load_motion, save_motion
from bidsapp.modalities.dwi.physics import outliers, realignment
from bidsapp.modalities.dwi.physics.acquisition import MIN_DIRECTIONS, acquisition
from bidsapp.modalities.dwi.physics.gradients import GradientTable, from_fsl
from bidsapp.modalities.dwi.physics.motion import apply_motion, estimate_motion, impossible
from bidsapp.physics import brain, denoising
from bidsapp.problems import BadData, MissingInput

if TYPE_CHECKING:
    from collections.abc import Callable

    from bidsapp.modalities.dwi.physics.motion import Motion

#: Where what takes long and holds no network is kept from run to run.
KEPT = Path(tempfile.gettempdir()) / 'transfermri-evidence'
#: The real scans lie beside a checkout; `participant` has written what it made of them to DONE.
SHARED = Path(__file__).resolve().parents[3] / 'shared' / 'data'
RAW = SHARED / 'multivendor'
DONE = Path(os.environ.get('TRANSFERMRI_DERIVATIVES', f'{tempfile.gettempdir()}/mv'))
#: How many choices of directions, and the largest condition number of either part's tensor.
CHOICES, WELL_CONDITIONED = 4, 10.0
#: mm; parts that lie farther apart than this say nothing of directions.
APART = 0.2
#: The modules of this folder that make a division.
MADE_BY = ('realscans', 'offset')
#: Voxels kept around the brain; the grid's axis along which slices lie.
MARGIN, SLICES = 3, 2


@dataclass(frozen=True, slots=True, eq=False)
class Scan:
    """Volumes of one run on its grid."""

    data: np.ndarray  #: (X, Y, Z, N) float32
    gtab: GradientTable  #: world axes
    affine: np.ndarray  #: (4, 4)
    mask: np.ndarray  #: (X, Y, Z) bool, brain

    def of(self, volumes: np.ndarray) -> Scan:
        """Some of its volumes."""
        return replace(self, data=self.data[..., volumes], gtab=self.gtab[volumes])

    def inside(self, box: tuple[slice, slice, slice]) -> Scan:
        """A piece of it."""
        shift = np.eye(4)
        shift[:3, 3] = [s.start for s in box]
        return replace(self, data=self.data[box], mask=self.mask[box], affine=self.affine @ shift)

    def in_ras(self) -> Scan:
        """Its axes permuted and flipped to the nearest RAS."""
        data, affine = to_ras(self.data, self.affine)
        mask, _ = to_ras(self.mask, self.affine)
        return replace(self, data=np.ascontiguousarray(data), mask=mask.copy(), affine=affine)


def load(path: Path) -> tuple[Scan, str | None]:
    """A raw run, its mask from its own mean images, and its phase-encoding axis if known.

    Tables and sidecars may be inherited, as BIDS has it. Raises BadData or MissingInput.
    """
    root = next((p.parent for p in path.parents if p.name.startswith('sub-')), path.parent)
    tables = []
    for kind in ('.bvec', '.bval'):
        if not (found := inherited(root, path, kind)):
            raise MissingInput(f'{path.name} has no {kind} file, beside it or above it')
        tables.append(read_numbers(found[-1]))
    table = examine_table(path, tables[0], tables[1].ravel())
    if table.errors:
        raise BadData(f'{path.name}: {"; ".join(table.errors)}')
    affine = np.asarray(open_image(path).affine)
    said = read_scan(root, path).metadata
    phase = said.get('PhaseEncodingDirection') or said.get('PhaseEncodingAxis')
    gtab = from_fsl(table.bvecs, table.bvals, affine, table.b0_threshold)
    data = load_volume(path)[..., table.kept]
    return Scan(data, gtab, affine, own_mask(data, gtab, affine)), phase


def own_mask(data: np.ndarray, gtab: GradientTable, affine: np.ndarray) -> np.ndarray:
    """Brain by the app's rule, from these volumes only."""
    return brain.brain_mask(data[..., gtab.b0].mean(-1), data[..., ~gtab.b0].mean(-1), affine)


def load_done(name: str, folder: Path = DONE) -> Scan:
    """A run as the app has preprocessed it, by the start of its file names; RAS, cropped."""
    path = next(folder.rglob(f'{name}_desc-preproc_dwi.nii.gz'))
    image = open_image(path)
    stem = str(path).removesuffix('.nii.gz')
    gtab = from_fsl(np.loadtxt(f'{stem}.bvec'), np.loadtxt(f'{stem}.bval'), image.affine)
    mask_path = path.with_name(f'{name}_desc-brain_mask.nii.gz')
    mask = np.asarray(open_image(mask_path).dataobj) > 0
    whole = Scan(np.asarray(image.dataobj, np.float32), gtab, image.affine, mask).in_ras()
    return whole.inside(crop_to(whole.mask))


def divisions(gtab: GradientTable, n: int, wanted: int = CHOICES) -> list[tuple[np.ndarray, ...]]:
    """Ways to put ``n`` weighted volumes in and leave the others as reference: (in, reference).

    Of 2000 random ways, those whose worse condition number of the tensor's design is least and
    which share no more than two thirds of the volumes that are in. The b = 0 volumes are in both.
    """
    rng = np.random.default_rng(0)
    weighted, b0 = np.flatnonzero(~gtab.b0), np.flatnonzero(gtab.b0)
    if len(weighted) < n + MIN_DIRECTIONS:
        return []
    tried = []
    for _ in range(2000):
        parts = np.split(rng.permutation(weighted), [n])
        tried.append((max(acquisition(gtab[part]).condition for part in parts), parts))
    chosen: list[list[np.ndarray]] = []
    for condition, parts in sorted(tried, key=lambda one: one[0]):
        apart = all(len(np.intersect1d(parts[0], other[0])) <= 2 * n / 3 for other in chosen)
        if condition < WELL_CONDITIONED and apart and len(chosen) < wanted:
            chosen.append(parts)
    return [tuple(np.sort(np.concatenate([b0, p])) for p in parts) for parts in chosen]


@dataclass(frozen=True, slots=True, eq=False)
class Divided:
    """What goes in, what it looks like after MP-PCA, and the reference; same grid, RAS."""

    scan: Scan
    denoised: np.ndarray | None  #: (X, Y, Z, N), from 13 volumes
    reference: Scan
    measured: np.ndarray  #: (N,) reference volumes without b = 0, and without a predicted slice
    offset: float  #: mm between the two


@cache
def version(*own: str) -> str:
    """Of the mathematics of the app and of modules of this folder: it names what they made."""
    physics = [Path(str(module.__file__)).parent for module in (of_diffusion, brain)]
    sources = [path for folder in physics for path in sorted(folder.glob('*.py'))]
    sources += [Path(__file__).with_name(f'{name}.py') for name in own]
    return sha256(b''.join(path.read_bytes() for path in sources)).hexdigest()[:12]


def kept(name: str, write: Callable[[Path], object], *own: str) -> Path:
    """The file ``name`` (.npz) as ``write`` writes it, once for each `version` of ``own``."""
    path = KEPT / f'{name}-{version(*own)}.npz'
    if not path.is_file():
        KEPT.mkdir(exist_ok=True)
        part = path.with_name(f'{os.getpid()}.{path.name}')
        write(part)
        part.rename(path)
    return path


def key_of(path: Path) -> str:
    """Name and content of a scan."""
    return f'{path.name.split(".")[0]}-{(identity(path) or "")[:12]}'


def motion_of(path: Path) -> tuple[Scan, str | None, Motion]:
    """A raw run, its phase-encoding axis, and where the head was in all of its volumes."""
    raw, phase = load(path)

    def write(to: Path) -> None:
        motion = estimate_motion(raw.data, raw.affine, raw.gtab, raw.mask, phase, SLICES)
        if lost := impossible(motion):
            raise BadData(f'{path.name}: volumes {sorted(lost)} lie where no head can be')
        save_motion(to, motion)

    return raw, phase, load_motion(kept(f'{key_of(path)}-motion', write), SLICES)


def corrected(
    raw: Scan, motion: Motion, phase: str | None, volumes: np.ndarray, denoise: bool = False
) -> tuple[Scan, np.ndarray | None, np.ndarray]:
    """Some ``volumes`` of a run where the head was at rest, by the ``motion`` of all of it.

    Then the same after MP-PCA if asked for, and (N,) which of them hold no predicted slice: those
    that dropped out are sought, and predicted, among these volumes alone. The app denoises from
    15 volumes only; here it is given 12 directions and a b = 0 too.
    """
    part = raw.of(volumes)
    own = replace(motion, parameters=motion.parameters[volumes], gtab=motion.gtab[volumes])
    run = realignment.prepare(part.data, part.affine, part.gtab, part.mask, phase, 'cpu')
    low = outliers.replace_outliers(run, own.parameters, SLICES)
    own = replace(own, outliers=low)
    moved = apply_motion(part.data, part.affine, own)
    fewer = None
    if denoise and len(part.gtab) >= 13:
        with mock.patch.object(denoising, 'MIN_VOLUMES', 12):
            cleaner = denoising.denoise(part.data).data
        fewer = apply_motion(cleaner, part.affine, own)
    mask = own_mask(moved, own.gtab, part.affine)
    return Scan(moved, own.gtab, part.affine, mask), fewer, low.counts == 0


def whole(path: Path) -> Scan:
    """All volumes of the run at ``path``, corrected; RAS, cropped."""
    raw, phase, motion = motion_of(path)
    scan = corrected(raw, motion, phase, np.arange(len(raw.gtab)))[0].in_ras()
    return scan.inside(_around(scan.mask))


def divided(path: Path, n: int, choice: int) -> Divided | None:
    """The run at ``path`` with ``n`` directions in; kept, since this takes a while.

    None where there are fewer such choices.
    """
    if choice >= len(ways := ways_of(path, n)):
        return None
    name = f'{key_of(path)}-{n}-{choice}'
    with np.load(kept(name, lambda to: _divide(path, ways[choice], to), *MADE_BY)) as arrays:
        scans = [
            Scan(
                arrays[f'data{k}'],
                GradientTable(arrays[f'bvecs{k}'], arrays[f'bvals{k}'], float(arrays['limit'])),
                arrays['affine'],
                arrays[f'mask{k}'],
            )
            for k in range(2)
        ]
        return Divided(scans[0], arrays.get('denoised'), scans[1], arrays['measured'],
                       float(arrays['offset']))  # fmt: skip


@cache
def ways_of(path: Path, n: int) -> list[tuple[np.ndarray, ...]]:
    """`divisions` of the run at ``path``."""
    return divisions(load(path)[0].gtab, n)


def _around(mask: np.ndarray) -> tuple[slice, slice, slice]:
    x, y, z = (slice(max(s.start - MARGIN, 0), s.stop + MARGIN) for s in crop_to(mask))
    return x, y, z


def _divide(path: Path, parts: tuple[np.ndarray, ...], to: Path) -> None:
    raw, phase, motion = motion_of(path)
    inner, fewer, _ = corrected(raw, motion, phase, parts[0], denoise=True)
    outer, _, whole = corrected(raw, motion, phase, parts[1])
    turned = [inner.in_ras(), outer.in_ras()]
    box = _around(turned[0].mask | turned[1].mask)
    arrays = {
        'measured': whole & ~outer.gtab.b0,
        'offset': offset(*turned),
        'limit': raw.gtab.b0_threshold,
    }
    if fewer is not None:
        arrays['denoised'] = to_ras(fewer, inner.affine)[0][box]
    for k, scan in enumerate(s.inside(box) for s in turned):
        arrays |= {
            f'data{k}': scan.data, f'mask{k}': scan.mask, 'affine': scan.affine,
            f'bvecs{k}': scan.gtab.bvecs, f'bvals{k}': scan.gtab.bvals,
        }  # fmt: skip
    np.savez(to, **arrays)
