"""Head motion, eddy currents and slices that dropped out of a diffusion run.

First all is estimated (`realignment`, `outliers`); then the raw data are interpolated once, with
the displacement by susceptibility in the same step where there is one: what belongs to x is found
in volume n at M_n(x + d(x) e_p), M_n being where the head was and what its eddy currents did.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bidsapp.modalities.dwi.physics import outliers, realignment
from bidsapp.modalities.dwi.physics.placement import UNKNOWN, Placement, placed
from bidsapp.physics.distortion import jacobian
from bidsapp.physics.resampling import N_RIGID, RADIUS, Warp, resampled_cubic, voxel_matrices

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from bidsapp.core import FloatArray
    from bidsapp.modalities.dwi.physics.gradients import GradientTable

#: The misfit of a run must fall to this share or lower: less motion (about 0.05 mm at an SNR of 25)
#: than the registration itself errs is not worth an interpolation.
_GAIN = 0.95
#: mm and rad that no head in a coil can move: what is found to have, shows something else.
_FARTHEST = (30.0, 0.6)


@dataclass(frozen=True, slots=True, eq=False)
class Motion:
    """How a head and its image moved in a run of N volumes."""

    parameters: FloatArray  #: (N, 6 + K): mm, rad and mm/mm, as in `resampling.Warp`
    warp: Warp  #: what the parameters mean
    gtab: GradientTable  #: world axes; each vector as the head, at rest, would have felt it
    framewise_displacement: FloatArray  #: (N,) mm from the volume before; 0 for the first
    residual_before: FloatArray  #: (N,) RMS difference from prediction over RMS, in the mask
    residual_after: FloatArray  #: (N,), both of images smoothed by a voxel
    outliers: outliers.Outliers  #: slices to replace
    placement: Placement = UNKNOWN  #: of the weighted volumes against b = 0


@dataclass(frozen=True, slots=True, eq=False)
class MotionCorrection(Motion):
    """A corrected run, and how it had moved."""

    data: FloatArray = field(kw_only=True)  #: (X, Y, Z, N) float32


def estimate_motion(
    data: FloatArray,
    affine: FloatArray,
    gtab: GradientTable,
    mask: NDArray[np.bool_],
    phase_encoding: str | None,
    slice_axis: int | None = 2,
    rounds: int = 3,
    device: str = 'cpu',
    progress: Callable[[int, int], Any] | None = None,
) -> Motion:
    """Where the head was in every volume of ``data`` (X, Y, Z, N), seen from the first b = 0.

    ``gtab`` is in world axes, ``mask`` (X, Y, Z) the brain in the first b = 0 volume.
    ``phase_encoding`` is an axis of the grid as BIDS has it, or None where it is not known: eddy
    currents may then stretch a weighted volume in any direction. b = 0 volumes move rigidly.
    Slices along grid ``slice_axis`` that dropped out are predicted, and the estimate is refined
    with them replaced; None looks for none.
    A run whose volumes hardly agree better afterwards, in the median, stays as it was, and so does
    a volume that does not come nearer to its prediction (parameters 0). Last the weighted volumes
    are placed together against b = 0 (`placement`). ``progress`` is called with (rounds done,
    rounds). Raises BadData without a b = 0 volume or with an empty mask.
    """
    scan = realignment.prepare(data, affine, gtab, mask, phase_encoding, device)
    rest = np.zeros((len(gtab), scan.grid.warp.n_parameters))
    before = scan.residual(rest)
    parameters = realignment.estimate(scan, rounds, progress)
    low = outliers.none(len(gtab), slice_axis or 0)
    if slice_axis is not None:
        low = outliers.replace_outliers(scan, parameters, slice_axis)
    if len(low.slices):
        parameters = realignment.refined(scan, parameters)
    # Of the medians: one empty volume, whose relative residual is without bounds, decides nothing.
    if np.median(scan.residual(parameters)) > np.sqrt(_GAIN) * np.median(before):
        parameters = rest
    parameters, placement = placed(scan, parameters)
    if len(low.slices):
        low = outliers.replace_outliers(scan, parameters, low.axis, known=low)
    return Motion(
        parameters=parameters,
        warp=scan.grid.warp,
        gtab=scan.turned(parameters),
        framewise_displacement=framewise_displacement(
            head_motion(parameters, scan.grid.warp, gtab)
        ),
        residual_before=before,
        residual_after=scan.residual(parameters),
        outliers=low,
        placement=placement,
    )


def apply_motion(
    data: FloatArray,
    affine: FloatArray,
    motion: Motion,
    displacement: FloatArray | None = None,
    axis: int | None = None,
) -> np.ndarray:
    """``data`` (X, Y, Z, N) where the head was in the first b = 0 volume, (X, Y, Z, N) float32.

    The raw data, outlier slices replaced, are interpolated once (cubic B-spline, edges repeated,
    ≥ 0) and multiplied by the volume factor of all displacements, for what was spread had become
    dimmer. ``displacement`` (X, Y, Z) is that of susceptibility in voxels along grid ``axis``, as
    in `distortion`. A volume that nothing displaces is copied. Volumes are worked on one at a time
    for each of torch's threads. Raises ValueError for a displacement without its axis.
    """
    if displacement is not None and axis is None:
        raise ValueError('a displacement needs the axis along which it is')
    matrices = voxel_matrices(motion.warp.matrices(motion.parameters), affine)
    factors = np.linalg.det(motion.warp.distortions(motion.parameters)).astype(np.float32)
    spread = None if displacement is None or axis is None else jacobian(displacement, axis)
    result = np.empty(data.shape, np.float32)

    def one(n: int) -> None:
        raw = motion.outliers.replaced(data[..., n], n)
        volume = resampled_cubic(raw, matrices[n], displacement, axis)
        if volume is not raw:
            volume *= factors[n] if spread is None else factors[n] * spread
            np.maximum(volume, 0, out=volume)
        result[..., n] = volume

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(one, range(data.shape[-1])))
    return result


def correct_motion(
    data: FloatArray,
    affine: FloatArray,
    gtab: GradientTable,
    mask: NDArray[np.bool_],
    phase_encoding: str | None,
    slice_axis: int | None = 2,
    rounds: int = 3,
    device: str = 'cpu',
    progress: Callable[[int, int], Any] | None = None,
) -> MotionCorrection:
    """`estimate_motion`, then `apply_motion`: for a run without a susceptibility displacement."""
    motion = estimate_motion(
        data, affine, gtab, mask, phase_encoding, slice_axis, rounds, device, progress
    )
    known = {name: getattr(motion, name) for name in Motion.__dataclass_fields__}
    return MotionCorrection(**known, data=apply_motion(data, affine, motion))


def head_motion(parameters: FloatArray, warp: Warp, gtab: GradientTable) -> np.ndarray:
    """(N, 6) translation in mm and rotation in rad of the head alone.

    The constant part of an eddy-current field shifts the image along the phase-encoding axis in
    proportion to the gradient. That is no motion, and is taken off where the axis is known.
    """
    rigid = np.array(parameters[:, :N_RIGID])
    weighted = ~gtab.b0
    if len(warp.generators) > 3 or not weighted.any():
        return rigid
    axis = np.linalg.svd(warp.generators[0])[0][:, 0]  # the stretch is a aᵀ
    along = rigid[weighted, :3] @ axis[:, None]
    rigid[weighted, :3] -= realignment.induced(along, gtab[weighted]) * axis
    return rigid


def impossible(motion: Motion) -> dict[int, str]:
    """Volumes that are found where no head can be, and what is said of them."""
    head = head_motion(motion.parameters, motion.warp, motion.gtab)
    distance = np.linalg.norm(head[:, :3], axis=1)
    angle = np.linalg.norm(head[:, 3:], axis=1)
    far = np.flatnonzero((distance > _FARTHEST[0]) | (angle > _FARTHEST[1]))
    return {
        int(
            v
        ): f'it fits the others only {distance[v]:.0f} mm and {np.rad2deg(angle[v]):.0f} degrees '
        'away, where no head can be'
        for v in far
    }


def framewise_displacement(parameters: FloatArray) -> np.ndarray:
    """(N,) mm: sum of the six absolute changes since the volume before, rotations at 50 mm."""
    rigid = np.asarray(parameters[:, :N_RIGID]) * np.repeat([1.0, RADIUS], 3)
    return np.asarray(np.abs(np.diff(rigid, axis=0, prepend=rigid[:1])).sum(1))


def replaced_slices(motion: Motion, affine: FloatArray, shape: tuple[int, ...]) -> np.ndarray:
    """(S, 3) volume, first and last slice that hold what `outliers` put in, after the correction.

    A slice of the run as it came lies askew in the corrected one (X, Y, Z) of ``affine``.
    """
    low = motion.outliers
    back = np.linalg.inv(voxel_matrices(motion.warp.matrices(motion.parameters), affine))
    ranges = [
        part.indices(n)[:2]
        for part, n in zip(low.plane, np.delete(shape[:3], low.axis), strict=True)
    ]
    rows = []
    for volume, position in low.slices:
        corners = np.stack(np.meshgrid(*[(a, b - 1) for a, b in ranges]), -1).reshape(-1, 2)
        voxels = np.insert(corners.astype(float), low.axis, position, axis=1)
        along = (voxels @ back[volume, :3, :3].T + back[volume, :3, 3])[:, low.axis]
        first, last = np.floor(along.min() + 0.01), np.ceil(along.max() - 0.01)
        rows.append((volume, max(first, 0), min(last, shape[low.axis] - 1)))
    return np.array(rows, int).reshape(-1, 3)


def confounds(motion: Motion) -> dict[str, np.ndarray]:
    """Columns (N,) of a confounds table, named as fMRIPrep names them where it has them.

    trans_* in mm and rot_* in rad (world axes, `head_motion`), framewise_displacement in mm with
    NaN ('n/a') for the first volume, outlier_slices replaced, and the residual that is left.
    """
    names = [f'{kind}_{axis}' for kind in ('trans', 'rot') for axis in 'xyz']
    head = head_motion(motion.parameters, motion.warp, motion.gtab)
    columns = dict(zip(names, head.T, strict=True))
    steps = np.array(motion.framewise_displacement, float)
    steps[:1] = np.nan
    return {
        **columns,
        'framewise_displacement': steps,
        'outlier_slices': motion.outliers.counts,
        'residual': np.asarray(motion.residual_after),
    }
