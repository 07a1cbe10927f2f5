"""The gradient check of a table against the data: do its fibres lead on into each other?

An error in a bvec file, an axis reversed or two axes exchanged, turns every fitted tensor by the
same signed permutation of the grid's axes and moves no voxel. So paths that follow the main
direction from voxel to voxel break off early, and the table under which they run farthest is the
one that fits the data. One tensor fit serves all 24 tables that differ so (up to sign).
The idea of judging a table by the length of its paths: Jeurissen et al., Med Image Anal 2014.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations, product
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from bidsapp.core import Finding
from bidsapp.modalities.dwi.physics.diffusion import SIGNAL_FLOOR, tensor_volumes
from bidsapp.modalities.dwi.physics.gradients import in_grid, tensor_design
from bidsapp.physics.brain import largest, otsu
from bidsapp.physics.geometry import grid_axes, voxel_sizes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bidsapp.core import BoolArray, FloatArray
    from bidsapp.modalities.dwi.physics.gradients import GradientTable

#: A table stands out if its paths are this much longer than those of every other, …
MIN_MARGIN = 1.1
#: … by this many standard errors of the difference, and in each half of the head.
MIN_Z = 3.0
#: Fewer starting points say nothing.
MIN_SEEDS = 300
#: Most starting points; every so-many-th in the order of anisotropy.
MAX_SEEDS = 5000
#: Fractional anisotropy: a path starts above the first and ends below the second.
SEED_FA, END_FA = 0.3, 0.15
#: A path ends where it would turn by more than this between two steps (cosine), …
MIN_COSINE = 0.7
#: … or after this many mm.
MAX_LENGTH = 100.0
#: mm; voxels are averaged to about this edge, for noise and for speed.
COARSE = 2.0
#: mm; parts of the head whose differences are taken as independent.
BLOCK = 25.0


@dataclass(frozen=True, slots=True, eq=False)
class GradientCheck:
    """What the gradient check found. ``coherence`` and ``best`` are mean path lengths in mm."""

    passed: bool  #: no other table is clearly better
    decided: bool  #: one table stands out from the 23 others
    coherence: float  #: with the table as given
    best: float  #: with the best table
    margin: float  #: ``best`` over the length with the next best table
    z: float  #: least difference between best and another in standard errors
    correction: str | None  #: what to do to the bvec file; None if passed
    turn: NDArray[np.int_]  #: (3, 3) signed permutation of the stored bvec rows; identity if passed

    @property
    def statement(self) -> str:
        """What was found, in a sentence."""
        if not self.decided:
            return (
                'The gradient table could not be tested against the data: fibres followed from '
                'voxel to voxel run about equally far with any of its axes flipped or swapped.'
            )
        if self.passed:
            return (
                f'The gradient table fits the data: fibres run {self.coherence:.0f} mm on '
                f'average, {100 * (self.margin - 1):.0f} % farther than with any of its axes '
                'flipped or swapped.'
            )
        return (
            f'the gradient table does not fit the data: fibres followed from voxel to voxel run '
            f'{self.coherence:.0f} mm on average, and {self.best:.0f} mm with its axes turned; '
            f'a right table gives the longest. Probably right: {self.correction}. It was not '
            'changed.'
        )


def finding(result: GradientCheck) -> Finding | None:
    """An error for a table that another clearly beats, else None."""
    if result.passed:
        return None
    return Finding('error', 'TABLE_AGAINST_DATA', result.statement)


def turns() -> NDArray[np.int_]:
    """(24, 3, 3) signed permutations that differ by more than their sign; the identity first."""
    signs = [s for s in product((1, -1), repeat=3) if s.count(-1) <= 1]
    return np.array([
        np.diag(sign) @ np.eye(3, dtype=int)[list(order)]
        for order in permutations(range(3))
        for sign in signs
    ])  # fmt: skip


def in_words(turn: NDArray[np.int_]) -> str:
    """What to do to the rows of a bvec file so that it becomes ``turn`` (3, 3) @ bvec (3, N)."""
    order = np.abs(turn).argmax(1)
    moved = np.flatnonzero(order != np.arange(3))
    steps = []
    if len(moved) == 2:
        steps.append(f'swap rows {moved[0] + 1} and {moved[1] + 1} of the bvec file')
    elif len(moved) == 3:
        rows = ', '.join(str(row + 1) for row in order)
        steps.append(f'put the rows of the bvec file into the order {rows}')
    for row in np.flatnonzero(turn.sum(1) < 0):
        name = f'row {row + 1} ({"xyz"[row]})'
        steps.append(f'flip the sign of {name}' + ('' if steps else ' of the bvec file'))
    return ', then '.join(steps) or 'nothing'


def check_table(
    data: FloatArray, gtab: GradientTable, affine: FloatArray, mask: BoolArray | None = None
) -> GradientCheck:
    """Test a world-axes table against raw ``data`` (X, Y, Z, N), in ``mask`` (X, Y, Z) or tissue.

    Raises BadData where the table does not determine a tensor.
    """
    axes = grid_axes(affine)
    size, direction, fa = _directions(data, in_grid(gtab, affine), voxel_sizes(affine), mask)
    seeds = np.argwhere(fa > SEED_FA)
    seeds = seeds[np.argsort(fa[fa > SEED_FA], kind='stable')]
    seeds = seeds[:: max(1, -(-len(seeds) // MAX_SEEDS))]
    # A stored bvec is that of the grid with its first row reversed where det(affine) > 0.
    flip = np.diag([-1 if np.linalg.det(axes) > 0 else 1, 1, 1])
    stored = turns()
    if len(seeds) < MIN_SEEDS:
        return GradientCheck(True, False, 0.0, 0.0, 1.0, 0.0, None, stored[0])
    lengths = np.stack([_lengths(direction, seeds, size, flip @ turn @ flip) for turn in stored])
    mean = lengths.mean(1)
    best = int(mean.argmax())
    margin, z, everywhere = _certainty(lengths, best, (seeds - np.median(seeds, 0)) * size)
    decided = everywhere and margin >= MIN_MARGIN and z >= MIN_Z
    turn = stored[best if decided else 0]
    correction = in_words(turn) if decided and best else None
    return GradientCheck(
        correction is None, decided, float(mean[0]), float(mean[best]), margin, z, correction, turn
    )


def _tissue(volumes: list[np.ndarray], b0: BoolArray) -> BoolArray:
    """Voxels (X, Y, Z) bright without weighting and with it: brain, in one piece, and not CSF."""
    means = [
        np.asarray(sum(volumes[k] for k in np.flatnonzero(group)) / group.sum())
        for group in (b0 if b0.any() else ~b0, ~b0)
    ]
    both = np.sqrt(np.clip(np.nan_to_num(means), 0, None).prod(0))
    mask = both > otsu(np.minimum(both, np.percentile(both, 99)))
    return np.asarray(ndimage.binary_fill_holes(largest(ndimage.binary_opening(mask))))


def _averaged(array: np.ndarray, factor: NDArray[np.int_]) -> np.ndarray:
    """(X, Y, Z) with blocks of ``factor`` voxels averaged; what is left over at the end is cut."""
    x, y, z = (int(n) // int(f) for n, f in zip(array.shape, factor, strict=True))
    a, b, c = (int(f) for f in factor)
    part = array[: x * a, : y * b, : z * c]
    return np.asarray(part.reshape(x, a, y, b, z, c).mean((1, 3, 5), dtype=np.float32))


def _directions(
    data: FloatArray, gtab: GradientTable, size: FloatArray, mask: BoolArray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Voxel edges (3,) in mm, main directions (X, Y, Z, 3) and FA (X, Y, Z) on a coarser grid.

    Both are zero outside the tissue, at its rim and where FA is below ``END_FA``. Ordinary least
    squares of ln S: here as good as a weighted fit, in a tenth of the time.
    """
    use = tensor_volumes(gtab)
    gtab, volumes = gtab[use], [data[..., k] for k in np.flatnonzero(use)]
    factor = np.maximum(np.round(COARSE / size), 1).astype(int)
    if factor.max() > 1:
        volumes = [_averaged(volume, factor) for volume in volumes]
        mask = None if mask is None else _averaged(mask, factor) > 0.5
    mask = ndimage.binary_erosion(_tissue(volumes, gtab.b0) if mask is None else mask)
    signal = np.nan_to_num(np.stack([volume[mask] for volume in volumes], 1))
    floor = np.maximum(SIGNAL_FLOOR * signal.max(1, keepdims=True), 1e-9)
    inverse = np.linalg.pinv(tensor_design(gtab)).T[:, :6]
    parts = np.log(np.maximum(signal, floor)) @ inverse
    tensor = parts[:, [0, 3, 4, 3, 1, 5, 4, 5, 2]].reshape(-1, 3, 3)
    anisotropy = _anisotropy(tensor)
    # More than 1 means a negative diffusivity, that is, noise or motion at an edge.
    kept = (anisotropy > END_FA) & (anisotropy <= 1)
    where = np.flatnonzero(mask)[kept]
    direction, fa = np.zeros((mask.size, 3), np.float32), np.zeros(mask.size)
    direction[where] = np.linalg.eigh(tensor[kept])[1][:, :, 2]
    fa[where] = anisotropy[kept]
    return size * factor, direction.reshape(*mask.shape, 3), fa.reshape(mask.shape)


def _anisotropy(tensor: np.ndarray) -> np.ndarray:
    """(V,) fractional anisotropy of tensors (V, 3, 3), without their eigenvalues."""
    square = np.maximum(np.square(tensor).sum((1, 2)), 1e-12)
    third = np.square(np.trace(tensor, axis1=1, axis2=2)) / (3 * square)
    return np.asarray(np.sqrt(np.clip(1.5 * (1 - third), 0, None)))


def _lengths(
    direction: np.ndarray, seeds: NDArray[np.int_], size: FloatArray, turn: NDArray[Any]
) -> np.ndarray:
    """(S,) mm that paths from the voxels ``seeds`` (S, 3) run, both ways together.

    Steps of half the smallest voxel edge along the direction, turned by ``turn``, of the voxel
    that holds the point.
    """
    step = float(size.min()) / 2
    field = np.pad(direction, ((1, 1),) * 3 + ((0, 0),)).reshape(-1, 3) @ turn.T.astype(np.float32)
    strides = np.array([(direction.shape[1] + 2) * (direction.shape[2] + 2),
                        direction.shape[2] + 2, 1])  # fmt: skip
    length = np.zeros(len(seeds))
    for way in (1, -1):
        alive = np.arange(len(seeds))
        point = (seeds + 1).astype(np.float32)
        heading = way * field[(seeds + 1) @ strides]
        for _ in range(int(MAX_LENGTH / step)):
            point = point + heading * (step / size).astype(np.float32)
            there = field[np.rint(point).astype(int) @ strides]
            cosine = (there * heading).sum(1)
            on = np.abs(cosine) > MIN_COSINE
            alive, point = alive[on], point[on]
            heading = there[on] * np.sign(cosine[on])[:, None]
            length[alive] += step
    return length


def _certainty(lengths: np.ndarray, best: int, place: FloatArray) -> tuple[float, float, bool]:
    """How surely the table ``best`` is the best: (margin, z, whether it is so in every half).

    ``lengths`` (24, S) of paths that start at ``place`` (S, 3) mm. The standard error is that of
    sums over blocks of the head; the halves lie below and above the middle of each axis.
    """
    others = np.delete(np.arange(len(lengths)), best)
    mean = lengths.mean(1)
    _, block = np.unique(np.round(place / BLOCK), axis=0, return_inverse=True)
    differences = np.stack(
        [np.bincount(block.ravel(), lengths[best] - lengths[other]) for other in others]
    )
    spread = np.maximum(np.sqrt(np.square(differences).sum(1)), 1e-9)
    z = float((differences.sum(1) / spread).min())
    halves = [side for axis in range(3) for side in (place[:, axis] < 0, place[:, axis] >= 0)]
    everywhere = all(
        half.any() and int(lengths[:, half].mean(1).argmax()) == best for half in halves
    )
    return float(mean[best] / max(mean[others].max(), 1e-9)), z, everywhere
