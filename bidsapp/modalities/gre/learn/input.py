"""What a network sees of a prepared gradient-echo run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bidsapp.bids.images import crop_to, to_ras
from bidsapp.core import Case, Sample
from bidsapp.modalities.gre.bids.prepared import load_fields
from bidsapp.physics.geometry import voxel_sizes
from bidsapp.problems import BadData

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from torch import Tensor

    from bidsapp.core import Turn
    from bidsapp.learn.inputs import Part


def sample_of(case: Case, part: Part) -> Sample:
    """The channels of `physics.seen`, in one step from the total field where that is there too.

    The grid's axes are turned to the nearest RAS and cropped to the mask. Raises MissingInput where
    the sidecar does not say what the field was made with, BadData for an empty mask.
    """
    import torch

    from bidsapp.modalities.gre.physics.background import SINGLE
    from bidsapp.modalities.gre.physics.seen import seen

    fields = load_fields(case)
    field, mask, reach = fields.total, fields.mask, SINGLE
    if field is None:
        field, mask, reach = fields.local, fields.known, 0.0
    if not mask.any():
        raise BadData(f'{case.files["mask"]}: there is no voxel in it whose field is known')
    arrays = [to_ras(array, fields.affine) for array in (field, fields.noise, mask)]
    affine = arrays[0][1]
    box = crop_to(arrays[2][0])
    corner = np.block([[np.eye(3), np.array([[s.start] for s in box])], [0, 0, 0, 1]])
    field, noise, mask = (np.ascontiguousarray(array[box]) for array, _ in arrays)
    b = _turned_direction(fields.direction, fields.affine, affine)
    channels, context = seen(field, noise, mask, voxel_sizes(affine).tolist(), b, reach)
    return Sample(channels, torch.from_numpy(mask)[None], affine @ corner, context=context)


def _turned_direction(b: Sequence[float], before: np.ndarray, after: np.ndarray) -> list[float]:
    """``b`` (3,) along the axes of the grid ``before``, along those of the same grid turned."""
    turn = np.round(np.linalg.inv(after[:3, :3]) @ before[:3, :3])
    return [float(x) for x in turn @ np.asarray(b, float)]


def turned(
    image: Tensor, context: Mapping[str, Tensor], turn: Turn
) -> tuple[Tensor, Mapping[str, Tensor]]:
    """Image and context of a scan whose axes are turned: voxels, edges and B0 together."""
    import torch

    from bidsapp.physics.geometry import turned_voxels

    matrix = torch.tensor(turn)
    order = matrix.abs().argmax(1)
    moved = dict(context)
    if 'voxel_mm' in moved:
        moved['voxel_mm'] = moved['voxel_mm'][..., order]
        moved['b'] = moved['b'][..., order] * matrix.sum(1).to(moved['b'])
    return turned_voxels(image, turn), moved


def about(samples: Sequence[Sample]) -> dict[str, Any]:
    """What a card says of the input."""
    return {'input': 'field, total variation, what it leaves, Tikhonov, mask, weights '
                     '(docs/architecture.md)'}  # fmt: skip
