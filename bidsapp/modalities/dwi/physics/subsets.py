"""Subsets of the volumes of a gradient table: halves, and well-spread directions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bidsapp.modalities.dwi.physics.acquisition import acquisition, determines_tensor
from bidsapp.problems import BadData

if TYPE_CHECKING:
    from bidsapp.modalities.dwi.physics.gradients import GradientTable


def well_spread(gtab: GradientTable, n: int) -> np.ndarray:
    """Indices of the b=0 volumes and of ``n`` weighted ones that are spread as they can be.

    Greedy: the next direction is the one farthest (up to sign) from those chosen, starting from
    the first of the largest shell; all of that shell before any other. Raises BadData if the
    table has fewer.
    """
    weighted = np.flatnonzero(~gtab.b0)
    if n > len(weighted):
        raise BadData(f'{n} input directions were asked for; the run has {len(weighted)}')
    by_size = sorted((members for _, members in gtab.shells()), key=len, reverse=True)
    chosen: list[int] = []
    for members in by_size:
        candidates = [int(i) for i in members]
        while candidates and len(chosen) < n:
            taken = gtab.bvecs[chosen] if chosen else gtab.bvecs[candidates[:1]]
            nearest = np.abs(gtab.bvecs[candidates] @ taken.T).max(1)
            chosen.append(candidates.pop(int(nearest.argmin()) if chosen else 0))
    return np.sort(np.concatenate([np.flatnonzero(gtab.b0), chosen]))


def halves(gtab: GradientTable) -> list[np.ndarray]:
    """Indices of two halves of the weighted volumes, each with all b=0; none if too few.

    Within a shell the volumes are dealt out in turn by a fixed shuffle, so both halves have every
    shell and spread over the sphere. A half that does not determine a tensor is no half.
    """
    rng = np.random.default_rng(0)
    dealt = np.concatenate([rng.permutation(members) for _, members in gtab.shells()])
    b0 = np.flatnonzero(gtab.b0)
    parts = [np.sort(np.concatenate([b0, dealt[start::2]])) for start in (0, 1)]
    enough = all(determines_tensor(acquisition(gtab[part])) for part in parts)
    return parts if enough else []
