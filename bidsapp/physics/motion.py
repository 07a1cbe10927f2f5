"""Head motion and eddy currents of a diffusion run: each volume registered to its expectation.

What a volume should look like is predicted from the others (`qspace.leave_one_out`), so that each
is compared with its like, whatever its b-value. All rounds but the last ignore direction: a
displacement that varies smoothly with the gradient, as that of eddy currents does, would pass for
anisotropy and be predicted together with it; the mean over directions has no such blind spot.
Anisotropy then disturbs instead, so voxels where predictions keep failing count less, and the
eddy currents of all volumes are tied to their gradients by one linear law.

The predictions know nothing of a displacement that all weighted volumes share. After each round
the mean weighted image is therefore registered to the b = 0 image by mutual information. That errs
by half a millimetre, so it is weighed against what the head's path says: from a b = 0 volume to its
neighbour it should step no further than between others. The first b = 0 volume never moves: it
defines the space.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bidsapp.core import BadData, GradientTable
from bidsapp.physics import qspace
from bidsapp.physics.gradients import rotated, voxel_sizes
from bidsapp.physics.mutual_information import rigid_displacement
from bidsapp.physics.resampling import (
    N_RIGID,
    RADIUS,
    Grid,
    Match,
    Warp,
    resample_cubic,
    resample_linear,
    smooth,
    stretches,
    voxel_matrices,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from bidsapp.core import FloatArray

#: Gaussian widths of the levels, in voxels (geometric mean edge), coarse to fine.
_LEVELS = (2.0, 1.0)
#: Brain voxels compared at each level; more than these add time but hardly precision.
_MAX_POINTS = 40_000
#: mm around the mask that are compared too: the edge of the brain says most about its position.
_RIM = 6.0
#: mm of image around those that are kept at hand.
_MARGIN = 12.0
#: The misfit of a run must fall to this share or lower: less motion (about 0.05 mm at an SNR of 25)
#: than the registration itself errs is not worth an interpolation.
_GAIN = 0.95
#: mm (at 50 mm): error of a registration across contrasts, found on scans of four vendors.
_DOUBT = 0.5
#: Lower bound of the noise variance of S/S0: misfit of the prior at any SNR.
_NOISE_FLOOR = 1e-3


@dataclass(frozen=True, slots=True, eq=False)
class MotionCorrection:
    """A corrected run, and how the head and its image had moved."""

    data: FloatArray  #: (X, Y, Z, N) float32
    gtab: GradientTable  #: world axes; each vector as the head, at rest, would have felt it
    parameters: FloatArray  #: (N, 6 + K): mm, rad and mm/mm, as in `resampling.Warp`
    framewise_displacement: FloatArray  #: (N,) mm from the volume before; 0 for the first
    residual_before: FloatArray  #: (N,) RMS difference from prediction over RMS, in the mask
    residual_after: FloatArray  #: (N,)


@dataclass(frozen=True, slots=True, eq=False)
class _Scan:
    """The part of a run around the brain, and what does not change while it is registered."""

    volumes: Tensor  #: (N, X, Y, Z), in units of the mean b = 0 signal in the brain
    levels: tuple[Tensor, ...]  #: the same, smoothed
    sigmas: tuple[FloatArray, ...]  #: (3,) voxels
    mask: Tensor  #: (X, Y, Z) bool
    grid: Grid  #: of the cropped images
    box: tuple[slice, ...]  #: where they lie in the run
    gtab: GradientTable
    variance: float  #: of the noise of S/S0

    def turned(self, parameters: FloatArray) -> GradientTable:
        """The table in the frame of the head: Rᵀ g."""
        return rotated(self.gtab, np.swapaxes(self.grid.warp.rotations(parameters), 1, 2))


def correct_motion(
    data: FloatArray,
    affine: FloatArray,
    gtab: GradientTable,
    mask: NDArray[np.bool_],
    phase_encoding: str | None,
    rounds: int = 3,
    device: str = 'cpu',
    progress: Callable[[int, int], Any] | None = None,
) -> MotionCorrection:
    """Put every volume of ``data`` (X, Y, Z, N) where the first b = 0 volume is.

    ``gtab`` is in world axes, ``mask`` (X, Y, Z) the brain in the first b = 0 volume.
    ``phase_encoding`` is an axis of the grid as BIDS has it, or None where it is not known: eddy
    currents may then stretch a weighted volume in any direction. b = 0 volumes move rigidly.
    A run whose volumes hardly agree better afterwards is returned as it was, and so is a
    volume that does not come nearer to its prediction (parameters 0).
    The original data are interpolated once (cubic B-spline, ≥ 0) and multiplied by the volume
    factor of the stretch, for what was spread had become dimmer. ``progress`` is called with
    (rounds done, rounds). Raises BadData without a b = 0 volume or with an empty mask.
    """
    scan = _prepare(data, affine, gtab, mask, phase_encoding, device)
    parameters = _estimate(scan, rounds, progress)
    corrected = _moved_back(data, affine, scan.grid.warp, parameters)
    if _misfit(scan, corrected, scan.turned(parameters)) > _GAIN * _misfit(scan, data, gtab):
        parameters = np.zeros_like(parameters)
        corrected = np.array(data, np.float32)
    turned = scan.turned(parameters)
    return MotionCorrection(
        data=corrected,
        gtab=turned,
        parameters=parameters,
        framewise_displacement=framewise_displacement(parameters),
        residual_before=prediction_residual(data, gtab, mask, scan.variance),
        residual_after=prediction_residual(corrected, turned, mask, scan.variance),
    )


def _moved_back(
    data: FloatArray, affine: FloatArray, warp: Warp, parameters: FloatArray
) -> np.ndarray:
    """``data`` (X, Y, Z, N) interpolated once where the head was, and as bright as it was."""
    matrices = voxel_matrices(warp.matrices(parameters), affine)
    corrected = resample_cubic(data, matrices, torch.get_num_threads())
    corrected *= np.linalg.det(warp.distortions(parameters)).astype(np.float32)
    return np.maximum(corrected, 0, out=corrected)


def _misfit(scan: _Scan, data: FloatArray, gtab: GradientTable) -> float:
    """Share of the energy of ``data`` (X, Y, Z, N) that its volumes do not say of each other.

    Of smoothed images: there the smoothing by an interpolation hardly shows.
    """
    volumes = np.ascontiguousarray(np.moveaxis(data[scan.box], -1, 0), dtype=np.float32)
    smoothed = smooth(torch.as_tensor(volumes).to(scan.volumes), scan.sigmas[-1])[:, scan.mask]
    difference = smoothed - _predicted(smoothed, gtab, scan.variance)
    return float(difference.square().sum() / smoothed.square().sum())


def framewise_displacement(parameters: FloatArray) -> np.ndarray:
    """(N,) mm: sum of the six absolute changes since the volume before, rotations at 50 mm."""
    rigid = np.asarray(parameters[:, :N_RIGID]) * np.repeat([1.0, RADIUS], 3)
    return np.abs(np.diff(rigid, axis=0, prepend=rigid[:1])).sum(1)


def prediction_residual(
    data: FloatArray, gtab: GradientTable, mask: NDArray[np.bool_], variance: float
) -> np.ndarray:
    """(N,) RMS in the mask of each volume of ``data`` (X, Y, Z, N) less what the others predict.

    In units of the volume's own RMS; 0 for a b = 0 volume that has no other to compare with.
    ``variance`` is that of the noise of S/S0.
    """
    inside = torch.as_tensor(np.ascontiguousarray(data[mask].T, dtype=np.float32))
    difference = inside - _predicted(inside, gtab, variance)
    return np.asarray((difference.square().mean(1) / inside.square().mean(1)).sqrt())


def _prepare(
    data: FloatArray,
    affine: FloatArray,
    gtab: GradientTable,
    mask: NDArray[np.bool_],
    phase_encoding: str | None,
    device: str,
) -> _Scan:
    """Crop, scale and smooth the run, and choose the voxels to compare."""
    from scipy import ndimage

    if not gtab.b0.any():
        raise BadData(
            'the run has no volume with b = 0, which motion correction needs as its reference: '
            'acquire one, or leave motion correction out'
        )
    if not mask.any():
        raise BadData('the brain mask is empty: look at the b = 0 volume and at the mask')
    edges = voxel_sizes(affine)
    near = ndimage.distance_transform_edt(~mask, sampling=edges) <= _RIM
    box = _box(mask, np.ceil((_RIM + _MARGIN) / edges).astype(int))
    cropped = np.array(affine, float)
    cropped[:3, 3] += cropped[:3, :3] @ [part.start for part in box]
    brain = affine[:3, :3] @ np.argwhere(mask).mean(0) + affine[:3, 3]
    scale = float(data[mask][:, gtab.b0].mean())
    volumes = np.moveaxis(data[box], -1, 0).astype(np.float32) / max(scale, 1e-12)
    tensor = torch.as_tensor(np.ascontiguousarray(volumes), device=device)
    voxels = torch.as_tensor(_spread(np.argwhere(near[box])), device=device).to(tensor)
    sigmas = tuple(level * np.cbrt(edges.prod()) / edges for level in _LEVELS)
    return _Scan(
        volumes=tensor,
        levels=tuple(smooth(tensor, sigma) for sigma in sigmas),
        sigmas=sigmas,
        mask=torch.as_tensor(np.ascontiguousarray(mask[box]), device=device),
        grid=Grid(cropped, voxels, Warp(brain, stretches(affine, phase_encoding))),
        box=box,
        gtab=gtab,
        variance=_noise(volumes, mask[box], gtab),
    )


def _box(mask: NDArray[np.bool_], margin: NDArray[np.int_]) -> tuple[slice, ...]:
    inside = np.argwhere(mask)
    low = np.maximum(inside.min(0) - margin, 0)
    high = np.minimum(inside.max(0) + margin + 1, mask.shape)
    return tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))


def _spread(voxels: NDArray[np.int_]) -> NDArray[np.int_]:
    """At most about _MAX_POINTS of them, evenly: multiples of the golden ratio never line up."""
    golden = (np.arange(len(voxels)) * 0.6180339887498949) % 1
    return voxels[golden < _MAX_POINTS / len(voxels)]


def _noise(volumes: FloatArray, mask: NDArray[np.bool_], gtab: GradientTable) -> float:
    s0 = np.maximum(volumes[gtab.b0].mean(0), 0.05)
    attenuation = volumes[~gtab.b0] / s0
    return max(qspace.noise_variance(attenuation, mask, gtab[~gtab.b0]), _NOISE_FLOOR)


def _estimate(scan: _Scan, rounds: int, progress: Callable[[int, int], Any] | None) -> np.ndarray:
    """(N, 6 + K) parameters of all volumes."""
    b0 = scan.gtab.b0
    first = int(np.flatnonzero(b0)[0])
    parameters = np.zeros((len(b0), scan.grid.warp.n_parameters))
    for done in range(rounds):
        aligned = resample_linear(scan.volumes, scan.grid.matrices(parameters))
        if done == 0:
            target = scan.volumes[first].expand(int(b0.sum()), *scan.volumes.shape[1:])
            parameters[b0] = _registered(scan, b0, target, parameters[b0], (0, 1), rigid=True)
            aligned[b0] = resample_linear(scan.volumes[b0], scan.grid.matrices(parameters[b0]))
        isotropic = done < rounds - 1
        predicted = _predicted(aligned, scan.turned(parameters), scan.variance, isotropic)[~b0]
        levels = (0, 1) if done == 0 else (1,)
        weights = _confidence(scan, aligned[~b0] - predicted) if done else None
        parameters[~b0] = _registered(scan, ~b0, predicted, parameters[~b0], levels, weights)
        parameters[~b0, N_RIGID:] = _induced(parameters[~b0, N_RIGID:], scan.gtab[~b0])
        parameters[~b0] = _registered(scan, ~b0, predicted, parameters[~b0], (1,), weights, True)
        parameters[~b0, :N_RIGID] += _common(scan, parameters)
        if progress:
            progress(done + 1, rounds)
    return _kept(scan, parameters)


def _predicted(
    volumes: Tensor, gtab: GradientTable, variance: float, isotropic: bool = False
) -> Tensor:
    """Each of ``volumes`` (N, …) as the others have it; b = 0: the mean of the others, if any.

    The map for S/S0 is affine, so times S0 it is linear in S and S0: nothing is ever divided by
    the S0 of a voxel without signal.
    """
    b0 = torch.as_tensor(gtab.b0, device=volumes.device)
    n_b0 = int(b0.sum())
    s0 = volumes[b0].mean(0)
    linear = _leave_one_out if isotropic else qspace.leave_one_out
    mapping = linear(gtab[~gtab.b0], variance, n_b0)
    matrix = torch.as_tensor(mapping.matrix).to(volumes)
    constant = torch.as_tensor(mapping.offset - mapping.matrix @ mapping.centre).to(volumes)
    predicted = torch.empty_like(volumes)
    weighted = torch.tensordot(matrix, volumes[~b0], dims=1)
    predicted[~b0] = weighted + torch.tensordot(constant[:, None], s0[None], dims=1)
    predicted[b0] = (n_b0 * s0 - volumes[b0]) / (n_b0 - 1) if n_b0 > 1 else volumes[b0]
    return predicted


def _leave_one_out(weighted: GradientTable, variance: float, n_b0: int) -> qspace.LinearMap:
    """`qspace.leave_one_out` for a prior whose anisotropy is noise: nothing follows direction."""
    mean, k = qspace.prior(weighted.bvals, weighted.bvals)
    anisotropy = np.diag(np.einsum('nnl->n', k[..., 1:]))
    noise = qspace.noise_covariance(len(weighted), n_b0, variance) + anisotropy
    inverse = np.linalg.inv(k[..., 0] + noise + 1e-8 * np.eye(len(weighted)))
    matrix = np.eye(len(weighted)) - inverse / np.diag(inverse)[:, None]
    return qspace.LinearMap(matrix, mean, mean, 1 / np.diag(inverse))


def _registered(
    scan: _Scan,
    members: NDArray[np.bool_],
    targets: Tensor,
    start: FloatArray,
    levels: tuple[int, ...],
    weights: Tensor | None = None,
    rigid: bool = False,
) -> np.ndarray:
    """Parameters of the volumes ``members``, each registered to its own of ``targets``."""
    for level in levels:
        targets_here = smooth(targets, scan.sigmas[level])
        match = Match(scan.grid, scan.levels[level][members], targets_here, weights)
        start = match.solve(start, rigid)
    return np.asarray(start)


def _confidence(scan: _Scan, difference: Tensor) -> Tensor:
    """(M,) weights of the voxels: less where predictions fail in all volumes alike.

    ``difference`` (N, X, Y, Z) from the prediction. Anisotropy where the prediction has none, eyes,
    flow and ghosts all look like that.
    """
    misfit = smooth(difference, scan.sigmas[-1]).square().mean(0)[scan.grid.at]
    return 1 / (1 + misfit / misfit.median())


def _common(scan: _Scan, parameters: FloatArray) -> np.ndarray:
    """(6,) displacement of the weighted volumes together against the b = 0 volumes."""
    b0 = scan.gtab.b0
    aligned = resample_linear(scan.volumes, scan.grid.matrices(parameters))
    measured = rigid_displacement(aligned[b0].mean(0), aligned[~b0].mean(0), scan.grid)
    head = parameters[:, :N_RIGID].copy()
    head[~b0, :3] -= _induced(head[~b0, :3], scan.gtab[~b0])
    steps = np.diff(head, axis=0)
    between = b0[1:] != b0[:-1]
    if not (~b0[1:] & ~b0[:-1]).any():
        return measured
    # From a b = 0 volume to its neighbour the head should not step: what it does step is an error.
    towards = np.where(b0[:-1], 1.0, -1.0)[between, None]
    continued = -(towards * steps[between]).mean(0)
    doubt = np.repeat([_DOUBT, _DOUBT / RADIUS], 3)
    walk = np.median(np.abs(steps[~b0[1:] & ~b0[:-1]]), axis=0) / 0.6745
    if (np.abs(measured - continued) > 3 * np.hypot(doubt, walk)).any():
        return measured
    share = doubt**2 / (doubt**2 + walk**2 / between.sum())
    return np.asarray(share * continued + (1 - share) * measured)


def _induced(stretch: FloatArray, weighted: GradientTable) -> np.ndarray:
    """``stretch`` (N, K) as far as it is linear in the gradient that induces the eddy currents.

    The field of a volume is linear in its gradient; what shape and contrast add to a single
    volume's estimate, and what all volumes share, is not. Few directions leave it near 0.
    """
    amplitude = np.sqrt(weighted.bvals / weighted.bvals.max())[:, None] * weighted.bvecs
    away = amplitude - amplitude.mean(0)
    slope = np.linalg.solve(away.T @ away + 0.3 * np.eye(3), away.T @ stretch)
    return np.asarray(amplitude @ slope)


def _kept(scan: _Scan, parameters: FloatArray) -> np.ndarray:
    """``parameters``, with those that do not bring their volume nearer to its prediction set to 0.

    Both are compared on smoothed images, or the smoothing of an interpolation would pass for gain.
    """
    aligned = resample_linear(scan.levels[-1], scan.grid.matrices(parameters))
    targets = _predicted(aligned, scan.turned(parameters), scan.variance)
    targets[scan.gtab.b0] = scan.levels[-1][scan.gtab.b0][0]
    match = Match(scan.grid, scan.levels[-1], targets)
    nearer = match.cost(parameters)[0] < match.cost(np.zeros_like(parameters))[0]
    return np.where(nearer[:, None], parameters, 0.0)
