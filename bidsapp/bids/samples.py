"""Files of a Case → tensors of a Sample, and arrays of a Sample back onto the run's own grid."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from bidsapp.bids.annex import check_content
from bidsapp.core import MAX_FIBRES, BadData, Case, GradientTable, InputOutputError, Sample
from bidsapp.physics import qspace
from bidsapp.physics.gradients import from_fsl, grid_axes, in_grid, voxel_sizes
from bidsapp.physics.noise import map_noise

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import nibabel as nib

    from bidsapp.core import FloatArray


def open_image(path: Path) -> nib.Nifti1Image:
    """The image, not yet its voxels. Raises BadData if it is not a NIfTI file, or MissingInput."""
    import nibabel as nib

    check_content(path.parent, [path])
    try:
        image: nib.Nifti1Image = nib.load(path)  # type: ignore[assignment]
        return image
    except (nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError) as error:
        raise BadData(f'{path} cannot be read as a NIfTI image: {error}') from error


def load_volume(path: Path, dtype: str = 'float32') -> np.ndarray:
    """Voxels (X, Y, Z[, N]). Raises BadData for a file that is shorter than its header says."""
    image = open_image(path)
    try:
        return np.asarray(image.dataobj, dtype)
    except (EOFError, ValueError) as error:
        raise BadData(
            f'{path} ends before its last voxel ({error}); it was probably cut off while copying. '
            'Copy or convert it again.'
        ) from error
    except OSError as error:
        truncated = 'Expected' in str(error) or 'end-of-stream' in str(error)
        kind = BadData if truncated or 'CRC' in str(error) else InputOutputError
        raise kind(f'{path} could not be read to its end: {error}. Copy it again.') from error


def not_numbers(data: np.ndarray) -> int:
    """How many voxels (X, Y, Z, N) are NaN or infinite; looked at a volume at a time."""
    return sum(int((~np.isfinite(data[..., v])).sum()) for v in range(data.shape[-1]))


def read_numbers(path: Path) -> np.ndarray:
    """The numbers of a bval or bvec file, (rows, columns). Raises BadData or MissingInput."""
    check_content(path.parent, [path])
    try:
        rows = [
            [float(x) for x in line.replace(',', ' ').split()]
            for line in path.read_text().splitlines()
        ]
    except (ValueError, UnicodeDecodeError) as error:
        raise BadData(f'{path} holds something that is not a number: {error}') from error
    rows = [row for row in rows if row]
    if not rows or len({len(row) for row in rows}) != 1:
        lengths = ', '.join(str(len(row)) for row in rows) or 'none'
        raise BadData(f'{path} has rows of different lengths ({lengths}); expected equal rows')
    return np.array(rows)


def load_table(case: Case) -> GradientTable:
    """World-axes gradient table of a preprocessed run, whose files we wrote."""
    affine = open_image(case.files['dwi']).affine
    return from_fsl(
        read_numbers(case.files['bvec']), read_numbers(case.files['bval']).ravel(), affine
    )


def to_ras(array: np.ndarray, affine: FloatArray) -> tuple[np.ndarray, np.ndarray]:
    """``array`` (X, Y, Z, …) with axes permuted and flipped to the nearest RAS; its affine."""
    import nibabel as nib

    turn = nib.orientations.io_orientation(affine)
    shape = array.shape[:3]
    return (
        nib.orientations.apply_orientation(array, turn),
        affine @ nib.orientations.inv_ornt_aff(turn, shape),
    )


def crop_to(mask: np.ndarray) -> tuple[slice, slice, slice]:
    """The box that holds ``mask`` (X, Y, Z)."""
    spans = []
    for axis in range(3):
        hit = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        spans.append(slice(int(hit[0]), int(hit[-1]) + 1))
    return spans[0], spans[1], spans[2]


def brain_of(case: Case) -> tuple[np.ndarray, np.ndarray, GradientTable, np.ndarray]:
    """(signals (X, Y, Z, N), brain (X, Y, Z), world table, affine) of a preprocessed run.

    The grid's axes are turned to the nearest RAS and cropped to the brain; no voxel is
    interpolated. Raises BadData if there is no brain.
    """
    image = open_image(case.files['dwi'])
    brain = load_volume(case.files['mask']) > 0
    if not brain.any():
        raise BadData(f'{case.files["mask"]} is empty: there is no brain to look at')
    gtab = load_table(case)
    data, affine = to_ras(load_volume(case.files['dwi']), image.affine)
    brain, _ = to_ras(brain, image.affine)
    box = crop_to(brain)
    corner = np.block([[np.eye(3), np.array([[s.start] for s in box])], [0, 0, 0, 1]])
    return data[box], brain[box], gtab, affine @ corner


def canonical_sample(case: Case, keep: np.ndarray | None = None) -> Sample:
    """The canonical input of a preprocessed run, from its volumes ``keep`` (default all)."""
    import torch

    data, brain, gtab, affine = brain_of(case)
    if keep is not None:
        data, gtab = data[..., keep], gtab[keep]
    local = in_grid(gtab, affine)
    s0 = data[..., gtab.b0].mean(-1)
    floor = 1e-3 * float(np.median(s0[brain])) + 1e-12
    weighted = np.moveaxis(data[..., ~gtab.b0], -1, 0)
    attenuation = np.clip(weighted / np.maximum(s0, floor), 0, 1.5)
    variance = map_noise(attenuation, brain, local[~local.b0], int(local.b0.sum()))
    size = voxel_sizes(affine)
    channels = qspace.canonical_channels(attenuation, s0, brain, local, variance, size)
    return Sample(
        torch.from_numpy(channels),
        torch.from_numpy(brain.copy())[None],
        affine,
        context=torch.tensor([*size, variance], dtype=torch.float32),
    )


def save_canonical(sample: Sample, folder: Path) -> Path:
    """Keep a sample's input on disk, to be mapped into memory later; written whole."""
    staging = folder.with_name(f'.{os.getpid()}.{folder.name}')
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    np.save(staging / 'image.npy', sample.image.numpy())
    np.save(staging / 'mask.npy', sample.mask.numpy())
    np.save(staging / 'affine.npy', sample.affine)
    if sample.context is not None:
        np.save(staging / 'context.npy', sample.context.numpy())
    shutil.rmtree(folder, ignore_errors=True)
    staging.rename(folder)
    return folder


def open_canonical(folder: Path) -> Sample:
    """A kept sample. Its image is mapped copy-on-write, so only what is used is read."""
    import torch

    kept = folder / 'context.npy'
    return Sample(
        torch.from_numpy(np.load(folder / 'image.npy', mmap_mode='c')),
        torch.from_numpy(np.load(folder / 'mask.npy')),
        np.load(folder / 'affine.npy'),
        context=torch.from_numpy(np.load(kept)) if kept.is_file() else None,
    )


def load_sample(case: Case, label: Path | None = None) -> Sample:
    """Canonical input (kept under ``case.files['canonical']``, else computed) and a label image."""
    import torch

    kept = case.files.get('canonical')
    sample = open_canonical(kept) if kept is not None else canonical_sample(case)
    if label is None:
        return sample
    array = onto_sample(load_volume(label), open_image(label).affine, sample)
    return replace(sample, target=torch.from_numpy(np.ascontiguousarray(array, np.float32)))


def load_maps(sample: Sample, labels: Sequence[Path | None]) -> Sample:
    """``sample`` with scalar maps as target (K, X, Y, Z); without one if any is missing."""
    import torch

    paths = [path for path in labels if path is not None]
    if len(paths) < len(labels):
        return sample
    parts = [onto_sample(load_volume(p), open_image(p).affine, sample) for p in paths]
    return replace(sample, target=torch.from_numpy(np.concatenate(parts).astype(np.float32)))


def load_directions(sample: Sample, label: Path | None) -> Sample:
    """``sample`` with the fibres of a direction map as target, in its own axes.

    (3 MAX_FIBRES, X, Y, Z) unit vectors, strongest first; zeros where there is none.
    """
    import torch

    if label is None:
        return sample
    world = onto_sample(load_volume(label), open_image(label).affine, sample)
    fibres = world[: 3 * MAX_FIBRES].reshape(-1, 3, *world.shape[1:])
    local = np.zeros((MAX_FIBRES, *fibres.shape[1:]), np.float32)
    local[: len(fibres)] = np.einsum('wg,nwxyz->ngxyz', grid_axes(sample.affine), fibres)
    return replace(sample, target=torch.from_numpy(local.reshape(-1, *world.shape[1:])))


def brain_signal(case: Case, sample: Sample) -> tuple[np.ndarray, GradientTable]:
    """(N, V) signals in the brain of the run's volumes, and their table in the sample's axes."""
    affine = open_image(case.files['dwi']).affine
    volumes = onto_sample(load_volume(case.files['dwi']), affine, sample)
    return volumes[:, sample.mask[0].numpy()], in_grid(load_table(case), sample.affine)


def noise_variance_of(sample: Sample) -> float:
    """Of S/S0, as the canonical map has estimated it. Raises ValueError if nobody kept it."""
    if sample.context is None or len(sample.context) < 4:
        raise ValueError('the sample does not say how noisy its scan is')
    return float(sample.context[3])


def onto_sample(array: FloatArray, affine: FloatArray, sample: Sample) -> np.ndarray:
    """An array on the run's grid (X, Y, Z[, K]) → (K, X', Y', Z') on the sample's."""
    turned, ras = to_ras(array, affine)
    box = _box(sample, ras)
    part = turned[box]
    return np.moveaxis(part, -1, 0) if part.ndim == 4 else part[None]


def onto_run(array: FloatArray, sample: Sample, like: Path) -> np.ndarray:
    """An array (X', Y', Z'[, K]) on the sample's grid → the run's grid, zero outside."""
    import nibabel as nib

    image = open_image(like)
    shape = image.shape[:3]
    turn = nib.orientations.io_orientation(image.affine)
    ras = image.affine @ nib.orientations.inv_ornt_aff(turn, shape)
    order = np.argsort(turn[:, 0])
    ras_shape = [shape[int(axis)] for axis in order]
    full = np.zeros((*ras_shape, *array.shape[3:]), array.dtype)
    full[_box(sample, ras)] = array
    back = nib.orientations.ornt_transform(np.array([[0, 1], [1, 1], [2, 1]]), turn)
    return np.ascontiguousarray(nib.orientations.apply_orientation(full, back))


def _box(sample: Sample, ras: FloatArray) -> tuple[slice, slice, slice]:
    """Where the sample lies in the run's grid in RAS. Raises ValueError if it is not on it."""
    offset = np.linalg.inv(ras) @ sample.affine
    start = np.round(offset[:3, 3]).astype(int)
    if (
        not np.allclose(offset[:3, :3], np.eye(3), atol=1e-3)
        or np.abs(offset[:3, 3] - start).max() > 1e-2
    ):
        raise ValueError('the array and the sample are not on the same voxel grid')
    i, j, k = (slice(int(a), int(a) + n) for a, n in zip(start, sample.mask.shape[1:], strict=True))
    return i, j, k
