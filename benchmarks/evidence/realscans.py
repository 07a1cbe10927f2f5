"""Real raw scans for the evidence: loaded, divided by direction, each part corrected on its own.

Nothing that mixes volumes (denoising, motion correction, masks) happens before the division. The
b = 0 volumes carry no direction and most scans have one only: both parts use the same ones.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import nibabel as nib
import numpy as np

from bidsapp.bids.images import crop_to, to_ras
from bidsapp.modalities.dwi.physics.acquisition import acquisition
from bidsapp.modalities.dwi.physics.gradients import GradientTable, from_fsl
from bidsapp.modalities.dwi.physics.motion import apply_motion, estimate_motion
from bidsapp.modalities.dwi.physics.tables import examine
from bidsapp.physics import denoising
from bidsapp.physics.brain import brain_mask

#: Where what takes long and holds no network is kept from run to run.
KEPT = Path(tempfile.gettempdir()) / 'transfermri-evidence'
#: The real scans lie beside a checkout; `participant` has written what it made of them to DONE.
SHARED = Path(__file__).resolve().parents[3] / 'shared' / 'data'
RAW = SHARED / 'multivendor'
DONE = Path(os.environ.get('TRANSFERMRI_DERIVATIVES', f'{tempfile.gettempdir()}/mv'))
#: How many choices of directions, and the largest condition number of either part's tensor.
CHOICES, WELL_CONDITIONED = 4, 10.0
#: Voxels kept around the brain.
MARGIN = 3


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
    """A raw run, its mask from its own mean images, and its phase-encoding axis if known."""
    image = nib.load(path)
    stem = path.name.removesuffix('.nii.gz')
    bvecs, bvals = (np.loadtxt(path.with_name(f'{stem}.{kind}')) for kind in ('bvec', 'bval'))
    found = examine(bvecs, bvals, image.shape[3])
    bvecs, bvals = found.bvecs, found.bvals
    sidecar = path.with_name(f'{stem}.json')
    said = json.loads(sidecar.read_text()) if sidecar.is_file() else {}
    phase = said.get('PhaseEncodingDirection') or said.get('PhaseEncodingAxis')
    gtab = from_fsl(bvecs, bvals, image.affine)
    data = np.asarray(image.dataobj, np.float32)
    return Scan(data, gtab, np.asarray(image.affine), own_mask(data, gtab, image.affine)), phase


def own_mask(data: np.ndarray, gtab: GradientTable, affine: np.ndarray) -> np.ndarray:
    """Brain by the app's rule, from these volumes only."""
    return brain_mask(data[..., gtab.b0].mean(-1), data[..., ~gtab.b0].mean(-1), affine)


def load_done(name: str) -> Scan:
    """A run as the app has preprocessed it, by the start of its file names; RAS, cropped."""
    path = next(DONE.rglob(f'{name}_desc-preproc_dwi.nii.gz'))
    image = nib.load(path)
    stem = str(path).removesuffix('.nii.gz')
    gtab = from_fsl(np.loadtxt(f'{stem}.bvec'), np.loadtxt(f'{stem}.bval'), image.affine)
    mask_path = path.with_name(f'{name}_desc-brain_mask.nii.gz')
    mask = np.asarray(nib.load(mask_path).dataobj) > 0
    whole = Scan(np.asarray(image.dataobj, np.float32), gtab, image.affine, mask).in_ras()
    return whole.inside(crop_to(whole.mask))


def divisions(gtab: GradientTable, n: int, wanted: int = CHOICES) -> list[tuple[np.ndarray, ...]]:
    """Ways to put ``n`` weighted volumes in and leave the others as reference: (in, reference).

    Of 2000 random ways, those whose worse condition number of the tensor's design is least and
    which share no more than two thirds of the volumes that are in. The b = 0 volumes are in both.
    """
    rng = np.random.default_rng(0)
    weighted, b0 = np.flatnonzero(~gtab.b0), np.flatnonzero(gtab.b0)
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


def corrected(part: Scan, phase: str | None, denoise: bool) -> tuple[Scan, np.ndarray | None]:
    """Motion and eddy currents of these volumes alone; also applied to them after MP-PCA.

    The app denoises from 15 volumes only; here it is given 12 directions and a b = 0 too.
    """
    motion = estimate_motion(part.data, part.affine, part.gtab, part.mask, phase)
    moved = apply_motion(part.data, part.affine, motion)
    fewer = None
    if denoise and len(part.gtab) >= 13:
        with mock.patch.object(denoising, 'MIN_VOLUMES', 12):
            cleaner = denoising.denoise(part.data).data
        fewer = apply_motion(cleaner, part.affine, motion)
    return replace(part, data=moved, gtab=motion.gtab), fewer


def divided(path: Path, n: int, choice: int) -> Divided | None:
    """The run at ``path`` with ``n`` directions in; kept, since this takes a while.

    None where there are fewer such choices.
    """
    kept = KEPT / f'{path.name.removesuffix(".nii.gz")}-{n}-{choice}.npz'
    if not kept.is_file():
        whole, phase = load(path)
        ways = divisions(whole.gtab, n)
        if choice >= len(ways):
            return None
        _keep(kept, [whole.of(part) for part in ways[choice]], phase)
    with np.load(kept) as arrays:
        scans = [
            Scan(
                arrays[f'data{k}'],
                GradientTable(arrays[f'bvecs{k}'], arrays[f'bvals{k}']),
                arrays['affine'],
                arrays[f'mask{k}'],
            )
            for k in range(2)
        ]
        return Divided(scans[0], arrays.get('denoised'), scans[1])


def _keep(kept: Path, parts: list[Scan], phase: str | None) -> None:
    parts = [replace(p, mask=own_mask(p.data, p.gtab, p.affine)) for p in parts]
    (inner, fewer), (outer, _) = (
        corrected(part, phase, denoise=k == 0) for k, part in enumerate(parts)
    )
    turned = [inner.in_ras(), outer.in_ras()]
    box = tuple(
        slice(max(s.start - MARGIN, 0), s.stop + MARGIN)
        for s in crop_to(turned[0].mask | turned[1].mask)
    )
    arrays = {}
    if fewer is not None:
        arrays['denoised'] = to_ras(fewer, inner.affine)[0][box]
    for k, scan in enumerate(s.inside(box) for s in turned):
        arrays |= {
            f'data{k}': scan.data, f'mask{k}': scan.mask, 'affine': scan.affine,
            f'bvecs{k}': scan.gtab.bvecs, f'bvals{k}': scan.gtab.bvals,
        }  # fmt: skip
    KEPT.mkdir(exist_ok=True)
    np.savez(kept.with_suffix('.part.npz'), **arrays)
    kept.with_suffix('.part.npz').rename(kept)
