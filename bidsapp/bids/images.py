"""Files of a Case → tensors of a Sample, and arrays of a Sample back onto the run's own grid."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from bidsapp.bids.annex import check_content
from bidsapp.bids.headers import mended
from bidsapp.bids.write import whole
from bidsapp.problems import BadData, InputOutputError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import nibabel as nib
    from torch import Tensor

    from bidsapp.core import Finding, FloatArray, Sample


#: mm by which two grids that are the same may differ at a corner.
_NEAR = 0.01


def open_image(path: Path) -> nib.Nifti1Image:
    """The image with a header that can be used (`headers.mended`), not yet its voxels.

    Raises BadData if it is not a NIfTI file of plain numbers, or MissingInput.
    """
    return _opened(path)[0]


def doubts_of(path: Path) -> list[Finding]:
    """What is doubtful in the header of an image. Raises as `open_image` does."""
    return _opened(path)[1]


def _opened(path: Path) -> tuple[nib.Nifti1Image, list[Finding]]:
    import nibabel as nib

    check_content(path.parent, [path])
    try:
        image: nib.Nifti1Image = nib.load(path)  # type: ignore[assignment]
    except (
        nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError, ValueError,
        OverflowError,
    ) as error:  # fmt: skip
        raise BadData(f'{path} cannot be read as a NIfTI image: {error}') from error
    return mended(image, path)


def load_volume(path: Path, dtype: str = 'float32') -> np.ndarray:
    """Voxels (X, Y, Z[, N]). Raises BadData for a file that is shorter than its header says."""
    image = open_image(path)
    try:
        data = np.asarray(image.dataobj, dtype)
        read_to_end(path)
        return data
    except zlib.error as error:
        raise BadData(f'{path} is damaged: {error}. Copy it again.') from error
    except (EOFError, ValueError) as error:
        raise BadData(
            f'{path} ends before its last voxel ({error}); it was probably cut off while copying. '
            'Copy or convert it again.'
        ) from error
    except OSError as error:
        truncated = 'Expected' in str(error) or 'end-of-stream' in str(error)
        kind = BadData if truncated or 'CRC' in str(error) else InputOutputError
        raise kind(f'{path} could not be read to its end: {error}. Copy it again.') from error


def check_grid(given: Path, like: Path, advice: str) -> None:
    """Raises BadData, with ``advice``, unless a 3D image lies on the grid of the image ``like``.

    Corners may lie 0.01 mm apart, which is what headers are rounded to.
    """
    image, scan = open_image(given), open_image(like)
    if image.shape != scan.shape[:3]:
        raise BadData(
            f'{given.name} has the shape {image.shape}; expected {scan.shape[:3]}, that of '
            f'{like.name}. {advice}'
        )
    corners = np.array(np.meshgrid(*([0, n - 1] for n in image.shape), [1.0])).reshape(4, -1)
    apart = np.abs((image.affine - scan.affine) @ corners).max()
    if apart > _NEAR:
        raise BadData(
            f'{given.name} lies up to {apart:.2g} mm from where {like.name} does. {advice}'
        )


def read_to_end(path: Path) -> None:
    """Read a compressed file to where its checksum stands, which a reader of voxels never does.

    Raises OSError, EOFError or zlib.error where it does not fit.
    """
    if path.name.endswith('.gz'):
        with gzip.open(path) as stream:
            while stream.read(2**24):
                pass


def not_numbers(data: np.ndarray) -> int:
    """How many voxels (X, Y, Z, N) are NaN or infinite; looked at a volume at a time."""
    return sum(int((~np.isfinite(data[..., v])).sum()) for v in range(data.shape[-1]))


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


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a sample lies in its run: for each of its axes the run's axis, flip and first voxel."""

    axes: tuple[int, ...]
    flipped: tuple[bool, ...]
    start: tuple[int, ...]  #: after flipping

    def box(self, sample: Sample) -> tuple[slice, ...]:
        """The sample in the run whose axes are permuted and flipped to the sample's."""
        lengths = sample.mask.shape[1:]
        return tuple(slice(a, a + n) for a, n in zip(self.start, lengths, strict=True))

    def turned(self, array: np.ndarray) -> np.ndarray:
        """``array`` (X, Y, Z[, K]) of the run with its axes permuted and flipped."""
        moved = array.transpose(*self.axes, *range(3, array.ndim))
        return np.flip(moved, [k for k in range(3) if self.flipped[k]])

    def back(self, array: np.ndarray) -> np.ndarray:
        """The inverse of `turned`."""
        flipped = np.flip(array, [k for k in range(3) if self.flipped[k]])
        return flipped.transpose(*np.argsort(self.axes), *range(3, array.ndim))


def _place(sample: Sample, affine: FloatArray, shape: Sequence[int]) -> _Place:
    """Of a sample in the run of ``affine`` and ``shape``. Raises ValueError if it is not on it."""
    offset = np.linalg.inv(affine) @ sample.affine
    turn, start = np.round(offset[:3, :3]), np.round(offset[:3, 3])
    if (
        not np.allclose(offset[:3, :3], turn, atol=1e-3)
        or not np.array_equal(np.abs(turn).sum(0), np.ones(3))
        or np.abs(offset[:3, 3] - start).max() > 1e-2
    ):
        raise ValueError('the array and the sample are not on the same voxel grid')
    axes = tuple(int(axis) for axis in np.abs(turn).argmax(0))
    flipped = tuple(bool(turn[axis, k] < 0) for k, axis in enumerate(axes))
    first = tuple(
        int(shape[axis] - 1 - start[axis] if flip else start[axis])
        for axis, flip in zip(axes, flipped, strict=True)
    )
    return _Place(axes, flipped, first)


def onto_sample(array: FloatArray, affine: FloatArray, sample: Sample) -> np.ndarray:
    """An array on the run's grid (X, Y, Z[, K]) → (K, X', Y', Z') on the sample's."""
    place = _place(sample, affine, array.shape)
    part = place.turned(array)[place.box(sample)]
    return np.moveaxis(part, -1, 0) if part.ndim == 4 else part[None]


def onto_run(array: FloatArray, sample: Sample, like: Path) -> np.ndarray:
    """An array (X', Y', Z'[, K]) on the sample's grid → the run's grid, zero outside.

    A sample may reach beyond the run; what lies there is left out.
    """
    image = open_image(like)
    place = _place(sample, image.affine, image.shape)
    shape = [image.shape[axis] for axis in place.axes]
    full = np.zeros((*shape, *array.shape[3:]), array.dtype)
    box = place.box(sample)
    both = [slice(max(s.start, 0), min(s.stop, n)) for s, n in zip(box, shape, strict=True)]
    own = (slice(b.start - s.start, b.stop - s.start) for b, s in zip(both, box, strict=True))
    full[tuple(both)] = array[tuple(own)]
    return np.ascontiguousarray(place.back(full))


def with_label(sample: Sample, label: Path | None) -> Sample:
    """``sample`` with a label image as target (1, X, Y, Z); as it is without one."""
    return sample if label is None else with_maps(sample, [label])


def with_maps(sample: Sample, labels: Sequence[Path | None]) -> Sample:
    """``sample`` with maps as target (K, X, Y, Z); as it is if any is missing."""
    import torch

    paths = [path for path in labels if path is not None]
    if len(paths) < len(labels):
        return sample
    parts = [onto_sample(load_volume(p), open_image(p).affine, sample) for p in paths]
    return replace(sample, target=torch.from_numpy(np.concatenate(parts).astype(np.float32)))


def write_volume(path: Path, array: np.ndarray, affine: Tensor) -> None:
    """An ``array`` (X, Y, Z[, N]) with its ``affine`` (4, 4) as NIfTI."""
    import nibabel as nib

    image = nib.Nifti1Image(array, affine.double().numpy())
    image.set_sform(image.affine, 'scanner')
    image.set_qform(image.affine, 'scanner')
    image.header.set_xyzt_units('mm', 'sec')
    with whole(path) as hidden:
        nib.save(image, hidden)


def scanner_units(image: Tensor) -> np.ndarray:
    """Scanner units as whole numbers."""
    return np.asarray(np.clip(np.rint(image.numpy()), 0, np.iinfo(np.int16).max), np.int16)
