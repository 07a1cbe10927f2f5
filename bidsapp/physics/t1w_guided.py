"""The susceptibility displacement without a field map: the b=0 is led to the T1w.

From the T1w's brain comes the b=0 that an undistorted scan would show: the mean of the b=0 at each
T1w intensity, and its background outside. The smooth displacement along the phase-encoding axis
that makes the b=0, modulated by the Jacobian, most like it is sought from coarse to fine, and the
expected b=0 anew at each scale. This knows far less than a measured field: on a real head with both
its error was as large as the displacement, though edges agreed better. So a result is believed only
if it explains much more of the b=0 where it was not fitted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy import ndimage

from bidsapp.physics import alignment, anatomy, brain, distortion
from bidsapp.physics.geometry import voxel_sizes
from bidsapp.problems import Unavailable

if TYPE_CHECKING:
    from torch import Tensor

    from bidsapp.core import BoolArray, FloatArray

    Template = tuple[FloatArray, FloatArray, FloatArray, FloatArray, FloatArray]

#: mm between the knots of the displacement, mm of blur, steps of the optimiser; coarse to fine.
LEVELS = ((36.0, 8.0, 12), (24.0, 6.0, 12), (16.0, 4.0, 12))
#: Weight of the squared slope of the displacement against the unexplained share of the b=0.
STIFFNESS = 2.0
#: mm; the sensitivity of the coils is smooth at this scale.
SENSITIVITY = 25.0
#: mm around both brains where images are compared.
RIM = 4.0
N_BINS = 32
#: mm and points at which mutual information is compared.
SCALE = (3.0, 40_000)
#: mm; a larger displacement is not believed.
BOUND = 15.0
#: The share of the misfit in slices left out that must go, and the normalised mutual information
#: that must be gained, for a result to be believed. Four real runs lost 12 to 30 % and gained 0.001
#: to 0.012, and AP and PA of a head got alike displacements, which is wrong; simulated heads whose
#: displacement was found lost 42 to 57 % and gained 0.022 or more.
LESS_MISFIT, GAIN = 0.35, 0.015


@dataclass(frozen=True, slots=True, eq=False)
class T1wGuided:
    """What leads the b=0 to the T1w; ``similarity`` is normalised mutual information, 1 to 2."""

    displacement: FloatArray  #: (X, Y, Z) float32, voxels along the phase-encoding axis
    matrix: FloatArray  #: (4, 4) world dMRI mm → world T1w mm
    similarity_before: float
    similarity_after: float
    misfit_before: float  #: share of the b=0 in left-out slices that the T1w leaves unexplained
    misfit_after: float
    method: str  #: in words


@dataclass(frozen=True, slots=True, eq=False)
class Views:
    """A b=0 and the T1w on one grid, both (X, Y, Z)."""

    epi: FloatArray  #: distorted; without its receive field, about 1 in the brain
    t1w: FloatArray  #: 1 in white matter
    brain: FloatArray  #: share of each voxel that is brain in the T1w
    region: BoolArray  #: where they are compared
    size: FloatArray  #: (3,) mm
    axis: int  #: of phase encoding


def expected_epi(views: Views, epi: FloatArray) -> np.ndarray:
    """(X, Y, Z) mean of ``epi`` at each T1w intensity, by share of brain; its median elsewhere."""
    inside = (views.brain > 0.95) & views.region
    place = np.clip(views.t1w, 0, 1.3) / 1.3 * (N_BINS - 1)
    low = np.minimum(place.astype(int), N_BINS - 2)
    share = place - low
    count, total = np.zeros(N_BINS), np.zeros(N_BINS)
    for bins, weight in ((low, 1 - share), (low + 1, share)):
        count += np.bincount(bins[inside], weight[inside], N_BINS)
        total += np.bincount(bins[inside], (weight * epi)[inside], N_BINS)
    count, total = (ndimage.gaussian_filter1d(x, 1.5) for x in (count, total))
    known = np.flatnonzero(count > 0.002 * count.sum())
    curve = np.interp(np.arange(N_BINS), known, total[known] / count[known])
    outside = views.region & (views.brain < 0.05)
    background = float(np.median(epi[outside])) if outside.any() else 0.0
    expected = views.brain * np.interp(place, np.arange(N_BINS), curve)
    expected = expected + (1 - views.brain) * background
    near = [
        ndimage.gaussian_filter(x * views.region, SENSITIVITY / views.size) for x in (epi, expected)
    ]
    gain = np.clip(near[0] / np.maximum(near[1], 1e-3), 0.3, 3)
    return np.asarray(np.where(views.region, expected * gain, expected))


def _splines(n: int, size: float, spacing: float) -> Tensor:
    """(n, K) cubic B-splines with knots every ``spacing`` mm at ``n`` voxels of ``size`` mm."""
    count = int(np.ceil(n * size / spacing)) + 3
    t = np.abs(np.arange(n)[:, None] * size / spacing - np.arange(count) + 1)
    values = np.where(t < 1, 2 / 3 - t**2 + t**3 / 2, np.clip(2 - t, 0, None) ** 3 / 6)
    return torch.as_tensor(values, dtype=torch.float32)


def _finer(views: Views, start: Tensor, weight: Tensor, level: tuple[float, float, int]) -> Tensor:
    """``start`` (X, Y, Z) and the splines of one ``level`` that explain most of the b=0."""
    spacing, blur, steps = level
    axis, size = views.axis, views.size
    expected = expected_epi(views, distortion.unwarp(views.epi, start.numpy(), axis, order=1))
    width = np.sqrt(np.clip(blur**2 - size**2, 0, None)) / 2.355
    target, moving = (
        torch.as_tensor(ndimage.gaussian_filter(x, width), dtype=torch.float32)
        for x in (expected, views.epi)
    )
    power = float(target[weight > 0].var())
    x, y, z = (_splines(n, mm, spacing) for n, mm in zip(views.epi.shape, size, strict=True))
    knots = torch.zeros(x.shape[1], y.shape[1], z.shape[1], requires_grad=True)

    def displacement() -> Tensor:
        along_z = torch.einsum('abc,zc->abz', knots, z)
        along_y = torch.einsum('abz,yb->ayz', along_z, y)
        return start + torch.einsum('ayz,xa->xyz', along_y, x)

    def cost() -> Tensor:
        optimiser.zero_grad()
        shift = displacement()
        slopes = [torch.gradient(shift, dim=k)[0] * float(size[axis] / size[k]) for k in range(3)]
        stretch = 1 + slopes[axis]
        rest = stretch * distortion.sample_along(moving, shift, axis, 1) - target
        bent = torch.stack([slope.square().sum() for slope in slopes]).sum()
        folded = (0.2 - stretch).clamp_min(0).square().mean()
        unexplained = (weight * rest.square()).sum() / power
        value = (unexplained + STIFFNESS * bent) / weight.sum() + 10 * folded
        value.backward()
        return value

    optimiser = torch.optim.LBFGS(
        [knots], max_iter=steps, history_size=8, line_search_fn='strong_wolfe'
    )

    optimiser.step(cost)
    return displacement().detach()


def match(views: Views, where: BoolArray) -> np.ndarray:
    """(X, Y, Z) voxels: the displacement fitted at the voxels ``where`` (X, Y, Z)."""
    shift = torch.zeros(views.epi.shape)
    weight = torch.as_tensor(np.asarray(where, np.float32))
    for level in LEVELS:
        shift = _finer(views, shift, weight, level)
    return np.asarray(shift.numpy())


def misfit(views: Views, shift: FloatArray, where: BoolArray) -> float:
    """Share of the variance of the corrected b=0 ``where`` (X, Y, Z) the T1w does not explain."""
    image = distortion.unwarp(views.epi, shift, views.axis, order=1)
    return float(1 - np.corrcoef(image[where], expected_epi(views, image)[where])[0, 1] ** 2)


def t1w_brain(
    mask: BoolArray,
    affine: FloatArray,
    t1w: FloatArray,
    t1w_affine: FloatArray,
    matrix: FloatArray,
    template: Template,
    rng: np.random.Generator,
) -> BoolArray:
    """Brain on the grid of the T1w (X, Y, Z): by the template, near the dMRI brain ``mask``."""
    image, *maps, grid = template
    region = anatomy.carried(mask, affine, t1w.shape, t1w_affine, np.linalg.inv(matrix))
    priors = anatomy.template_priors(t1w, t1w_affine, region, image, np.stack(maps), grid, rng)
    return anatomy.t1w_brain(t1w, t1w_affine, mask, affine, matrix, priors)


def seen_together(
    epi: FloatArray,
    affine: FloatArray,
    mask: BoolArray,
    t1w: FloatArray,
    t1w_affine: FloatArray,
    inside: BoolArray,
    matrix: FloatArray,
    axis: int,
) -> Views:
    """Both images on the grid of the b=0; ``inside`` is the brain on the grid of the T1w."""
    share, anatomical = (
        alignment.resampled(x, t1w_affine, epi.shape, affine, matrix) for x in (inside, t1w)
    )
    share = np.clip(share, 0, 1)
    flat = epi / np.clip(brain.bias_field(epi, mask, affine), 0.2, None)
    return Views(
        epi=np.minimum(flat / np.percentile(flat[mask], 98), 1.6),
        t1w=anatomical / np.percentile(anatomical[share > 0.5], 95),
        brain=share,
        region=brain.dilated(mask | (share > 0.5), affine, RIM),
        size=voxel_sizes(affine),
        axis=axis,
    )


def displacement_from_t1w(
    epi: FloatArray,
    affine: FloatArray,
    mask: BoolArray,
    t1w: FloatArray,
    t1w_affine: FloatArray,
    matrix: FloatArray | None,
    axis: int,
    template: Template,
    rng: np.random.Generator,
) -> T1wGuided:
    """The displacement that leads the mean ``epi`` (X, Y, Z) to the T1w, along array ``axis`` only.

    ``mask`` is the dMRI brain, ``t1w`` the whole head freed from its receive field, ``matrix`` maps
    world dMRI mm to world T1w mm (None: registered here), ``template`` is T1w, GM, WM, CSF, affine.
    Raises Unavailable where the result folds, is larger than 15 mm, does not explain slices that
    were left out of the fit, or gains no mutual information.
    """
    epi = np.clip(np.nan_to_num(np.asarray(epi, float)), 0, None)
    t1w, t1w_affine = alignment.reduced(np.asarray(t1w, float), t1w_affine)
    if matrix is None:
        matrix = alignment.register_t1w(t1w, t1w_affine, epi, affine, mask, rng).matrix
    inside = t1w_brain(mask, affine, t1w, t1w_affine, matrix, template, rng)
    if not inside.any():
        raise Unavailable('No brain was found in the T1w.')
    views = seen_together(epi, affine, mask, t1w, t1w_affine, inside, matrix, axis)
    shift, misfits, likeness = guided(views, affine, rng)
    return T1wGuided(
        displacement=shift,
        matrix=matrix,
        similarity_before=likeness[0],
        similarity_after=likeness[1],
        misfit_before=misfits[0],
        misfit_after=misfits[1],
        method='b=0 led to the T1w along the phase-encoding axis',
    )


def guided(
    views: Views, affine: FloatArray, rng: np.random.Generator
) -> tuple[np.ndarray, tuple[float, float], tuple[float, float]]:
    """Displacement (X, Y, Z), and what it is believed for: misfit and likeness before and after.

    Every other slice is left out of a first fit, which must explain them. Raises Unavailable.
    """
    odd = np.zeros(views.epi.shape, bool)
    odd[(slice(1, None, 2), ...) if views.axis == 2 else (..., slice(1, None, 2))] = True
    left_out, none = odd & views.region, np.zeros(views.epi.shape, np.float32)
    trial = match(views, views.region & ~odd)
    misfits = misfit(views, none, left_out), misfit(views, trial, left_out)
    shift = match(views, views.region)
    seed, likeness = int(rng.integers(2**32)), []
    for displacement in (none, shift):
        image = distortion.unwarp(views.epi, displacement, views.axis, order=1)
        compared = alignment.similarity_of(
            image, affine, views.region, views.t1w, affine, *SCALE, np.random.default_rng(seed)
        )
        likeness.append(-compared(np.zeros(6)))
    against = objections(views, shift, misfits, (likeness[0], likeness[1]))
    if against:
        raise Unavailable(f'The correction by the T1w is not believed: {"; ".join(against)}.')
    return shift, misfits, (likeness[0], likeness[1])


def objections(
    views: Views,
    shift: FloatArray,
    misfits: tuple[float, float],
    likeness: tuple[float, float],
) -> list[str]:
    """Why a displacement is not believed, in words; nothing if it is."""
    moved = float(np.abs(shift[views.region]).max() * views.size[views.axis])
    folds = distortion.jacobian(shift, views.axis)[views.region].min() <= 0
    unexplained = (
        f'in slices left out, the T1w leaves {misfits[1]:.1%} of the b=0 unexplained with it, '
        f'{misfits[0]:.1%} without'
    )
    unlike = f'mutual information is {likeness[1]:.4f} with it, {likeness[0]:.4f} without'
    reasons = {
        f'it moves the brain by up to {moved:.0f} mm': moved > BOUND,
        'it folds the image': bool(folds),
        unexplained: misfits[1] > (1 - LESS_MISFIT) * misfits[0],
        unlike: likeness[1] < likeness[0] + GAIN,
    }
    return [words for words, holds in reasons.items() if holds]
