"""How far the main axis of a tensor of restored volumes lies from the truth, voxel by voxel.

Noise tilts the axis e₁ towards e_j by (e_jᵀ δD e₁)/(λ₁ - λ_j) to first order (Jeong and Anderson,
Magn Reson Med 2008, the elliptic cone of uncertainty), δD being linear in the noise of ln S.
How much of the data's noise is left in volumes that lie between data and prediction is told by what
was taken off: an estimate whose error goes with nothing that it left out, as a posterior mean or
James and Stein's, has error variance = noise variance - variance of what it left out; one that
left out more than noise errs by what is too much. Both are taken in the direction of the tilt,
which is where they count, over the 125 voxels around.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bidsapp.modalities.dwi.physics.diffusion import tensor_volumes
from bidsapp.modalities.dwi.physics.gradients import tensor_design

if TYPE_CHECKING:
    from bidsapp.core import BoolArray, FloatArray
    from bidsapp.modalities.dwi.physics.diffusion import TensorMaps
    from bidsapp.modalities.dwi.physics.gradients import GradientTable

#: A root mean square angle of two equal, normal tilts, so many times: within that lie 68 and 95 %.
WITHIN_68, WITHIN_95 = 1.071, 1.731
#: Voxels along the cube over which what was left out is averaged: of 27 voxels it is so uncertain
#: that 95 % intervals held 91 %.
WIDE = 5
#: Share of the noise's variance that stays in an axis at least, for what neighbours do not tell.
LEAST_SHARE = 0.1
#: In units of the noise, sums of squares of the five numbers that vanish where diffusion is
#: isotropic (noise makes 5 of them) and of the two that vanish where the first two axes are alike
#: (2): means over 27 voxels, up to which they are not believed at all, and from which wholly.
_ISOTROPIC, _ALIKE = (5.7, 7.5), (2.4, 3.4)
#: κ from which the first order is exact to 0.1 %.
_FAR = 30.0
#: Voxels done together; bounds the memory for weights.
_CHUNK = 50_000


@dataclass(frozen=True, slots=True, eq=False)
class Tilts:
    """Of V voxels, what noise does to e_jᵀ D e₁ for the two lesser axes, in µm²/ms."""

    variances: FloatArray  #: (V, 2) by the noise of the data
    left: FloatArray  #: (V, 2) by what was taken off the data
    gaps: FloatArray  #: (V, 2) λ₁ - λ_j
    misfit: FloatArray  #: (V,) mean square that the tensor leaves of the data, over the noise's


def axis_error(
    tensor: TensorMaps,
    restored: FloatArray,
    left: FloatArray,
    s0: FloatArray,
    gtab: GradientTable,
    inside: BoolArray,
    deviation: float,
) -> np.ndarray:
    """(V,) expected sin² of the angle between the main axis and the truth; 2/3: not known.

    ``tensor`` (V) is fitted to volumes ``restored`` (N, V), which the data exceed by ``left``
    (N, V); the data have noise of standard ``deviation`` in the unit of ``s0`` (V,); ``inside``
    (X, Y, Z) are the V voxels. What the tensor leaves of the data, if it
    is more than noise, counts as noise. Where an axis does not stand out of the noise of the 27
    voxels around, nothing is known of it: 1/2 where the first two are alike, 2/3 where all are.
    """
    own = tilts(tensor, restored, left, s0, gtab, deviation)
    known = own.variances.min(1) > 0
    variances = np.where(known[:, None], own.variances, 1)
    weighted = int((tensor_volumes(gtab) & ~gtab.b0).sum())
    certain = 1 - 2 * np.sqrt(2 / (WIDE**3 * weighted))  # of a mean of so many squares
    variances *= np.maximum(1, certain * _near(own.misfit, known, inside, WIDE))[:, None]
    taken = _near((np.square(own.left) / variances).mean(1), known, inside, WIDE)
    variances *= np.maximum(LEAST_SHARE, np.abs(1 - taken))[:, None]
    kappa = own.gaps / (2 * np.sqrt(variances))
    values = tensor.evals * 1e3
    anisotropy = np.square(values - values.mean(1, keepdims=True)).sum(1) / 2 / variances.mean(1)
    some = _ramp(_near(anisotropy, known, inside), *_ISOTROPIC)
    first = _ramp(_near(np.square(kappa[:, 0]), known, inside), *_ALIKE)
    kappa *= np.stack([some * first, some], 1)
    return np.where(known, sine_square(kappa), 2 / 3)


def sine_square(kappa: FloatArray) -> np.ndarray:
    """(V,) mean sin² of the angle from an axis, from κ (V, 2) = (λ₁ - λ_j)/2σ in both its planes.

    In a plane twice the angle is that of a normal vector of length κ ± 1, whose mean cosine is
    known; the odds of both planes add up. 1/4κ² each where κ is large, 2/3 where both are 0.
    """
    from scipy.special import ive

    quarter = np.square(np.minimum(kappa, _FAR)) / 4
    cosine = np.sqrt(np.pi / 2 * quarter) * (ive(0, quarter) + ive(1, quarter))
    square = np.where(kappa < _FAR, (1 - cosine) / 2, 0.25 / np.square(np.maximum(kappa, _FAR)))
    odds = (square / (1 - square)).sum(1)
    return np.asarray(odds / (1 + odds))


def tilts(
    tensor: TensorMaps,
    restored: FloatArray,
    left: FloatArray,
    s0: FloatArray,
    gtab: GradientTable,
    deviation: float,
) -> Tilts:
    """Of ``tensor`` (V), as `axis_error` has it all; zero where none was fitted.

    The weighted fit is linear in the noise n of the volumes: δθ = (XᵀS²X)⁻¹ XᵀS n, with S what the
    tensor says. What it leaves is taken about its mean over the weighted volumes, since those and
    b = 0 need not agree on S₀.
    """
    import torch

    use = tensor_volumes(gtab)
    design = tensor_design(gtab[use])
    columns = torch.from_numpy(design)
    products = (columns[:, :, None] * columns[:, None, :]).flatten(1)
    fitted = np.flatnonzero((tensor.evals[:, 0] > 0) & (s0 > 0))
    weighted = ~gtab.b0[use]
    pairs = np.zeros((3, len(s0), 2))
    found = Tilts(pairs[0], pairs[1], pairs[2], np.zeros(len(s0)))
    for at in np.array_split(fitted, max(1, -(-len(fitted) // _CHUNK))):
        vectors = tensor.evecs[at]
        unknowns = np.einsum('vij,vj,vkj->vik', vectors, tensor.evals[at] * 1e3, vectors)
        exponent = _six(unknowns) @ design[:, :6].T
        signal = torch.from_numpy(s0[at].astype(float)[:, None] * np.exp(exponent))
        normal = (signal.square() @ products).view(-1, design.shape[1], design.shape[1])
        pair = np.stack([_between(vectors[..., 0], vectors[..., j]) for j in (1, 2)], axis=2)
        solved = torch.linalg.solve(normal, torch.from_numpy(pair))
        rows = signal[:, :, None] * (columns @ solved)
        off = torch.from_numpy(left[use][:, at].T.astype(float))
        found.variances[at] = deviation**2 * rows.square().sum(1).numpy()
        found.left[at] = (rows * off[:, :, None]).sum(1).numpy()
        data = torch.from_numpy(restored[use][:, at].T.astype(float)) + off
        misfit = (data - signal)[:, weighted].var(1, correction=0) / deviation**2
        found.misfit[at] = misfit.numpy()
        found.gaps[at] = 1e3 * (tensor.evals[at, :1] - tensor.evals[at, 1:])
    return found


def _six(matrices: FloatArray) -> np.ndarray:
    """Symmetric (V, 3, 3) → (V, 6) in the order of `tensor_design`."""
    rows, columns = (0, 1, 2, 0, 0, 1), (0, 1, 2, 1, 2, 2)
    return np.asarray(matrices[:, rows, columns])


def _between(one: FloatArray, other: FloatArray) -> np.ndarray:
    """(V, 7) what takes the unknowns of `tensor_design` to oneᵀ D other; (V, 3) each."""
    product = one[:, :, None] * other[:, None, :]
    product = product + product.swapaxes(1, 2)
    six = _six(product)
    six[:, :3] /= 2
    return np.concatenate([six, np.zeros((len(six), 1))], axis=1)


def _near(values: FloatArray, known: BoolArray, inside: BoolArray, side: int = 3) -> np.ndarray:
    """(V,) means over a cube around, ``side`` voxels long, of what is ``known`` (V,)."""
    from scipy.ndimage import uniform_filter

    sums = []
    for part in (np.where(known, values, 0), known):
        volume = np.zeros(inside.shape, np.float64)
        volume[inside] = part
        sums.append(uniform_filter(volume, side, mode='constant')[inside])
    return np.asarray(sums[0] / np.maximum(sums[1], 1e-9))


def _ramp(values: FloatArray, low: float, high: float) -> np.ndarray:
    """0 below ``low``, 1 above ``high``."""
    return np.clip((values - low) / (high - low), 0, 1)
