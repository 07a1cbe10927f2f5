"""Slices whose signal dropped out, found by their prediction and replaced by it.

A movement while a slice is being encoded takes away most of its signal. As in the `repol` of FSL's
eddy (Andersson et al., NeuroImage 2016) the mean over the brain in each slice of each raw volume is
compared with its leave-one-out prediction, warped to where the head was; a slice that lies far
below, in robust standard deviations of its shell and as a share of its signal, is replaced.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bidsapp.modalities.dwi.physics.lovo import predicted
from bidsapp.physics.geometry import voxel_sizes
from bidsapp.physics.resampling import resample_linear, smooth

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray
    from torch import Tensor

    from bidsapp.core import FloatArray
    from bidsapp.modalities.dwi.physics.gradients import GradientTable
    from bidsapp.modalities.dwi.physics.realignment import CroppedRun

#: Robust standard deviations below its prediction from which a slice is an outlier.
_DEVIATIONS = 4.0
#: Share of its signal that it must have lost, too.
_LEAST = 0.15
#: mm² of brain that a slice must hold to be judged.
_AREA = 1500.0
#: Volumes of a shell from which each place along the slice axis has a spread of its own.
_MANY = 5
#: Times that slices are sought and replaced: an outlier spoils the predictions of its neighbours.
_PASSES = 3
#: Volumes of a shell that is judged; of fewer, the others do not say well what one should be.
_FEWEST = 10


@dataclass(frozen=True, slots=True, eq=False)
class Outliers:
    """The slices of a raw run that were replaced, and by what."""

    slices: NDArray[np.int_]  #: (S, 2) volume, and position along ``axis``
    drops: FloatArray  #: (S,) share of the predicted signal that was missing
    images: tuple[FloatArray, ...]  #: S predictions in the raw run's units, inside ``plane``
    plane: tuple[slice, ...]  #: of the run's other two axes
    axis: int  #: slice axis of the grid
    n_volumes: int

    @property
    def counts(self) -> NDArray[np.int_]:
        """(N,) slices replaced in each volume."""
        return np.bincount(self.slices[:, 0], minlength=self.n_volumes)

    def replaced(self, volume: FloatArray, index: int) -> np.ndarray:
        """Raw ``volume`` (X, Y, Z) number ``index``, float32, its outlier slices replaced."""
        result = np.array(volume, np.float32)
        planes = np.moveaxis(result, self.axis, 0)
        for (n, position), image in zip(self.slices, self.images, strict=True):
            if n == index:
                planes[position][self.plane] = image
        return result


def none(n_volumes: int, axis: int) -> Outliers:
    """No outlier in a run of ``n_volumes``."""
    nothing = (slice(None), slice(None))
    return Outliers(np.zeros((0, 2), int), np.zeros(0), (), nothing, axis, n_volumes)


def replace_outliers(
    scan: CroppedRun, parameters: FloatArray, axis: int, known: Outliers | None = None
) -> Outliers:
    """Find the outlier slices of ``scan`` along grid ``axis`` and replace them.

    ``parameters`` (N, 6 + K) say where the head was; slices ``known`` to be outliers, and replaced
    when that was known less well, are replaced anew. The images of ``scan`` are changed in place: a
    copy would weigh as much as the run.
    """
    known = none(len(scan.gtab), axis) if known is None else known
    start = scan.box[axis].start
    found = {
        (int(n), int(z) - start): float(drop)
        for (n, z), drop in zip(known.slices, known.drops, strict=True)
    }
    images: dict[tuple[int, int], Tensor] = {}
    for _ in range(_PASSES):
        expected = _Expected(scan, parameters)
        changes = expected.changes(axis)
        low = low_slices(changes, _groups(scan.gtab))
        fresh = [(int(n), int(z)) for n, z in np.argwhere(low) if (n, z) not in found]
        found |= {(n, z): -float(changes[n, z]) for n, z in fresh}
        images = _put_in(scan, expected, found, axis)
        if not fresh:
            break
    if not found:
        return none(len(scan.gtab), axis)
    order = sorted(found)
    return Outliers(
        slices=np.add(order, (0, start)),
        drops=np.array([found[key] for key in order]),
        images=tuple(images[key].cpu().numpy() * np.float32(scan.scale) for key in order),
        plane=tuple(part for a, part in enumerate(scan.box) if a != axis),
        axis=axis,
        n_volumes=len(scan.gtab),
    )


def _put_in(
    scan: CroppedRun, expected: _Expected, found: Iterable[tuple[int, int]], axis: int
) -> dict[tuple[int, int], Tensor]:
    """Replace the slices ``found`` in the images of ``scan``; by what, under the same keys."""
    images = {}
    for n in {n for n, _ in found}:
        raw = expected.raw(n).movedim(axis, 0)
        for position in (z for m, z in found if m == n):
            images[n, position] = raw[position].clamp_min(0)
            scan.volumes[n].movedim(axis, 0)[position] = images[n, position]
        scan.smoothed[n] = smooth(scan.volumes[n : n + 1], scan.sigmas[1])[0]
    return images


class _Expected:
    """Predictions of all volumes of a scan where the head was: in raw space."""

    def __init__(self, scan: CroppedRun, parameters: FloatArray) -> None:
        self.scan = scan
        matrices = scan.grid.matrices(parameters)
        self.back = np.linalg.inv(matrices)
        self.stretch = np.linalg.det(matrices[:, :3, :3])
        aligned = resample_linear(scan.volumes, matrices)
        for volume, stretch in zip(aligned, self.stretch, strict=True):
            volume *= float(stretch)
        self.still = predicted(aligned, scan.turned(parameters), scan.variance)

    def raw(self, n: int) -> Tensor:
        """(X, Y, Z) what raw volume ``n`` should be."""
        return self._moved(self.still[n], n) / float(self.stretch[n])

    def changes(self, axis: int) -> np.ndarray:
        """(N, slices) signal gained in the brain, as a share of the prediction; NaN without brain.

        A gain common to a volume is taken off: that is drift, not a slice.
        """
        shares = np.full((len(self.still), self.still.shape[1 + axis]), np.nan)
        edges = np.delete(voxel_sizes(self.scan.grid.affine), axis)
        brain = self.scan.mask.to(self.still)
        for n, volume in enumerate(self.scan.volumes):
            inside = (self._moved(brain, n) > 0.5).to(volume).movedim(axis, 0).flatten(1)
            seen, should = (
                (image.movedim(axis, 0).flatten(1) * inside).sum(1).double().cpu().numpy()
                for image in (volume, self.raw(n))
            )
            enough = inside.sum(1).cpu().numpy() * edges.prod() >= _AREA
            enough &= should > 0
            shares[n, enough] = seen[enough] / should[enough] - 1
        known = np.isfinite(shares).any(1)
        shares[known] -= np.nanmedian(shares[known], axis=1, keepdims=True)
        return shares

    def _moved(self, image: Tensor, n: int) -> Tensor:
        return resample_linear(image[None], self.back[n : n + 1])[0]


def _groups(gtab: GradientTable) -> list[NDArray[np.int_]]:
    """Volumes judged together: shells of enough volumes, and b = 0 if there are several."""
    enough = [members for _, members in gtab.shells() if len(members) >= _FEWEST]
    b0 = np.flatnonzero(gtab.b0)
    return enough + ([b0] if len(b0) > 1 else [])


def low_slices(changes: FloatArray, groups: list[NDArray[np.int_]]) -> NDArray[np.bool_]:
    """Which of ``changes`` (N, slices; NaN where unknown) lie far below 0 for their group.

    The spread is the median absolute deviation of the group, or of its slices at the same position
    where that is more: the lowest slices of a brain never fit well.
    """
    low = np.zeros(changes.shape, bool)
    known = np.isfinite(changes)
    for members in groups:
        heard = np.flatnonzero(known[members].any(0))
        if not len(heard):
            continue
        part = changes[np.ix_(members, heard)]
        spread = np.nanmedian(np.abs(part))
        if len(members) >= _MANY:
            part = part - np.nanmedian(part, axis=0)
            spread = np.maximum(np.nanmedian(np.abs(part)), np.nanmedian(np.abs(part), axis=0))
        low[np.ix_(members, heard)] = part < -np.maximum(_DEVIATIONS * spread / 0.6745, _LEAST)
    return low
