"""Where the head was in each volume: each registered to its expectation.

What a volume should look like is predicted from the others (`lovo`), so that each is
compared with its like, whatever its b-value. All rounds but the last ignore direction: a
displacement that varies smoothly with the gradient, as that of eddy currents does, would pass for
anisotropy and be predicted together with it; the mean over directions has no such blind spot.
Anisotropy then disturbs instead, so voxels where predictions keep failing count less, and the
eddy currents of all volumes are tied to their gradients by one linear law.

The predictions know nothing of a displacement that all weighted volumes share. After each round
the mean weighted image is therefore registered to the b = 0 image by mutual information. That errs
by some tenths of a millimetre, so it is weighed against what the head's path says: from a b = 0
volume to its neighbour it should step no further than between others. The first b = 0 volume never
moves: it defines the space.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bidsapp.modalities.dwi.physics.gradients import GradientTable, rotated
from bidsapp.modalities.dwi.physics.lovo import noise, predicted, residual
from bidsapp.physics.geometry import voxel_sizes
from bidsapp.physics.mutual_information import rigid_displacement
from bidsapp.physics.resampling import (
    N_RIGID,
    Match,
    SamplingGrid,
    Warp,
    resample_linear,
    smooth,
    stretches,
)
from bidsapp.problems import BadData

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from bidsapp.core import FloatArray

#: Gaussian widths of the levels, in voxels (geometric mean edge), coarse and fine.
_COARSE, _FINE = 2.0, 1.0
#: Brain voxels compared at each level; more than these add time but hardly precision.
_MAX_POINTS = 40_000
#: mm around the mask that are compared too: the edge of the brain says most about its position.
_RIM = 6.0
#: mm under the surface of the mask where the inner brain begins.
_DEEP = 5.0
#: mm of image around those that are kept at hand.
_MARGIN = 12.0
#: mm and rad along each axis: least error of a registration across contrasts. On two real heads
#: b=0 and T1w each put the weighted volumes 1 to 2 mm off, to opposite sides. Only where it
#: differs from the head's path by three times the second is it believed alone.
_DOUBT, _GRAVE_DOUBT = (0.6, 0.004), (0.6, 0.012)
#: Points that the inner brain must have to be registered by itself.
_FEW = 1000
#: Lower bound of the noise variance of S/S0: misfit of the prior at any SNR.
_NOISE_FLOOR = 1e-3


@dataclass(frozen=True, slots=True, eq=False)
class CroppedRun:
    """A cropped run: its part around the brain, and what does not change in registration."""

    volumes: Tensor  #: (N, X, Y, Z), in units of the mean b = 0 signal in the brain
    smoothed: Tensor  #: the same at the fine level
    sigmas: tuple[FloatArray, FloatArray]  #: (3,) voxels, coarse and fine
    mask: Tensor  #: (X, Y, Z) bool
    grid: SamplingGrid  #: of the cropped images
    inner: Tensor  #: which voxels of ``grid`` lie deep in the brain
    box: tuple[slice, ...]  #: where the images lie in the run
    scale: float  #: signal of the run that is 1 here
    gtab: GradientTable  #: world axes, as it was played out
    variance: float  #: of the noise of S/S0

    def turned(self, parameters: FloatArray) -> GradientTable:
        """The table in the frame of the head: Rᵀ g."""
        return rotated(self.gtab, np.swapaxes(self.grid.warp.rotations(parameters), 1, 2))

    def residual(self, parameters: FloatArray) -> np.ndarray:
        """(N,) `lovo.residual` in the brain, aligned by ``parameters`` (N, 6 + K).

        Of smoothed images: there the smoothing by an interpolation does not pass for agreement.
        """
        aligned = resample_linear(self.smoothed, self.grid.matrices(parameters))
        return residual(aligned[:, self.mask], self.turned(parameters), self.variance)


def prepare(
    data: FloatArray,
    affine: FloatArray,
    gtab: GradientTable,
    mask: NDArray[np.bool_],
    phase_encoding: str | None,
    device: str,
) -> CroppedRun:
    """Crop, scale and smooth a run (X, Y, Z, N), and choose the voxels to compare."""
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
    scale = max(float(data[mask][:, gtab.b0].mean()), 1e-12)
    volumes = np.array(np.moveaxis(data[box], -1, 0), np.float32, order='C')
    volumes /= scale
    tensor = torch.as_tensor(volumes, device=device)
    chosen = _spread(np.argwhere(near[box]))
    deep = ndimage.distance_transform_edt(mask[box], sampling=edges) > _DEEP
    width = np.cbrt(edges.prod()) / edges
    return CroppedRun(
        volumes=tensor,
        smoothed=smooth(tensor, _FINE * width),
        sigmas=(_COARSE * width, _FINE * width),
        mask=torch.as_tensor(np.ascontiguousarray(mask[box]), device=device),
        grid=SamplingGrid(
            cropped,
            torch.as_tensor(chosen, device=device).to(tensor),
            Warp(brain, stretches(affine, phase_encoding)),
        ),
        inner=torch.as_tensor(deep[tuple(chosen.T)], device=device),
        box=box,
        scale=scale,
        gtab=gtab,
        variance=max(noise(volumes, mask[box], gtab), _NOISE_FLOOR),
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


def estimate(
    scan: CroppedRun, rounds: int, progress: Callable[[int, int], Any] | None = None
) -> np.ndarray:
    """(N, 6 + K) parameters of all volumes, from rest."""
    parameters = np.zeros((len(scan.gtab), scan.grid.warp.n_parameters))
    parameters = _b0_to_first(scan, parameters, coarse=True)
    for done in range(rounds):
        isotropic = done < rounds - 1
        parameters = _round(scan, parameters, isotropic, coarse=done == 0, weighted=done > 0)
        if progress:
            progress(done + 1, rounds)
    return _kept(scan, parameters)


def refined(scan: CroppedRun, parameters: FloatArray) -> np.ndarray:
    """(N, 6 + K) ``parameters`` after one more round."""
    parameters = _b0_to_first(scan, np.array(parameters), coarse=False)
    return _kept(scan, _round(scan, parameters, isotropic=False, coarse=False, weighted=True))


def _b0_to_first(scan: CroppedRun, parameters: np.ndarray, coarse: bool) -> np.ndarray:
    """``parameters`` (N, 6 + K) with the b = 0 volumes registered to the first of them."""
    b0 = scan.gtab.b0
    target = scan.volumes[b0][:1].expand(int(b0.sum()), *scan.volumes.shape[1:])
    for sigma in scan.sigmas if coarse else scan.sigmas[1:]:
        moving = smooth(scan.volumes[b0], sigma)
        parameters[b0] = Match(scan.grid, moving, smooth(target, sigma)).solve(parameters[b0], True)
    return parameters


def _round(
    scan: CroppedRun, parameters: np.ndarray, isotropic: bool, coarse: bool, weighted: bool
) -> np.ndarray:
    """``parameters`` (N, 6 + K) with the weighted volumes registered to their predictions.

    ``coarse`` begins at the coarse level; ``weighted`` trusts voxels by `_confidence`.
    """
    b0 = scan.gtab.b0
    aligned = resample_linear(scan.volumes, scan.grid.matrices(parameters))
    targets = predicted(aligned, scan.turned(parameters), scan.variance, isotropic)[~b0]
    weights = _confidence(scan, aligned[~b0].sub_(targets)) if weighted else None
    del aligned
    own = parameters[~b0]
    if coarse:
        moving = smooth(scan.volumes[~b0], scan.sigmas[0])
        own = Match(scan.grid, moving, smooth(targets, scan.sigmas[0]), weights).solve(own)
        del moving
    targets = smooth(targets, scan.sigmas[1])
    match = Match(scan.grid, scan.smoothed[~b0], targets, weights)
    del targets
    own = match.solve(own)
    own[:, N_RIGID:] = induced(own[:, N_RIGID:], scan.gtab[~b0])
    parameters[~b0] = match.solve(own, rigid=True)
    parameters[~b0, :N_RIGID] += _common(scan, parameters)
    return parameters


def _confidence(scan: CroppedRun, difference: Tensor) -> Tensor:
    """(M,) weights of the voxels: less where predictions fail in all volumes alike.

    ``difference`` (N, X, Y, Z) from the prediction. Anisotropy where the prediction has none, eyes,
    flow and ghosts all look like that.
    """
    misfit = smooth(difference, scan.sigmas[1]).square().mean(0)[scan.grid.at]
    return 1 / (1 + misfit / misfit.median())


def _common(scan: CroppedRun, parameters: FloatArray) -> np.ndarray:
    """(6,) displacement of the weighted volumes together against the b = 0 volumes."""
    b0 = scan.gtab.b0
    matrices = scan.grid.matrices(parameters)
    still = resample_linear(scan.volumes[b0], matrices[b0]).mean(0)
    moving = resample_linear(scan.volumes[~b0], matrices[~b0]).mean(0)
    measured, doubt = _measured(scan, still, moving)
    head = parameters[:, :N_RIGID].copy()
    head[~b0, :3] -= induced(head[~b0, :3], scan.gtab[~b0])
    steps = np.diff(head, axis=0)
    between = b0[1:] != b0[:-1]
    if not (~b0[1:] & ~b0[:-1]).any():
        return measured
    # From a b = 0 volume to its neighbour the head should not step: what it does step is an error.
    towards = np.where(b0[:-1], 1.0, -1.0)[between, None]
    continued = -(towards * steps[between]).mean(0)
    grave = np.repeat(_GRAVE_DOUBT, 3)
    walk = np.median(np.abs(steps[~b0[1:] & ~b0[:-1]]), axis=0) / 0.6745
    if (np.abs(measured - continued) > 3 * np.hypot(grave, walk)).any():
        return measured
    # If volumes scattered independently, a step would vary twice as much as each of its two ends.
    scatter = walk**2 / 2 * (1 / b0.sum() + 1 / between.sum())
    share = doubt**2 / (doubt**2 + scatter)
    return np.asarray(share * continued + (1 - share) * measured)


def _measured(scan: CroppedRun, still: Tensor, moving: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """(6,) displacement from one image to the other by mutual information, and (6,) its error."""
    least = np.repeat(_DOUBT, 3)
    whole = rigid_displacement(still, moving, scan.grid)
    if int(scan.inner.sum()) < _FEW:
        return whole, least
    part = replace(scan.grid, voxels=scan.grid.voxels[scan.inner])
    inner = rigid_displacement(still, moving, part)
    return (whole + inner) / 2, np.hypot(least, (whole - inner) / 2)


def induced(stretch: FloatArray, weighted: GradientTable) -> np.ndarray:
    """``stretch`` (N, K) as far as it is linear in the gradient that induces the eddy currents.

    The field of a volume is linear in its gradient; what shape and contrast add to a single
    volume's estimate, and what all volumes share, is not. Few directions leave it near 0.
    """
    amplitude = np.sqrt(weighted.bvals / weighted.bvals.max())[:, None] * weighted.bvecs
    away = amplitude - amplitude.mean(0)
    slope = np.linalg.solve(away.T @ away + 0.3 * np.eye(3), away.T @ stretch)
    return np.asarray(amplitude @ slope)


def _kept(scan: CroppedRun, parameters: FloatArray) -> np.ndarray:
    """``parameters``, with those that do not bring their volume nearer to its prediction set to 0.

    Both are compared on smoothed images, or the smoothing of an interpolation would pass for gain.
    """
    aligned = resample_linear(scan.smoothed, scan.grid.matrices(parameters))
    targets = predicted(aligned, scan.turned(parameters), scan.variance)
    targets[scan.gtab.b0] = scan.smoothed[scan.gtab.b0][0]
    match = Match(scan.grid, scan.smoothed, targets)
    nearer = match.cost(parameters)[0] < match.cost(np.zeros_like(parameters))[0]
    return np.where(nearer[:, None], parameters, 0.0)
