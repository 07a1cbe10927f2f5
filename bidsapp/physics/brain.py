"""The brain in a raw dMRI run: its mask, whether that mask can be believed, and its bias field."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from bidsapp.physics.geometry import grid_axes, voxel_sizes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bidsapp.core import FloatArray

    BoolArray = NDArray[np.bool_]

#: ml; adult brains, with room for atrophy, hydrocephalus and the ventricles that are kept.
PLAUSIBLE_VOLUME = (500.0, 2200.0)
#: mm; a field of view smaller than this along an axis is a slab and may hold less of a brain.
WHOLE_HEAD = 100.0

#: mm; bridges thinner than twice this (optic nerves, dura, muscles) part brain from other tissue.
OPENING = 5.0
#: mm; sulci and ventricles narrower than twice this belong to the brain.
CLOSING = 10.0
#: mm, standard deviations: of the local reference intensity, and of the smoothed boundary.
REFERENCE_SCALE, NOISE_SCALE, BOUNDARY_SCALE = 20.0, 1.5, 3.0
#: mm; the voxel at which N4 fits the field.
N4_VOXEL = 8.0
#: Tissue darker than this fraction of the brain around it is not brain.
THRESHOLD = 0.5


def otsu(values: FloatArray) -> float:
    """The threshold that parts ``values`` into two classes of least variance (Otsu 1979)."""
    count, edges = np.histogram(values, 256)
    centre = (edges[1:] + edges[:-1]) / 2
    below = np.cumsum(count)[:-1]
    above = count.sum() - below
    total = np.cumsum(count * centre)
    with np.errstate(divide='ignore', invalid='ignore'):
        between = below * above * (total[:-1] / below - (total[-1] - total[:-1]) / above) ** 2
    return float(centre[np.nanargmax(between)]) if np.isfinite(between).any() else float('inf')


def eroded(mask: BoolArray, affine: FloatArray, mm: float) -> BoolArray:
    """Voxels deeper than ``mm`` inside ``mask``; the edge of the image is no surface."""
    return np.asarray(ndimage.distance_transform_edt(mask, voxel_sizes(affine)) > mm)


def dilated(mask: BoolArray, affine: FloatArray, mm: float) -> BoolArray:
    """Voxels within ``mm`` of ``mask``."""
    if not mask.any():
        return mask.copy()
    return np.asarray(ndimage.distance_transform_edt(~mask, voxel_sizes(affine)) <= mm)


def closed(mask: BoolArray, affine: FloatArray, mm: float) -> BoolArray:
    """Dilation, then erosion, as if the mask continued beyond the edge of the image."""
    width = [(int(np.ceil(mm / size)),) * 2 for size in voxel_sizes(affine)]
    padded = dilated(np.pad(mask, width, 'edge'), affine, mm)
    inner = tuple(slice(a, -b) for a, b in width)
    return eroded(padded, affine, mm)[inner]


def largest(mask: BoolArray) -> BoolArray:
    """The largest face-connected component; empty if ``mask`` is."""
    label, n = ndimage.label(mask)
    return np.asarray(label == 1 + np.argmax(np.bincount(label.ravel())[1:])) if n else mask


def filled(mask: BoolArray) -> BoolArray:
    """Holes filled, also those that the edge of the image cuts open (ventricles of a slab)."""
    mask = mask.copy()
    for axis in range(mask.ndim):
        slices = np.moveaxis(mask, axis, 0)
        for end in (0, -1):
            slices[end] = ndimage.binary_fill_holes(slices[end])
    return np.asarray(ndimage.binary_fill_holes(mask))


def smoothed(image: FloatArray, affine: FloatArray, mm: float) -> np.ndarray:
    """Gaussian of standard deviation ``mm``."""
    return np.asarray(ndimage.gaussian_filter(image, mm / voxel_sizes(affine), mode='nearest'))


def _relative(image: FloatArray, affine: FloatArray, core: BoolArray | None) -> np.ndarray:
    """Signal above background, relative to the local mean in ``core``: 1 in brain, any coil."""
    capped = np.minimum(image, np.percentile(image, 99))
    level = otsu(capped)
    signal = np.clip(image - np.median(image[capped <= level]), 0, None)
    core = capped > level if core is None or not core.any() else core
    weight = smoothed(core.astype(float), affine, REFERENCE_SCALE)
    local = smoothed(signal * core, affine, REFERENCE_SCALE) / np.maximum(weight, 1e-3)
    # Far from the core the local mean is an extrapolation to nothing; noise must not count as 1.
    return np.asarray(signal / np.maximum(local, 0.3 * np.median(signal[core])))


def brain_mask(unweighted: FloatArray, weighted_mean: FloatArray, affine: FloatArray) -> BoolArray:
    """Brain mask (X, Y, Z) from the mean b=0 and the mean diffusion-weighted image (X, Y, Z).

    Eyes are bright without diffusion weighting and dark with it; scalp, muscle and suppressed fat
    are dark in both; brain is bright in both. So the geometric mean of the two, each relative to
    the brain around it, is thresholded, opened, closed and filled, in millimetres. Ventricles,
    sulci, and the cord as far as it is bright, count as brain. One component, no holes; empty if
    nothing stands out.
    """
    images = [np.nan_to_num(np.asarray(x, float)) for x in (unweighted, weighted_mean)]
    if min(np.ptp(image) for image in images) == 0:
        return np.zeros(images[0].shape, bool)
    core: BoolArray | None = None
    for _ in range(3):
        first, second = (_relative(x, affine, core) for x in images)
        # Capped, so that a bright eye cannot make up for its darkness in the other image.
        both = np.sqrt(np.minimum(first, 1.5) * np.minimum(second, 1.5))
        bright = smoothed(both, affine, NOISE_SCALE) > THRESHOLD
        heart = largest(eroded(bright, affine, OPENING))
        core = dilated(heart, affine, OPENING) & bright
    assert core is not None
    solid = filled(closed(core, affine, CLOSING)).astype(float)
    return filled(largest(smoothed(solid, affine, BOUNDARY_SCALE) > 0.5))


def plausible(mask: BoolArray, affine: FloatArray) -> str | None:
    """None, or a plain sentence that says why ``mask`` (X, Y, Z) cannot be a brain."""
    if not mask.any():
        return 'The brain mask is empty: no tissue stood out from the background.'
    fraction = float(mask.mean())
    if fraction > 0.8:
        return (
            f'The brain mask fills {fraction:.0%} of the field of view; a head with air around it '
            'was expected.'
        )
    volume = float(mask.sum() * abs(np.linalg.det(affine[:3, :3])) / 1000)
    extent = float(min(np.array(mask.shape) * voxel_sizes(affine)))
    low, high = PLAUSIBLE_VOLUME
    low *= min(1.0, extent / WHOLE_HEAD)
    if not low <= volume <= high:
        return (
            f'The brain mask has {volume:.0f} ml; {low:.0f} to {high:.0f} ml were expected in a '
            f'field of view of {extent:.0f} mm.'
        )
    return None


def to_ants(image: FloatArray | BoolArray, affine: FloatArray) -> Any:
    """The ANTs image, float32, of an array (X, Y, Z).

    ITK's world is LPS, ours RAS: the first two axes change sign. ITK allows no shear, so the
    directions are the nearest orthonormal ones.
    """
    import ants

    flip = np.diag([-1.0, -1.0, 1.0])
    return ants.from_numpy(
        np.ascontiguousarray(image, np.float32),
        origin=(flip @ affine[:3, 3]).tolist(),
        spacing=voxel_sizes(affine).tolist(),
        direction=flip @ grid_axes(affine),
    )


def bias_field(image: FloatArray, mask: BoolArray, affine: FloatArray) -> np.ndarray:
    """Smooth receive field (X, Y, Z), positive, mean 1 within ``mask``: divide the signal by it.

    N4 (Tustison et al. 2010) on a mean b=0 or T1w image (X, Y, Z) inside ``mask``. The field has
    knots 100 mm apart, so voxels of about 8 mm are enough to find it.
    """
    import ants

    field = ants.n4_bias_field_correction(
        to_ants(image, affine),
        mask=to_ants(mask, affine),
        shrink_factor=max(1, round(N4_VOXEL / float(voxel_sizes(affine).mean()))),
        convergence={'iters': [30, 30, 30], 'tol': 1e-4},
        spline_param=100,
        return_bias_field=True,
    ).numpy()
    return np.asarray(field / field[mask].mean())
