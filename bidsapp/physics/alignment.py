"""Rigid and affine alignment of two images by mutual information, in world (RAS+) mm.

Transforms are (4, 4) matrices and map points, not images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage
from scipy.optimize import minimize
from scipy.spatial.transform import Rotation

from bidsapp.physics import brain
from bidsapp.physics.geometry import voxel_sizes
from bidsapp.problems import Unavailable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from bidsapp.core import FloatArray
    from bidsapp.physics.brain import BoolArray

N_STARTS = 15
#: mm and degrees, standard deviation of the starts around the scanner's coordinates.
SCATTER = 4.0
#: mm and degrees; starts that end nearer to each other than this agree.
AGREE_MM, AGREE_DEG = 2.0, 3.0
#: mm; how far beyond the brain the scalp helps. The brain alone leads astray: at high b its
#: outline is nearly a sphere; much further out are neck and nose, which EPI distorts.
SURROUNDINGS = 25.0
#: mm; rotations are searched in arc length at this radius, so that all parameters are alike.
HEAD_RADIUS = 80.0
N_BINS = 32
#: Of the points compared, the fraction that must lie inside the other image; of an image that shows
#: part of the head, this share of what it shows at the start; and the least that is enough.
MIN_OVERLAP, OF_START, LEAST_OVERLAP = 0.5, 0.8, 0.1
#: mm; a T1w finer than this is averaged first, as dMRI voxels are no finer.
T1W_VOXEL = 1.5


@dataclass(frozen=True, slots=True, eq=False)
class Registration:
    """A rigid transform and how far independent starts agree on it.

    ``agreement_mm`` (at the centre of the brain) and ``agreement_deg`` are medians, over the
    starts, of the difference to the chosen transform.
    """

    matrix: FloatArray  #: (4, 4) world dMRI mm → world T1w mm
    agreement_mm: float
    agreement_deg: float
    n_agreeing: int
    n_starts: int


def apply(matrix: FloatArray, points: NDArray[Any]) -> np.ndarray:
    """Points (..., 3) through a (4, 4) matrix."""
    return np.asarray(points @ matrix[:3, :3].T + matrix[:3, 3])


def resampled(
    image: FloatArray | BoolArray,
    affine: FloatArray,
    shape: Sequence[int],
    grid: FloatArray,
    matrix: FloatArray | None = None,
) -> np.ndarray:
    """``image`` (X, Y, Z) with ``affine`` on the grid ``shape``, ``grid``; 0 outside. Trilinear.

    ``matrix`` maps world points of the grid to world points of the image. Before coarser voxels
    are sampled, the image is averaged with a Gaussian as wide as they are.
    """
    matrix = np.eye(4) if matrix is None else matrix
    to_image = np.linalg.inv(affine) @ matrix @ grid
    step = np.linalg.norm(to_image[:3, :3], axis=1)  # grid voxel along each axis of the image
    sigma = np.sqrt(np.clip(step**2 - 1, 0, None)) / np.sqrt(8 * np.log(2))
    soft = ndimage.gaussian_filter(np.asarray(image, float), sigma, mode='nearest')
    return np.asarray(
        ndimage.affine_transform(
            soft, to_image[:3, :3], to_image[:3, 3], tuple(shape), order=1, mode='constant'
        )
    )


def coarser(
    shape: Sequence[int], affine: FloatArray, mm: float
) -> tuple[tuple[int, ...], FloatArray]:
    """Shape and affine of the grid over the same field of view, voxels at least ``mm``."""
    factor = np.maximum(mm / voxel_sizes(affine), 1)
    size = np.maximum(np.round(np.array(shape) / factor), 1).astype(int)
    factor = np.array(shape) / size
    grid = affine @ np.diag([*factor, 1.0])
    grid[:3, 3] += affine[:3, :3] @ ((factor - 1) / 2)
    return tuple(int(n) for n in size), grid


def reduced(t1w: FloatArray, affine: FloatArray) -> tuple[np.ndarray, FloatArray]:
    """(T1w, affine) with voxels of at least 1.5 mm: the grid on which all below is done."""
    shape, grid = coarser(t1w.shape, affine, T1W_VOXEL)
    return (resampled(t1w, affine, shape, grid), grid) if shape != t1w.shape else (t1w, affine)


def _binned(values: FloatArray, low: float, high: float) -> np.ndarray:
    """Intensities between two percentiles spread over the histogram's bins."""
    first, last = np.percentile(values, [low, high])
    return np.asarray(np.clip((values - first) / max(last - first, 1e-9), 0, 1) * (N_BINS - 1))


def motion_matrix(parameters: FloatArray, centre: FloatArray) -> np.ndarray:
    """(4, 4) of 6 parameters: shift, rotation vector as arc length; 9: and log scales, likewise.

    The rotation is about ``centre`` and the shift follows it.
    """
    linear = Rotation.from_rotvec(parameters[3:6] / HEAD_RADIUS).as_matrix()
    if len(parameters) > 6:
        linear = linear @ np.diag(np.exp(parameters[6:9] / HEAD_RADIUS))
    matrix = np.eye(4)
    matrix[:3, :3] = linear
    matrix[:3, 3] = centre + parameters[:3] - linear @ centre
    return matrix


def _entropy(p: FloatArray) -> float:
    p = p[p > 0]
    return float(-(p * np.log(p)).sum())


class Similarity:
    """Minus the normalised mutual information (Studholme 1999) of points and a moving image."""

    def __init__(
        self, points: FloatArray, values: FloatArray, moving: FloatArray, affine: FloatArray
    ) -> None:
        self.centre = points.mean(0)
        self.points = np.ascontiguousarray(points.T)  #: (3, N): faster to compute with than (N, 3)
        self.row = N_BINS * np.rint(_binned(values, 0.5, 99.5)).astype(int)
        self.moving = _binned(moving, 1, 99.5).astype(np.float32)
        self.inverse = np.linalg.inv(affine)
        self.least = MIN_OVERLAP  #: of the points, the fraction that must lie inside

    def index(self, matrix: FloatArray) -> np.ndarray:
        """(3, N) voxels in which ``matrix`` (4, 4) of world mm to voxels puts the points."""
        return np.asarray(matrix[:3, :3] @ self.points + matrix[:3, 3:])

    def inside(self, index: NDArray[Any]) -> BoolArray:
        """(N,) which points, in voxels of the moving image (3, N), lie inside it."""
        within = [(k > -0.5) & (k < n - 0.5) for k, n in zip(index, self.moving.shape, strict=True)]
        return np.asarray(within[0] & within[1] & within[2])

    def __call__(self, parameters: FloatArray) -> float:
        """Minus the normalised mutual information at ``parameters`` (6 or 9)."""
        index = self.index(self.inverse @ motion_matrix(parameters, self.centre))
        inside = self.inside(index)
        value = ndimage.map_coordinates(self.moving, index, order=1, mode='nearest')
        low = np.minimum(value.astype(int), N_BINS - 2)
        cell, upper = self.row + low, (value - low) * inside
        joint = np.bincount(cell, inside - upper, N_BINS**2)
        joint += np.bincount(cell + 1, upper, N_BINS**2)
        p = ndimage.gaussian_filter(joint.reshape(N_BINS, N_BINS), 1.0, mode='nearest')
        p /= max(p.sum(), 1e-9)
        if inside.mean() < self.least:
            return 0.0
        return -(_entropy(p.sum(0)) + _entropy(p.sum(1))) / _entropy(p)

    def best(self, start: FloatArray) -> tuple[np.ndarray, float]:
        """Powell's search from ``start``: (parameters, value)."""
        options = {'xtol': 1e-3, 'ftol': 1e-5, 'direc': 2 * np.eye(len(start))}
        found = minimize(self, start, method='Powell', options=options)
        return found.x, float(found.fun)


def similarity_of(
    fixed: FloatArray,
    fixed_affine: FloatArray,
    region: BoolArray,
    moving: FloatArray,
    moving_affine: FloatArray,
    mm: float,
    n_points: int,
    rng: np.random.Generator,
) -> Similarity:
    """Compare both images at a scale of ``mm``, at random points of ``region``.

    Points off the voxel centres keep interpolation artefacts out of the histogram.
    """
    blur = np.sqrt(np.clip(mm**2 - voxel_sizes(fixed_affine) ** 2, 0, None)) / 2.355
    soft = ndimage.gaussian_filter(fixed, blur / voxel_sizes(fixed_affine), mode='nearest')
    all_voxels = np.argwhere(region)
    voxels = all_voxels[rng.permutation(len(all_voxels))[:n_points]].astype(float)
    voxels += rng.uniform(-0.5, 0.5, voxels.shape)
    values = ndimage.map_coordinates(soft, voxels.T, order=1, mode='nearest')
    shape, grid = coarser(moving.shape, moving_affine, mm)
    small = resampled(moving, moving_affine, shape, grid)
    return Similarity(apply(fixed_affine, voxels), values, small, grid)


def _differences(parameters: FloatArray, best: FloatArray) -> tuple[np.ndarray, np.ndarray]:
    """(mm, degrees) between each row of ``parameters`` (N, 6) and ``best`` (6,)."""
    turn = Rotation.from_rotvec(parameters[:, 3:6] / HEAD_RADIUS)
    other = Rotation.from_rotvec(best[3:6] / HEAD_RADIUS)
    angle = np.rad2deg((turn * other.inv()).magnitude())
    return np.linalg.norm(parameters[:, :3] - best[:3], axis=1), angle


def _agreeing(parameters: FloatArray, best: FloatArray) -> BoolArray:
    shift, angle = _differences(parameters, best)
    return np.asarray((shift < AGREE_MM) & (angle < AGREE_DEG))


def _least_inside(start: Similarity) -> float:
    """Of its points, the fraction that must lie inside the T1w; raises Unavailable if few do."""
    shown = float(start.inside(start.index(start.inverse)).mean())
    if shown < LEAST_OVERLAP:
        raise Unavailable(
            f'{shown:.0%} of the head in the dMRI lies in the field of view of the T1w image; at '
            f'least {LEAST_OVERLAP:.0%} is needed. Were both scanned in one session?'
        )
    return min(MIN_OVERLAP, OF_START * shown)


def register_t1w(
    t1w: FloatArray,
    t1w_affine: FloatArray,
    epi: FloatArray,
    epi_affine: FloatArray,
    mask: BoolArray,
    rng: np.random.Generator,
) -> Registration:
    """Rigid registration of the corrected whole-head T1w and the mean b=0 image.

    Normalised mutual information of T1w and log b=0 over the dMRI brain ``mask`` and 25 mm around
    it, from 15 starts scattered about the scanner's coordinates. Of the largest group of starts
    that end alike, the best is refined. Few agreeing starts mean that the images do not determine
    the transform, whatever its value of the metric. A T1w of part of the head is no reason to
    refuse; raises Unavailable where it has next to nothing of it in the scanner's coordinates.
    """
    epi = np.clip(np.nan_to_num(np.asarray(epi, float)), 0, None)
    log_epi = np.log(epi + 0.02 * np.percentile(epi, 99) + 1e-6)
    region = brain.dilated(mask, epi_affine, SURROUNDINGS)
    images = (log_epi, epi_affine, region, *reduced(np.asarray(t1w, float), t1w_affine))
    coarse = similarity_of(*images, 4.0, 15_000, rng)
    fine = similarity_of(*images, 2.5, 50_000, rng)
    coarse.least = fine.least = _least_inside(coarse)
    fine.centre = coarse.centre = apply(epi_affine, np.argwhere(mask).mean(0))
    scale = SCATTER * np.repeat([1.0, HEAD_RADIUS * np.pi / 180], 3)
    starts = [k and rng.normal(0, scale) for k in range(N_STARTS)]
    ends = [coarse.best(np.zeros(6) + start) for start in starts]
    found, values = np.array([p for p, _ in ends]), np.array([v for _, v in ends])
    groups = np.array([_agreeing(found, p) for p in found])
    group = groups[max(range(N_STARTS), key=lambda k: (groups[k].sum(), -values[k]))]
    chosen = found[group][np.argmin(values[group])]
    shift, angle = _differences(found, chosen)
    return Registration(
        matrix=motion_matrix(fine.best(chosen)[0], fine.centre),
        agreement_mm=float(np.median(shift)),
        agreement_deg=float(np.median(angle)),
        n_agreeing=int(_agreeing(found, chosen).sum()),
        n_starts=N_STARTS,
    )
