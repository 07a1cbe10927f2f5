"""Gibbs ringing removed by local sub-voxel shifts (Kellner et al., MRM 2016; 76:1574-1581).

An edge rings because the samples beside it miss the zeros of the sinc around it. Moved by the
right fraction of a voxel they meet them and oscillate least; from there a linear interpolation
leads back to the centre of the voxel. In two dimensions the slice is first parted in k-space, so
that each part rings along one axis.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bidsapp.problems import BadData

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from bidsapp.core import BoolArray, FloatArray

    Index = tuple[NDArray[np.intp], slice]

#: Shifts tried to either side, evenly up to half a voxel.
SHIFTS = 20
#: Oscillation beside a voxel is the sum of |I(x ± k) - I(x ± (k + 1))| over k = NEAR … FAR.
NEAR, FAR = 1, 3
#: Components of the shifts below this share of the largest are left out.
NEGLIGIBLE = 1e-6
#: Slices in memory at a time.
SLICES = 64
#: Lines searched at a time: what the cache of a core holds, and what fills a GPU.
LINES_CPU, LINES_GPU = 64, 8192
#: The fraction of k-space from which on it counts as fully sampled.
FULL = 0.99


def shift_kernels(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(S,) shifts in voxels, smallest first; (S, P) weights; (P, n) periodic kernels.

    Lines of ``n`` voxels at x + s, shifted in k-space, are Σ_p weights[s, p] · (kernels[p] * I)(x).
    The kernel of one shift is a periodic sinc; those of all shifts together span few dimensions.
    """
    steps = np.arange(1, SHIFTS + 1) / (2 * SHIFTS)
    shifts = np.concatenate([[0.0], np.stack([steps, -steps], 1).ravel()])
    wave = 2 * np.pi * np.fft.fftfreq(n)
    sincs = np.cos((np.arange(n) + shifts[:, None])[..., None] * wave).mean(-1)
    left, values, right = np.linalg.svd(sincs, full_matrices=False)
    kept = values > NEGLIGIBLE * values[0]
    return shifts, left[:, kept] * values[kept], right[kept]


class _Line:
    """The search along lines of ``n`` voxels."""

    def __init__(self, n: int, device: torch.device) -> None:
        shifts, weights, kernels = shift_kernels(n)
        # Periodic beyond both ends, as far as a neighbour and a window reach.
        rows = np.arange(-1, n + FAR - NEAR + 1)
        matrix = kernels[:, (rows[:, None] - np.arange(n)) % n]
        self.n, self.rows = n, len(rows)
        self.shifts, self.weights, self.matrix = (
            torch.as_tensor(array, dtype=torch.float32, device=device)
            for array in (shifts, weights, matrix.reshape(-1, n))
        )
        self.number = torch.arange(len(shifts), dtype=torch.int32, device=device)[:, None, None]

    def correction(self, lines: Tensor) -> Tensor:
        """What to add to ``lines`` (n, L); exactly 0 where no shift oscillates less."""
        width = lines.shape[1]
        parts = (self.matrix @ lines).view(len(self.matrix) // self.rows, -1)
        shifted = (self.weights @ parts).view(-1, self.rows, width)
        choice = self.choose(shifted)
        shift = self.shifts[choice]
        # Sample x stands at x + s; the centre of the voxel lies between it and the sample before
        # (s > 0) or after (s < 0).
        place = torch.arange(width, width * (self.n + 1), device=lines.device).view(self.n, width)
        here = choice * (self.rows * width) + place
        beyond = here - torch.sign(shift).long() * width
        flat = shifted.view(-1)
        centre = torch.lerp(flat.take(here), flat.take(beyond), shift.abs())
        return torch.where(choice == 0, 0, centre - lines)

    def choose(self, shifted: Tensor) -> Tensor:
        """(n, L) numbers of the shifts that oscillate least, of ``shifted`` (S, rows, L)."""
        steps = (shifted[:, 1:-1] - shifted[:, 2:]).abs_()
        window = steps[:, : self.n] + steps[:, 1 : self.n + 1]
        for k in range(2, FAR - NEAR + 1):
            window += steps[:, k : self.n + k]
        # The bits of floats >= 0 sort like the floats, so the lowest six can carry the number of
        # the shift through the minimum; of equal ones the smallest shift wins.
        code = window.view(torch.int32).bitwise_and_(-64).bitwise_or_(self.number)
        least = code.amin(0)
        return (torch.minimum(least.roll(-NEAR, 0), least.roll(FAR + 1, 0)) & 63).long()


def saddle_filter(rows: int, columns: int) -> np.ndarray:
    """(rows, columns // 2 + 1) the share of k-space (as of rfft2) that rings along the rows' axis.

    (1 + cos k_y) / (2 + cos k_x + cos k_y); 1/2 in the corner, where both vanish. The rest rings
    along the other axis.
    """
    x = 1 + np.cos(2 * np.pi * np.fft.fftfreq(rows))[:, None]
    y = 1 + np.cos(2 * np.pi * np.fft.rfftfreq(columns))
    corner = x + y < 1e-9
    return np.where(corner, 0.5, y / np.where(corner, 1, x + y))


class _Plane:
    """The correction of slices of ``rows`` by ``columns`` voxels."""

    def __init__(self, rows: int, columns: int, device: torch.device) -> None:
        self.device = device
        self.saddle = torch.as_tensor(saddle_filter(rows, columns)).float().to(device)
        self.axes = _Line(rows, device), _Line(columns, device)
        self.lines = LINES_CPU if device.type == 'cpu' else LINES_GPU

    def __call__(self, slices: np.ndarray, mask: BoolArray) -> np.ndarray:
        """(Z, N, A, B) ``slices`` without ringing in the voxels of ``mask`` (Z, A, B)."""
        image = torch.as_tensor(np.ascontiguousarray(slices), device=self.device)
        inside = torch.as_tensor(np.ascontiguousarray(mask), device=self.device)[:, None]
        # Rounding is least around the middle of the values, and none in a constant slice.
        centred = image - (image.amax((2, 3), True) + image.amin((2, 3), True)) / 2
        first = torch.fft.irfft2(torch.fft.rfft2(centred) * self.saddle, s=image.shape[2:])
        result = image.clone()
        for axis, part in enumerate((first, centred - first)):
            lines, out = part.movedim(axis + 2, 0), result.movedim(axis + 2, 0)
            needed = inside.any(axis + 2).expand(lines.shape[1:])
            chunks = lines[:, needed].split(self.lines, 1)
            out[:, needed] += torch.cat([self.axes[axis].correction(c) for c in chunks], 1)
        return np.asarray(torch.where(inside, result, image).cpu())


def _chunks(slices: NDArray[np.intp], volumes: int) -> Iterator[Index]:
    """Index pairs of at most ``SLICES`` slices each, over ``slices`` and all ``volumes``."""
    together = max(1, SLICES // volumes)
    for first in range(0, len(slices), together):
        for start in range(0, volumes, SLICES):
            yield slices[first : first + together], slice(start, start + SLICES)


def unring(
    data: FloatArray,
    axes: Sequence[int] = (0, 1),
    mask: BoolArray | None = None,
    device: str = 'cpu',
) -> np.ndarray:
    """``data`` (X, Y, Z, N) or (X, Y, Z) without Gibbs ringing, float32 of the same shape.

    ``axes``: the two array axes of the acquired slices (`slice_axes`). Voxels outside ``mask``
    (X, Y, Z) keep their values. Meant for magnitudes on the acquired matrix, k-space fully
    sampled (`may_unring`), before any interpolation. A value that is not finite spoils its
    slice. On the CPU as many threads work as torch has. Raises ValueError for shapes or axes that
    do not fit.
    """
    result = np.array(data, np.float32)
    inside = np.ones(result.shape[:3], bool) if mask is None else np.asarray(mask, bool)
    if result.ndim not in (3, 4) or inside.shape != result.shape[:3]:
        raise ValueError(f'data {result.shape} and mask {inside.shape} do not fit')
    if len(set(axes)) != 2 or not set(axes) <= {0, 1, 2}:
        raise ValueError(f'axes {tuple(axes)} are not two of 0, 1 and 2')
    stack = np.moveaxis(result if result.ndim == 4 else result[..., None], axes, (2, 3))
    where = np.moveaxis(inside, axes, (1, 2))
    plane = _Plane(stack.shape[2], stack.shape[3], torch.device(device))

    def correct(index: Index) -> None:
        stack[index] = plane(stack[index], where[index[0]])

    touched, threads = np.flatnonzero(where.any((1, 2))), torch.get_num_threads()
    # One chunk a thread: threads that share one operation would wait for each other at its end.
    try:
        with ThreadPoolExecutor(
            threads if device == 'cpu' else 1, initializer=torch.set_num_threads, initargs=(1,)
        ) as pool:
            list(pool.map(correct, _chunks(touched, stack.shape[1])))
    finally:
        torch.set_num_threads(threads)
    return result


def slice_axes(metadata: Mapping[str, Any]) -> tuple[int, int]:
    """The two array axes in the plane of the slices: those that SliceEncodingDirection leaves.

    Slices lie along the third axis (k) when the metadata do not say. Raises BadData for a direction
    that is none of BIDS.
    """
    direction = metadata.get('SliceEncodingDirection', 'k')
    if direction not in ('i', 'j', 'k', 'i-', 'j-', 'k-'):
        raise BadData(
            f'SliceEncodingDirection is {direction!r}; expected i, j or k, or one of them with a '
            "'-'. Correct the sidecar."
        )
    first, second = (axis for axis in range(3) if axis != 'ijk'.index(direction[0]))
    return first, second


def may_unring(metadata: Mapping[str, Any]) -> str | None:
    """Why ringing must not be removed from a run with these BIDS ``metadata``; None if it may.

    The method holds where all of k-space was sampled and the image stands on the acquired matrix.
    Read are PartialFourier of BIDS and, as dcm2niix writes them, PartialFourierEnabled,
    Interpolation2D, Interpolation3D, AcquisitionMatrixPE and ReconMatrixPE.
    """
    if str(metadata.get('PartialFourierEnabled', '')).upper() == 'YES':
        return 'k-space was sampled partially (PartialFourierEnabled)'
    fraction = metadata.get('PartialFourier')
    if fraction is None:
        return (
            'the metadata do not say whether k-space was fully sampled (PartialFourier), which is '
            'never guessed'
        )
    if isinstance(fraction, bool) or not isinstance(fraction, int | float) or fraction > 1:
        return f'PartialFourier is {fraction!r}, no fraction of k-space'
    if not fraction >= FULL:
        return f'k-space was sampled partially (PartialFourier {fraction:g})'
    return interpolated(metadata)


def interpolated(metadata: Mapping[str, Any]) -> str | None:
    """Where BIDS ``metadata`` say that the image is finer than what was acquired; None if not.

    The noise of neighbours is then no longer independent. Read as in `may_unring`.
    """
    for name in ('Interpolation2D', 'Interpolation3D'):
        if str(metadata.get(name, 0)).strip().lower() not in ('', '0', '0.0', 'no', 'false'):
            return f'the scanner interpolated the image ({name})'
    acquired, shown = metadata.get('AcquisitionMatrixPE'), metadata.get('ReconMatrixPE')
    if acquired is not None and shown is not None and acquired != shown:
        return f'the scanner interpolated {acquired} phase-encoding steps to {shown} voxels'
    return None
