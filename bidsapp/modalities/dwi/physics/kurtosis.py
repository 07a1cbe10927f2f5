"""Diffusion kurtosis: how far the signal is from that of one Gaussian, many voxels at once.

    ln S(b, n) = ln S0 - b D(n) + b² V(n) / 6,    K(n) = V(n) / D(n)²  (Jensen et al., MRM 2005)

with a tensor D of 6 and one V of 15 numbers, whose design matrix and whose means K over all
directions (MK), along (AK) and across (RK) the main axis are DIPY's (`dipy.reconst.dki`).

DIPY fits voxel after voxel, and its constrained fit needs a solver that this app does not have. So
the fit is ours, of all voxels of a chunk together: weighted least squares of ln S, with the bounds
0 <= K(n) <= 3 / (b D(n)), b the greatest in use, that no signal breaks that falls with b (Tabesh
et al., MRM 2011). Both are linear in D and V. What breaks them is penalised by its square, and the
penalised sum is minimised by Newton steps, each a change of which bounds count. A voxel that still
breaks them takes MK from the means of the shells (`dipy.reconst.msdki`; Neto Henriques et al.,
2018), which say nothing of directions: AK and RK then stay 0, unknown.

The floor of noise is not corrected for: at high b and low signal kurtosis is overestimated.
Within this module b is in ms/µm² (1 = 1000 s/mm²).
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from bidsapp.modalities.dwi.physics.diffusion import SIGNAL_FLOOR
from bidsapp.modalities.dwi.physics.harmonics import fibonacci_hemisphere
from bidsapp.physics.eigen import eigh
from bidsapp.problems import Unavailable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bidsapp.core import BoolArray, FloatArray
    from bidsapp.modalities.dwi.physics.acquisition import Acquisition
    from bidsapp.modalities.dwi.physics.gradients import GradientTable

#: The range to which DIPY clips kurtosis: the least is that of water confined to spherical pores.
LEAST, MOST = -3 / 7, 10.0
#: s/mm²; shells count from the lowest to the highest b, beyond which b² no longer suffices.
MIN_B, MAX_B = 500.0, 3100.0
#: The highest shell must have this many times the b of the lowest that counts.
CONTRAST = 1.5
#: Directions of one shell that tell the 15 numbers of V, and of another that tell the 6 of D.
FOR_KURTOSIS, FOR_TENSOR = 15, 6

#: Unknowns: 6 of D, 15 of V, ln S0.
_D, _V, _N = slice(0, 6), slice(6, 21), 22
#: Directions, up to sign, in which the bounds hold; steps; what a broken bound weighs beside data.
_DIRECTIONS, _STEPS, _STRENGTH = 60, 30, 100.0
#: Of ln S at the greatest b: what is no breach, and what is one that the steps have left.
_TOLERANCE, _BROKEN = 1e-9, 0.02
#: µm²/ms; what diffuses less than this is not told from what does not.
_LEAST_DIFFUSIVITY = 0.01
#: Voxels solved together.
_CHUNK = 5000


@dataclass(frozen=True, slots=True, eq=False)
class Kurtosis:
    """Maps on a grid, without unit, from LEAST to MOST; 0 where a value is not known."""

    mk: FloatArray  #: (X, Y, Z) float32, mean over all directions
    ak: FloatArray  #: (X, Y, Z) float32, along the main axis of the tensor
    rk: FloatArray  #: (X, Y, Z) float32, mean across it


def usable_shells(facts: Acquisition) -> list[tuple[float, int]]:
    """(b, directions) of the shells that tell something of kurtosis, b ascending."""
    return [(b, n) for b, n in facts.shells if MIN_B <= b <= MAX_B and n >= FOR_TENSOR]


def supports_kurtosis(facts: Acquisition) -> str | None:
    """Why an acquisition cannot yield kurtosis; None if it can."""
    shells = usable_shells(facts)
    most = max((n for _, n in shells), default=0)
    if most >= FOR_KURTOSIS and shells[-1][0] >= CONTRAST * shells[0][0]:
        return None
    listing = ', '.join(f'{n} directions at b = {b:.0f}' for b, n in facts.shells) or 'nothing'
    return (
        f'kurtosis needs two shells with b from {MIN_B:.0f} to {MAX_B:.0f} s/mm², the higher at '
        f'least {CONTRAST:g} times the lower, one with {FOR_KURTOSIS} directions and the other '
        f'with {FOR_TENSOR}; found {listing}'
    )


def fit_kurtosis(data: FloatArray, gtab: GradientTable, mask: BoolArray) -> Kurtosis:
    """Kurtosis in ``mask`` (X, Y, Z) from signals (X, Y, Z, N) of any unit, up to b = MAX_B.

    The axes of ``gtab`` do not matter. Weights are the squared signal that an unweighted fit
    predicts (Veraart et al., NeuroImage 2013). Voxels whose signal is not finite or whose S0 is not
    positive stay 0. Raises Unavailable where the volumes do not determine 22 unknowns.
    """
    use = (gtab.bvals <= MAX_B) & (gtab.b0 | gtab.bvecs.any(1))
    table, signals = gtab[use], data if use.all() else data[..., use]
    design = _design(table.bvecs, table.bvals)
    if np.linalg.matrix_rank(design) < _N:
        raise Unavailable(f'{len(table)} volumes up to b={MAX_B:.0f} do not determine kurtosis')
    bounds = _bounds(float(table.bvals.max()))
    s0 = signals[..., table.b0].mean(-1) if table.b0.any() else signals.max(-1)
    inside = np.asarray(mask, bool) & np.isfinite(signals).all(-1) & (s0 > 0)
    maps = np.zeros((*inside.shape, 3), np.float32)
    voxels = np.flatnonzero(inside)
    for first in range(0, len(voxels), _CHUNK):
        at = np.unravel_index(voxels[first : first + _CHUNK], inside.shape)
        relative = np.maximum(signals[at] / s0[at][:, None], SIGNAL_FLOOR)
        unknowns = _fit(torch.from_numpy(np.log(relative)).double(), design, bounds)
        kept = _plausible(unknowns, bounds)
        values = np.zeros((len(kept), 3))
        values[kept] = _means(unknowns[kept])
        values[~kept, 0] = _of_means(relative[~kept], table)
        maps[at] = values
    return Kurtosis(*np.moveaxis(maps, -1, 0))


def _design(bvecs: FloatArray, bvals: FloatArray) -> np.ndarray:
    """(N, 22) DIPY's rows of ln S for directions (N, 3) and b in s/mm², by ms/µm²."""
    from dipy.reconst.utils import dki_design_matrix

    table = SimpleNamespace(bvals=bvals * 1e-3, bvecs=bvecs)  # all that it reads of one
    return np.asarray(dki_design_matrix(table))


def _bounds(b: float) -> Tensor:
    """(2M, 22) rows that no unknowns shall make negative: b²V/6, and bD/2 - b²V/6."""
    rows = torch.from_numpy(_design(fibonacci_hemisphere(_DIRECTIONS), np.full(_DIRECTIONS, b)))
    lower, upper = torch.zeros_like(rows), torch.zeros_like(rows)
    lower[:, _V], upper[:, _V] = rows[:, _V], -rows[:, _V]
    upper[:, _D] = -rows[:, _D] / 2  # the design holds -bD
    return torch.cat([lower, upper])


def _fit(observed: Tensor, design: np.ndarray, bounds: Tensor) -> Tensor:
    """(V, 22) unknowns of ln S (V, N)."""
    rows = torch.from_numpy(design)
    first = observed @ torch.linalg.pinv(rows).T
    weights = (2 * first @ rows.T).clamp(-14, 2).exp()
    normal = (weights @ _squares(rows)).view(-1, _N, _N)
    right = (weights * observed) @ rows
    found = torch.linalg.solve(normal, right)
    strength = _STRENGTH * weights.mean(1)
    squares, broken = _squares(bounds), torch.zeros(len(found), len(bounds), dtype=torch.bool)
    at = torch.arange(len(found))
    for _ in range(_STEPS):
        now = found[at] @ bounds.T < -_TOLERANCE
        at, now = (part[(now != broken[at]).any(1)] for part in (at, now))
        if not len(at):
            break
        broken[at] = now
        penalty = (now.double() @ squares).view(-1, _N, _N) * strength[at, None, None]
        found[at] = torch.linalg.solve(normal[at] + penalty, right[at])
    return found


def _squares(rows: Tensor) -> Tensor:
    """(N, 22) → (N, 22²) the outer product of each row with itself."""
    return (rows[:, :, None] * rows[:, None, :]).flatten(1)


def _plausible(unknowns: Tensor, bounds: Tensor) -> NDArray[np.bool_]:
    """(V,) where unknowns (V, 22) are finite and within the bounds."""
    within = (unknowns @ bounds.T >= -_BROKEN).all(1)
    return np.asarray(within & unknowns.isfinite().all(1))


def _means(unknowns: Tensor) -> np.ndarray:
    """(V, 3) MK, AK, RK of unknowns (V, 22)."""
    from dipy.reconst.dki import axial_kurtosis, mean_kurtosis, radial_kurtosis

    xx, xy, yy, xz, yz, zz = unknowns[:, _D].T
    values, vectors = eigh(torch.stack([xx, xy, xz, xy, yy, yz, xz, yz, zz], 1).view(-1, 3, 3))
    values, vectors = values.flip(-1).clamp(min=_LEAST_DIFFUSIVITY), vectors.flip(-1)
    tensor = unknowns[:, _V] / values.mean(1, keepdim=True).square()
    # DIPY tells no diffusion from some by a limit in mm²/s.
    parameters = torch.cat([values * 1e-3, vectors.flatten(1), tensor], 1).numpy()
    limits = {'min_kurtosis': LEAST, 'max_kurtosis': MOST}
    kinds = (mean_kurtosis, axial_kurtosis, radial_kurtosis)
    return np.stack([kind(parameters, **limits) for kind in kinds], 1)


def _of_means(signals: FloatArray, table: GradientTable) -> np.ndarray:
    """(V,) kurtosis of the shells' mean signals, of S/S0 (V, N)."""
    if not len(signals):
        return np.zeros(0)
    from dipy.core.gradients import gradient_table
    from dipy.reconst.msdki import MeanDiffusionKurtosisModel

    levels = table.bvals.copy()
    levels[table.b0] = 0
    for b, at in table.shells():
        levels[at] = b
    given = gradient_table(levels, bvecs=table.bvecs * (levels > 0)[:, None])
    found = MeanDiffusionKurtosisModel(given).fit(signals).msk
    return np.asarray(np.clip(np.nan_to_num(found), LEAST, MOST))
