"""The T1w image of a participant: brought to a run, its brain, its tissues.

Transforms are (4, 4) matrices in world (RAS+) mm and map points, not images.

Over 300 lines, for what is brought to a run, and how far that is believed, is one chain.
"""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from bidsapp.physics import brain
from bidsapp.physics.alignment import (
    HEAD_RADIUS,
    LEAST_OVERLAP,
    apply,
    coarser,
    motion_matrix,
    reduced,
    resampled,
    similarity_of,
)
from bidsapp.physics.geometry import voxel_sizes
from bidsapp.problems import Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bidsapp.core import FloatArray
    from bidsapp.physics.brain import BoolArray

#: Brighter than this multiple of white matter is fat.
FAT = 1.4
#: Share of the template's priors in Atropos' posteriors.
PRIOR_WEIGHT = 0.25
#: Less of the run's brain seen in the T1w is a doubt; with less than the second no labels are made.
COVERED, LEAST_COVERED = 0.95, LEAST_OVERLAP
#: Points along each edge of a voxel of the run at which the brain of the T1w is looked up.
POINTS = 4
#: Order of tissues, and the shares of a brain that heads of any age have.
TISSUES = ('grey matter', 'white matter', 'fluid')
USUAL_SHARES = ((0.25, 0.7), (0.15, 0.6), (0.01, 0.5))


def correct_t1w(t1w: FloatArray, affine: FloatArray) -> np.ndarray:
    """The whole head (X, Y, Z) freed from its receive field."""
    t1w = np.asarray(t1w, float)
    capped = np.minimum(t1w, np.percentile(t1w, 99))
    head = capped > 0.5 * brain.otsu(capped)
    return np.asarray(t1w / brain.bias_field(t1w, head, affine)) if head.any() else t1w


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
    """Slices around ``mask`` with a margin of ``mm``, and the affine of what they cut out.

    Raises Unavailable for an empty mask.
    """
    if not mask.any():
        raise Unavailable('the T1w image shows nothing of the brain in the dMRI')
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
    similarity = similarity_of(
        t1w, affine, surroundings, template, template_affine, 5.0, 8_000, rng
    )
    mine = apply(affine, np.argwhere(region))
    other = apply(template_affine, np.argwhere(template > 0.2 * template.max()))
    similarity.centre = mine.mean(0)
    to_centre, to_top = other.mean(0) - mine.mean(0), other.max(0) - mine.max(0)
    shifts = (to_centre, np.array([to_centre[0], to_centre[1], to_top[2]]), np.zeros(3))
    tilts = [np.array([x, 0, 0]) * HEAD_RADIUS * np.pi / 180 for x in (-12.0, 0.0, 12.0)]
    rigid = [similarity.best(np.concatenate([s, r])) for s in shifts for r in tilts]
    start = min(rigid, key=lambda end: end[1])[0]
    found, _ = similarity.best(np.concatenate([start, np.zeros(3)]))
    return motion_matrix(found, similarity.centre)


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
    run_mask: BoolArray,
    run_affine: FloatArray,
    matrix: FloatArray,
    priors: FloatArray,
) -> BoolArray:
    """Brain on the grid of the T1w (X, Y, Z), as far as the run covers it.

    The run's mask carried over (it knows this head, but EPI bends it) widened by 4 mm, where the
    template's ``priors`` (3, X, Y, Z) see brain too.
    """
    to_run = np.linalg.inv(matrix)
    seen = carried(run_mask, run_affine, t1w.shape, t1w_affine, to_run)
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


def tissue(t1w: FloatArray, mask: BoolArray, affine: FloatArray, priors: FloatArray) -> np.ndarray:
    """(3, X, Y, Z) probabilities of GM, WM, CSF that sum to 1 in ``mask``, 0 outside.

    Atropos (Avants et al. 2011) on the T1w (X, Y, Z) after N4 inside the brain, with the template's
    ``priors`` (3, X, Y, Z). The weight of the priors was chosen on simulated heads and looked at on
    real ones: at 0.1 the surface of the brain turns to fluid.
    """
    import ants

    box, grid = _box(mask, affine, 4.0)
    inside = mask[box]
    # The brightest percent is fat and vessels, which would pull the field.
    dim = inside & (t1w[box] <= np.percentile(t1w[box][inside], 99))
    flat = t1w[box] / brain.bias_field(t1w[box], dim, grid)
    low, high = np.percentile(flat[inside], [1, 99.5])
    image = np.clip(flat, max(low, 0.05 * high), high)
    prior = np.stack([brain.smoothed(p, grid, 1.0) for p in priors[(slice(None), *box)]])
    prior = np.clip(prior, 0.01, None)
    prior[2] = np.maximum(prior[2], 1 - prior[:2].sum(0))
    prior *= inside / prior.sum(0)

    def plain(array: FloatArray | BoolArray) -> Any:
        # Atropos wants origins that agree to the last bit, and has no use for the world.
        return ants.from_numpy(
            np.ascontiguousarray(array, np.float32), spacing=voxel_sizes(grid).tolist()
        )

    with _scratch():
        found = ants.atropos(
            plain(image * inside),
            plain(inside),
            i=[plain(p) for p in prior],
            m='[0.2,1x1x1]',
            c='[8,0]',
            priorweight=PRIOR_WEIGHT,
            r=0,  # its own seed, not the clock's: voxels change in a random order
        )
    parts = np.stack([part.numpy() for part in found['probabilityimages']]) * inside
    out = np.zeros((3, *mask.shape))
    out[(slice(None), *box)] = parts / np.where(inside, np.maximum(parts.sum(0), 1e-6), 1)
    return out


def share_seen(
    inside: BoolArray,
    t1w_affine: FloatArray,
    matrix: FloatArray,
    run_mask: BoolArray,
    run_affine: FloatArray,
) -> np.ndarray:
    """(X, Y, Z) share of each voxel of ``run_mask`` that lies ``inside`` (on the T1w's grid).

    Looked up at POINTS³ points of each voxel; beyond the T1w's field of view nothing is inside.
    """
    to_t1w = np.linalg.inv(t1w_affine) @ matrix @ run_affine
    voxels = np.argwhere(run_mask)
    within = (np.arange(POINTS) + 0.5) / POINTS - 0.5
    count = np.zeros(len(voxels))
    for offset in product(within, repeat=3):
        index = np.rint(apply(to_t1w, voxels + np.array(offset))).astype(int)
        there = ((index >= 0) & (index < inside.shape)).all(1)
        count[there] += inside[tuple(index[there].T)]
    share = np.zeros(run_mask.shape)
    share[run_mask] = count / POINTS**3
    return share


def to_run_grid(
    posteriors: FloatArray,
    t1w_affine: FloatArray,
    matrix: FloatArray,
    run_shape: Sequence[int],
    run_affine: FloatArray,
    run_mask: BoolArray,
) -> tuple[np.ndarray, float]:
    """(3, X, Y, Z) tissue fractions on the run's grid, and the share of ``run_mask`` that has any.

    Each of its voxels holds the average over its own extent. Fractions sum to 1 where at least half
    of a voxel of the mask is brain in the T1w. Elsewhere, beyond the T1w's field of view or its
    brain, nothing is known and they are 0: such voxels were once called fluid, which a third of
    them, by their diffusivity, are not. Nor is white matter at the surface of the brain believed,
    where scalp or dura was taken for brain; the edge of the image is no surface.
    """
    parts = np.stack([resampled(p, t1w_affine, run_shape, run_affine, matrix) for p in posteriors])
    inside = posteriors.sum(0) > 0.5
    known = share_seen(inside, t1w_affine, matrix, run_mask, run_affine) >= 0.5
    covered = float(known.sum() / max(run_mask.sum(), 1))
    surface = run_mask & ~ndimage.binary_erosion(run_mask, border_value=True)
    known &= ~(surface & (parts.argmax(0) == TISSUES.index('white matter')))
    return np.asarray(np.where(known, parts / np.maximum(parts.sum(0), 1e-6), 0)), covered


def doubts(fractions: FloatArray, covered: float) -> list[str]:
    """What is strange about ``fractions`` (3, X, Y, Z), of a brain ``covered`` so far, in words.

    A brain that was not found, or found with its skull, shows in one or the other.
    """
    found = []
    if covered < COVERED:
        found.append(
            f'the brain found in the T1w image covers {covered:.0%} of the brain in the dMRI; '
            'the rest has no tissue label (0)'
        )
    share = fractions.sum((1, 2, 3)) / max(float(fractions.sum()), 1e-6)
    for name, value, (low, high) in zip(TISSUES, share, USUAL_SHARES, strict=True):
        if not low <= value <= high:
            found.append(
                f'{value:.0%} of the brain was called {name}; between {low:.0%} and {high:.0%} is '
                'usual'
            )
    return found


def dseg(fractions: FloatArray) -> np.ndarray:
    """(X, Y, Z) int16, the largest of ``fractions`` (3, X, Y, Z): 1 GM, 2 WM, 3 CSF, 0 outside."""
    return np.where(fractions.sum(0) > 0, fractions.argmax(0) + 1, 0).astype(np.int16)


def tissue_on_run(
    t1w: FloatArray,
    t1w_affine: FloatArray,
    matrix: FloatArray,
    run_mask: BoolArray,
    run_affine: FloatArray,
    template: tuple[FloatArray, FloatArray, FloatArray, FloatArray, FloatArray],
    rng: np.random.Generator,
) -> tuple[np.ndarray, float]:
    """(3, X, Y, Z) GM, WM, CSF fractions on the run's grid from the corrected whole-head T1w.

    And the share of ``run_mask`` in which the T1w shows brain.

    ``matrix`` maps world mm of the run to world mm of the T1w; ``template`` is T1w, GM, WM, CSF,
    affine. All the steps of this module after the registration, in their order. Raises Unavailable
    where the T1w shows next to nothing of that brain.
    """
    t1w, affine = reduced(np.asarray(t1w, float), t1w_affine)
    region = carried(run_mask, run_affine, t1w.shape, affine, np.linalg.inv(matrix))
    image, *maps, template_affine = template
    priors = template_priors(t1w, affine, region, image, np.stack(maps), template_affine, rng)
    mask = t1w_brain(t1w, affine, run_mask, run_affine, matrix, priors)
    known = share_seen(mask, affine, matrix, run_mask, run_affine) >= 0.5
    if (covered := known.sum() / max(run_mask.sum(), 1)) < LEAST_COVERED:
        raise Unavailable(
            f'the brain found in the T1w image covers {covered:.0%} of the brain in the dMRI; at '
            f'least {LEAST_COVERED:.0%} is needed'
        )
    posteriors = tissue(t1w, mask, affine, priors)
    return to_run_grid(posteriors, affine, matrix, run_mask.shape, run_affine, run_mask)
