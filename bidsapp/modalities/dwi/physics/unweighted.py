"""The signal at b = 0, also where the volumes that serve for it were weighted a little.

At b = 100 tissue has lost 8 % of its signal, fluid 26 %.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bidsapp.modalities.dwi.physics.gradients import UNWEIGHTED

if TYPE_CHECKING:
    from bidsapp.core import FloatArray
    from bidsapp.modalities.dwi.physics.gradients import GradientTable

#: mm²/s; no diffusivity in a head is greater than that of free water.
GREATEST = 3.0e-3


def signal_at_zero(
    signals: FloatArray, gtab: GradientTable, dtype: type[np.floating[Any]] | None = None
) -> np.ndarray:
    """S0 (…) of signals (…, N): the mean of the volumes that count as b = 0, led to b = 0.

    Nothing is led where their b is below 10 s/mm² in the mean. Each voxel's own diffusivity, from
    them and the mean of the lowest shell, says by how much; it is kept from 0 to that of water.
    ``dtype``: in which means are taken and returned, that of the signals if None.
    """
    s0 = np.asarray(signals[..., gtab.b0].mean(-1, dtype=dtype))
    low = float(gtab.bvals[gtab.b0].mean()) if gtab.b0.any() else 0.0
    groups = gtab.shells()
    if low < UNWEIGHTED or not groups:
        return s0
    b, members = groups[0]
    least = 1e-3 * max(float(np.median(s0)), 1e-12)
    ratio = np.maximum(s0, least) / np.maximum(signals[..., members].mean(-1), least)
    rate = np.clip(np.log(ratio) / (b - low), 0, GREATEST)
    return np.asarray(s0 * np.exp(low * rate), s0.dtype)
