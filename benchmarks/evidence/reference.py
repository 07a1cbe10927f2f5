"""How far the directions of a reference err themselves: what a perfect answer would score.

No scan here was repeated, so its repeats are drawn: a wild bootstrap of the reference's tensor (Liu
1988; for diffusion Whitcher et al., Hum Brain Mapp 2008). What the fit leaves of ln S in each
volume, divided by √(1 - h) for what the fit has taken of it (h its leverage), gets a random sign
and is put back; the angle between the axis of that and of the fit errs as the fit does from the
truth. Halves of the reference would need twelve directions and more, and two conditions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scores import degrees

from bidsapp.modalities.dwi.physics.diffusion import SIGNAL_FLOOR, fit_tensor, tensor_volumes
from bidsapp.modalities.dwi.physics.gradients import tensor_design

if TYPE_CHECKING:
    from realscans import Scan

    from bidsapp.modalities.dwi.physics.gradients import GradientTable

#: Leverage above which a volume is fitted by itself alone and tells nothing.
DETERMINED = 0.999
#: Unknowns of a tensor, and the fewest volumes beyond them that tell how well it fits.
UNKNOWN, SPARE = 7, 2


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """Of (V, N) the weighted least squares of ln S/S0, as `fit_tensor` has it."""

    table: GradientTable  #: of the volumes that a tensor is fitted to
    fitted: np.ndarray  #: ln S/S0
    left: np.ndarray  #: what was observed less that
    weights: np.ndarray
    leverage: np.ndarray
    s0: np.ndarray  #: (V, 1)

    @property
    def spare(self) -> int:
        """Degrees of freedom that are left."""
        return len(self.table) - UNKNOWN


def fit(scan: Scan, where: np.ndarray) -> Fit:
    """In the voxels ``where``."""
    use = tensor_volumes(scan.gtab)
    table, signal = scan.gtab[use], scan.data[where][:, use].astype(float)
    s0 = np.maximum(signal[:, table.b0].mean(1, keepdims=True), 1e-12)
    observed = np.log(np.maximum(signal / s0, SIGNAL_FLOOR))
    design = tensor_design(table)
    first = observed @ np.linalg.pinv(design).T
    weights = np.exp(np.clip(2 * first @ design.T, -14, 2))
    inverse = np.linalg.inv(np.einsum('vn,ni,nj->vij', weights, design, design, optimize=True))
    fitted = np.einsum('vij,vj->vi', inverse, (weights * observed) @ design) @ design.T
    leverage = weights * np.einsum('ni,vij,nj->vn', design, inverse, design, optimize=True)
    return Fit(table, fitted, observed - fitted, weights, leverage, s0)


def own_error(scan: Scan, where: np.ndarray, seed: int = 0) -> np.ndarray:
    """(V,) degrees in ``where`` by which the tensor's axis errs, one draw a voxel; NaN: untold."""
    one = fit(scan, where)
    if one.spare < SPARE:
        return np.full(len(one.left), np.nan)
    left = one.left / np.sqrt(np.maximum(1 - one.leverage, 1 - DETERMINED))
    again = one.fitted + left * np.random.default_rng(seed).choice([-1.0, 1.0], left.shape)
    each = (fit_tensor(np.exp(s).T, one.table).direction for s in (one.fitted, again))
    return degrees(*each)


def noise(scan: Scan, where: np.ndarray) -> float:
    """Root mean square in ``where`` of a volume's noise, in the unit of the signal.

    What the tensor leaves of the volumes, by its degrees of freedom: noise, pulsation, and what is
    no tensor; no less than the noise but by chance. NaN where too few volumes tell.
    """
    one = fit(scan, where)
    if one.spare < SPARE:
        return float('nan')
    square = np.square(one.s0 * one.left) * one.weights
    return float(np.sqrt(square.sum(1).mean() / one.spare))
