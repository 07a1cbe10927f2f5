"""The T1w image of a participant: brought to the dMRI run, its brain, its tissues.

Transforms are (4, 4) matrices in world (RAS+) mm and map points, not images.
"""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage
from scipy.optimize import minimize
from scipy.spatial.transform import Rotation

from bidsapp.physics import brain
from bidsapp.physics.gradients import voxel_sizes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

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
#: Of the points compared, the fraction that must lie inside the other image.
MIN_OVERLAP = 0.5
#: mm, standard deviation; the receive field of the T1w is smoother than this.
FIELD_SCALE = 20.0
#: Log odds that a voxel gains when all its neighbours share its tissue.
ATTRACTION = 2.0
#: Brighter than this multiple of white matter is fat.
FAT = 1.4
#: Iterations; in the first, tissues are those of the priors and only the field is sought.
N_ITERATIONS, N_WARM = 20, 6
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


def correct_t1w(t1w: FloatArray, affine: FloatArray) -> np.ndarray:
    """The whole head (X, Y, Z) freed from its receive field."""
    t1w = np.asarray(t1w, float)
    capped = np.minimum(t1w, np.percentile(t1w, 99))
    head = capped > 0.5 * brain.otsu(capped)
    return np.asarray(t1w / brain.bias_field(t1w, head, affine)) if head.any() else t1w


# ------------------------------------------------------------------------------- mutual information


def _binned(values: FloatArray, low: float, high: float) -> np.ndarray:
    """Intensities between two percentiles spread over the histogram's bins."""
    first, last = np.percentile(values, [low, high])
    return np.asarray(np.clip((values - first) / max(last - first, 1e-9), 0, 1) * (N_BINS - 1))


def _motion(parameters: FloatArray, centre: FloatArray) -> np.ndarray:
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


class _Similarity:
    """Minus the normalised mutual information (Studholme 1999) of points and a moving image."""

    def __init__(
        self, points: FloatArray, values: FloatArray, moving: FloatArray, affine: FloatArray
    ) -> None:
        self.centre = points.mean(0)
        self.points, self.row = points, N_BINS * np.rint(_binned(values, 0.5, 99.5)).astype(int)
        self.moving = _binned(moving, 1, 99.5).astype(np.float32)
        self.inverse = np.linalg.inv(affine)

    def __call__(self, parameters: FloatArray) -> float:
        index = apply(self.inverse @ _motion(parameters, self.centre), self.points)
        inside = ((index > -0.5) & (index < np.array(self.moving.shape) - 0.5)).all(1)
        value = ndimage.map_coordinates(self.moving, index.T, order=1, mode='nearest')
        low = np.minimum(value.astype(int), N_BINS - 2)
        cell, upper = self.row + low, (value - low) * inside
        joint = np.bincount(cell, inside - upper, N_BINS**2)
        joint += np.bincount(cell + 1, upper, N_BINS**2)
        p = ndimage.gaussian_filter(joint.reshape(N_BINS, N_BINS), 1.0, mode='nearest')
        p /= max(p.sum(), 1e-9)
        if inside.mean() < MIN_OVERLAP:
            return 0.0
        return -(_entropy(p.sum(0)) + _entropy(p.sum(1))) / _entropy(p)

    def best(self, start: FloatArray) -> tuple[np.ndarray, float]:
        """Powell's search from ``start``: (parameters, value)."""
        options = {'xtol': 1e-3, 'ftol': 1e-5, 'direc': 2 * np.eye(len(start))}
        found = minimize(self, start, method='Powell', options=options)
        return found.x, float(found.fun)


def _similarity(
    fixed: FloatArray,
    fixed_affine: FloatArray,
    region: BoolArray,
    moving: FloatArray,
    moving_affine: FloatArray,
    mm: float,
    n_points: int,
    rng: np.random.Generator,
) -> _Similarity:
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
    return _Similarity(apply(fixed_affine, voxels), values, small, grid)


def _differences(parameters: FloatArray, best: FloatArray) -> tuple[np.ndarray, np.ndarray]:
    """(mm, degrees) between each row of ``parameters`` (N, 6) and ``best`` (6,)."""
    turn = Rotation.from_rotvec(parameters[:, 3:6] / HEAD_RADIUS)
    other = Rotation.from_rotvec(best[3:6] / HEAD_RADIUS)
    angle = np.rad2deg((turn * other.inv()).magnitude())
    return np.linalg.norm(parameters[:, :3] - best[:3], axis=1), angle


def _agreeing(parameters: FloatArray, best: FloatArray) -> BoolArray:
    shift, angle = _differences(parameters, best)
    return np.asarray((shift < AGREE_MM) & (angle < AGREE_DEG))


def register_t1w(
    t1w: FloatArray,
    t1w_affine: FloatArray,
    b0: FloatArray,
    b0_affine: FloatArray,
    mask: BoolArray,
    rng: np.random.Generator,
) -> Registration:
    """Rigid registration of the corrected whole-head T1w and the mean b=0 image.

    Normalised mutual information of T1w and log b=0 over the dMRI brain ``mask`` and 25 mm around
    it, from 15 starts scattered about the scanner's coordinates. Of the largest group of starts
    that end alike, the best is refined. Few agreeing starts mean that the images do not determine
    the transform, whatever its value of the metric.
    """
    b0 = np.clip(np.nan_to_num(np.asarray(b0, float)), 0, None)
    log_b0 = np.log(b0 + 0.02 * np.percentile(b0, 99) + 1e-6)
    region = brain.dilated(mask, b0_affine, SURROUNDINGS)
    images = (log_b0, b0_affine, region, *reduced(np.asarray(t1w, float), t1w_affine))
    coarse = _similarity(*images, 4.0, 15_000, rng)
    fine = _similarity(*images, 2.5, 50_000, rng)
    fine.centre = coarse.centre = apply(b0_affine, np.argwhere(mask).mean(0))
    scale = SCATTER * np.repeat([1.0, HEAD_RADIUS * np.pi / 180], 3)
    starts = [k and rng.normal(0, scale) for k in range(N_STARTS)]
    ends = [coarse.best(np.zeros(6) + start) for start in starts]
    found, values = np.array([p for p, _ in ends]), np.array([v for _, v in ends])
    groups = np.array([_agreeing(found, p) for p in found])
    group = groups[max(range(N_STARTS), key=lambda k: (groups[k].sum(), -values[k]))]
    chosen = found[group][np.argmin(values[group])]
    shift, angle = _differences(found, chosen)
    return Registration(
        matrix=_motion(fine.best(chosen)[0], fine.centre),
        agreement_mm=float(np.median(shift)),
        agreement_deg=float(np.median(angle)),
        n_agreeing=int(_agreeing(found, chosen).sum()),
        n_starts=N_STARTS,
    )


# ------------------------------------------------------------------------------------------ tissue


@contextmanager
def _scratch() -> Iterator[str]:
    """A folder for the files that ANTs leaves behind, gone afterwards.

    ANTs names them through the process's default temporary folder, which is moved for that time.
    """
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory() as folder:
        tempfile.tempdir = folder
        try:
            yield folder
        finally:
            tempfile.tempdir = before


def _box(mask: BoolArray, affine: FloatArray, mm: float) -> tuple[tuple[slice, ...], FloatArray]:
    """Slices around ``mask`` with a margin of ``mm``, and the affine of what they cut out."""
    where, margin = np.argwhere(mask), np.ceil(mm / voxel_sizes(affine)).astype(int)
    low = np.maximum(where.min(0) - margin, 0)
    high = np.minimum(where.max(0) + 1 + margin, mask.shape)
    grid = affine.copy()
    grid[:3, 3] = apply(affine, low)
    return tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True)), grid


def carried(
    mask: BoolArray,
    affine: FloatArray,
    shape: Sequence[int],
    grid: FloatArray,
    matrix: FloatArray,
) -> BoolArray:
    """``mask`` (X, Y, Z) on another grid; ``matrix`` maps world points of that grid to the mask's.

    Beyond the field of view of the mask there is none.
    """
    soft = brain.smoothed(mask.astype(float), affine, brain.NOISE_SCALE)
    return resampled(soft, affine, shape, grid, matrix) > 0.5


def without_scalp(t1w: FloatArray, region: BoolArray, affine: FloatArray) -> np.ndarray:
    """The T1w (X, Y, Z) flat within about ``region``, brighter than white matter set to 0.

    Fat and marrow outshine the brain; left in, they draw the template's rim outwards.
    """
    core = brain.eroded(region, affine, 4.0)
    core = core if core.any() else region
    white = np.percentile(t1w[core], 99)
    flat = t1w / brain.bias_field(t1w, core & (t1w < white), affine)
    white = np.percentile(flat[core], 95)
    return np.where(flat > FAT * white, 0, flat)


def _affine_to_template(
    t1w: FloatArray,
    affine: FloatArray,
    region: BoolArray,
    template: FloatArray,
    template_affine: FloatArray,
    rng: np.random.Generator,
) -> np.ndarray:
    """(4, 4) world T1w mm → world template mm: shift, rotation and three scales.

    Starts put the top of the brain, its centre, or the scanner's origin on that of the template:
    the first holds for a slab, the last for a slab without the vertex.
    """
    surroundings = brain.dilated(region, affine, 8.0)
    similarity = _similarity(t1w, affine, surroundings, template, template_affine, 5.0, 8_000, rng)
    mine = apply(affine, np.argwhere(region))
    other = apply(template_affine, np.argwhere(template > 0.2 * template.max()))
    similarity.centre = mine.mean(0)
    to_centre, to_top = other.mean(0) - mine.mean(0), other.max(0) - mine.max(0)
    shifts = (to_centre, np.array([to_centre[0], to_centre[1], to_top[2]]), np.zeros(3))
    tilts = [np.array([x, 0, 0]) * HEAD_RADIUS * np.pi / 180 for x in (-12.0, 0.0, 12.0)]
    rigid = [similarity.best(np.concatenate([s, r])) for s in shifts for r in tilts]
    start = min(rigid, key=lambda end: end[1])[0]
    found, _ = similarity.best(np.concatenate([start, np.zeros(3)]))
    return _motion(found, similarity.centre)


def template_priors(
    t1w: FloatArray,
    affine: FloatArray,
    region: BoolArray,
    template: FloatArray,
    maps: FloatArray,
    template_affine: FloatArray,
    rng: np.random.Generator,
) -> np.ndarray:
    """(3, X, Y, Z) GM, WM, CSF probabilities of a template on the grid of the T1w.

    ``region`` (X, Y, Z) is about the brain, all or a slab of it; ``template`` a T1w without skull,
    ``maps`` (3, ...) its tissues. Affine by mutual information, then SyN (Avants et al. 2008) at
    2 mm inside the region. Sums to 1 in the template's brain, 0 beyond.
    """
    import ants

    box, box_affine = _box(region, affine, 12.0)
    flat = without_scalp(t1w[box], region[box], box_affine)
    known = (template, template_affine, rng)
    matrix = _affine_to_template(flat, box_affine, region[box], *known)
    shape, grid = coarser(region[box].shape, box_affine, 2.0)
    cut = resampled(brain.dilated(region[box], box_affine, 2.0), box_affine, shape, grid) > 0.5
    fixed = resampled(flat, box_affine, shape, grid) * cut
    images = [resampled(x, template_affine, shape, grid, matrix) for x in (template, *maps)]
    moving, *tissues = (brain.to_ants(x, grid) for x in images)
    with _scratch() as folder:
        found = ants.registration(
            brain.to_ants(fixed, grid),
            moving,
            'SyNOnly',
            mask=brain.to_ants(cut, grid),
            initial_transform='Identity',
            reg_iterations=(40, 20, 0),
            outprefix=f'{folder}/syn',
            random_seed=1,
        )
        warps = found['fwdtransforms']
        warped = [ants.apply_transforms(moving, x, warps).numpy() for x in tissues]
    back = [resampled(x, grid, t1w.shape, affine) for x in warped]
    return np.clip(np.stack(back), 0, 1)


def t1w_brain(
    t1w: FloatArray,
    t1w_affine: FloatArray,
    dwi_mask: BoolArray,
    dwi_affine: FloatArray,
    matrix: FloatArray,
    priors: FloatArray,
) -> BoolArray:
    """Brain on the grid of the T1w (X, Y, Z), as far as the dMRI run covers it.

    The dMRI mask carried over (it knows this head, but EPI bends it) widened by 4 mm, where the
    template's ``priors`` (3, X, Y, Z) see brain too.
    """
    to_dwi = np.linalg.inv(matrix)
    seen = carried(dwi_mask, dwi_affine, t1w.shape, t1w_affine, to_dwi)
    box, affine = _box(seen, t1w_affine, 12.0)
    flat = without_scalp(t1w[box], seen[box], affine)
    both = brain.dilated(seen[box], affine, 4.0) & (priors[(slice(None), *box)].sum(0) > 0.5)
    both &= (flat > 0) | brain.eroded(seen[box], affine, 4.0)
    both = brain.eroded(both, affine, 2.0)
    both = brain.dilated(brain.largest(both), affine, 2.0)
    solid = brain.filled(brain.closed(both, affine, 3.0)).astype(float)
    mask = np.zeros(t1w.shape, bool)
    mask[box] = brain.filled(brain.largest(brain.smoothed(solid, affine, 1.5) > 0.5))
    return mask


def _field(residual: FloatArray, weight: FloatArray, grid: FloatArray) -> np.ndarray:
    """Weighted local mean of ``residual``, 0 where there is no weight."""
    shape, wide = coarser(weight.shape, grid, 4.0)
    top, bottom = (
        brain.smoothed(resampled(x, grid, shape, wide), wide, FIELD_SCALE)
        for x in (residual * weight, weight)
    )
    ratio = top / (bottom + 1e-3 * bottom.max())
    index = np.linalg.inv(wide) @ grid
    return np.asarray(
        ndimage.affine_transform(
            ratio, index[:3, :3], index[:3, 3], weight.shape, order=1, mode='nearest'
        )
    )


def _maximised(
    image: FloatArray,
    inside: BoolArray,
    prior: FloatArray,
    parts: FloatArray,
    warm: int,
    grid: FloatArray,
) -> np.ndarray:
    """Posteriors (3, X, Y, Z) by expectation maximisation from ``parts``, which stay at first."""
    axes = (1, 2, 3)
    field = np.zeros(inside.shape)
    for iteration in range(N_ITERATIONS):
        count = parts.sum(axes, keepdims=True) + 1e-6
        mean = (parts * (image - field)).sum(axes, keepdims=True) / count
        square = (image - field - mean) ** 2
        variance = (parts * square).sum(axes, keepdims=True) / count + 1e-4
        weight = parts[:2] / variance[:2]  # CSF borders on skull: no witness of the field
        total = weight.sum(0)
        expected = (weight * mean[:2]).sum(0) / np.maximum(total, 1e-6)
        field = _field(image - expected, total, grid)
        if iteration < warm:
            continue
        near = np.stack([ndimage.uniform_filter(p, 3) for p in parts])
        misfit = (image - field - mean) ** 2 / variance + np.log(variance)
        score = np.log(prior) + ATTRACTION * near - misfit / 2
        parts = np.exp(score - score.max(0)) * inside
        parts /= np.where(inside, parts.sum(0), 1)
    return parts


def tissue(
    t1w: FloatArray, mask: BoolArray, affine: FloatArray, priors: FloatArray | None = None
) -> np.ndarray:
    """(3, X, Y, Z) probabilities of GM, WM, CSF that sum to 1 in ``mask``, 0 outside.

    Expectation maximisation of a Gaussian for each tissue in the logarithm of the T1w (X, Y, Z),
    with a smooth multiplicative receive field (Wells et al. 1996), neighbours that attract each
    other (mean field of a Markov random field), and ``priors`` (3, X, Y, Z) or none.
    """
    box, grid = _box(mask, affine, 4.0)
    inside = mask[box]
    # N4 first: from a strong surface coil the expectation maximisation does not find home.
    dim = inside & (t1w[box] <= np.percentile(t1w[box][inside], 99))
    flat = t1w[box] / brain.bias_field(t1w[box], dim, grid)
    low, high = np.percentile(flat[inside], [1, 99.5])
    image = np.log(np.clip(flat, max(low, 0.05 * high), high))
    prior = np.full((3, *inside.shape), 1 / 3)
    if priors is not None:
        prior = np.stack([brain.smoothed(p, grid, 1.0) for p in priors[(slice(None), *box)]])
        prior = np.clip(prior, 0.01, None)
        prior[2] = np.maximum(prior[2], 1 - prior[:2].sum(0))
        prior /= prior.sum(0)
        parts = prior * inside
    else:
        levels = np.percentile(image[inside], [50, 85, 8])
        nearest = np.abs(image - levels[:, None, None, None]).argmin(0)
        parts = (nearest == np.arange(3)[:, None, None, None]) * inside.astype(float)
    warm = 0 if priors is None else N_WARM
    parts = _maximised(image, inside, prior, parts, warm, grid)
    out = np.zeros((3, *mask.shape))
    out[(slice(None), *box)] = parts
    return out


def to_dwi_grid(
    posteriors: FloatArray,
    t1w_affine: FloatArray,
    matrix: FloatArray,
    dwi_shape: Sequence[int],
    dwi_affine: FloatArray,
    dwi_mask: BoolArray,
) -> np.ndarray:
    """(3, X, Y, Z) tissue fractions on the dMRI grid, summing to 1 in ``dwi_mask``, 0 outside.

    Each dMRI voxel holds the average over its own extent. Where the mask reaches beyond the
    tissue that was found, it is CSF.
    """
    parts = np.stack([resampled(p, t1w_affine, dwi_shape, dwi_affine, matrix) for p in posteriors])
    parts[2] += np.clip(1 - parts.sum(0), 0, None)
    return np.asarray(np.where(dwi_mask, parts / parts.sum(0), 0))


def dseg(fractions: FloatArray) -> np.ndarray:
    """(X, Y, Z) int16, the largest of ``fractions`` (3, X, Y, Z): 1 GM, 2 WM, 3 CSF, 0 outside."""
    return np.where(fractions.sum(0) > 0, fractions.argmax(0) + 1, 0).astype(np.int16)


def tissue_on_dwi(
    t1w: FloatArray,
    t1w_affine: FloatArray,
    matrix: FloatArray,
    dwi_mask: BoolArray,
    dwi_affine: FloatArray,
    template: tuple[FloatArray, FloatArray, FloatArray, FloatArray, FloatArray],
    rng: np.random.Generator,
) -> np.ndarray:
    """(3, X, Y, Z) GM, WM, CSF fractions on the dMRI grid from the corrected whole-head T1w.

    ``matrix`` maps world dMRI mm to world T1w mm; ``template`` is T1w, GM, WM, CSF, affine. All
    the steps of this module after the registration, in their order.
    """
    t1w, affine = reduced(np.asarray(t1w, float), t1w_affine)
    region = carried(dwi_mask, dwi_affine, t1w.shape, affine, np.linalg.inv(matrix))
    image, *maps, template_affine = template
    priors = template_priors(t1w, affine, region, image, np.stack(maps), template_affine, rng)
    mask = t1w_brain(t1w, affine, dwi_mask, dwi_affine, matrix, priors)
    posteriors = tissue(t1w, mask, affine, priors)
    return to_dwi_grid(posteriors, affine, matrix, dwi_mask.shape, dwi_affine, dwi_mask)
