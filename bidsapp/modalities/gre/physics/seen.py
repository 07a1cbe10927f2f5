"""What a network sees of a field: also what total variation makes of it, and what that leaves.

One operator A for total variation, the network and its last step: D for a local field, S D behind
the spherical-mean filter for a total one. Everything is worked out here once, on the whole grid: a
patch of a field is the field of sources that the patch does not hold.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from bidsapp.modalities.gre.physics import inversion, maps
from bidsapp.modalities.gre.physics.dipole import convolved

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from bidsapp.core import BoolArray, FloatArray

#: Channels: the field (behind the filter), the start x by total variation, what it leaves,
#: known · (f - A x), Tikhonov's map, all in ppm; where the field is known; weights.
CHANNELS = ('field', 'start', 'left', 'tikhonov', 'known', 'weights')
#: The spread of a start without any contrast, ppm.
LEAST_SCALE = 1e-3


def seen(
    field: FloatArray,
    noise: FloatArray,
    mask: BoolArray,
    voxel_mm: Sequence[float],
    b: Sequence[float],
    radius: float = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """(6, X, Y, Z) channels of a ``field`` in ppm that stands in ``mask``, and their context.

    The field is a local one, or with a ``radius`` of the filter in mm a total one. Context:
    ``voxel_mm`` (3,), ``b`` (3,), ``radius`` () in mm, and in ppm ``noise`` () of the field,
    ``doubt`` (), the same with what no χ explains, and ``scale`` (), the spread of
    the start.
    """
    frame = maps.Frame.of(np.ones_like(mask), np.diag([*map(float, voxel_mm), 1.0]))
    problem = maps.posed(field, noise, mask, frame, b, radius)
    solved = maps.total_variation(problem)
    x = solved.chi
    left = problem.known * (problem.field - convolved(x, problem.transfer))
    smooth = inversion.tikhonov(problem.field, problem.transfer, maps.TIKHONOV)
    channels = (problem.field, x, left, smooth, problem.known, problem.weights)
    image = torch.stack([frame.zeros.adjoint(one) for one in channels])
    context = {
        'voxel_mm': torch.tensor([float(edge) for edge in voxel_mm]),
        'b': torch.tensor([float(part) for part in b]),
        'radius': torch.tensor(float(radius)),
        'noise': torch.tensor(problem.typical),
        'doubt': torch.tensor(solved.doubt),
        'scale': torch.tensor(max(maps.spread(x, frame.into(mask)), LEAST_SCALE)),
    }
    return image.float().contiguous(), context
