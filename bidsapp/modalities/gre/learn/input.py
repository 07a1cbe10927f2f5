"""What a network sees of a prepared gradient-echo run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bidsapp.bids.images import crop_to, load_volume, open_image, to_ras
from bidsapp.bids.scans import number, said_beside
from bidsapp.core import Case, Sample
from bidsapp.modalities.gre.bids.direction import direction_of
from bidsapp.modalities.gre.bids.prepared import NOISE_FIELD, total_of
from bidsapp.physics.geometry import voxel_sizes
from bidsapp.problems import BadData, MissingInput

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

    path = case.files['field']
    said, image = said_beside(path), open_image(path)
    mhz, factor = number(said, 'ImagingFrequency'), number(said, NOISE_FIELD)
    if mhz is None or factor is None:
        raise MissingInput(
            f'The sidecar of {path.name} lacks ImagingFrequency or {NOISE_FIELD}. Prepare the run '
            'again: --redo preprocessing.'
        )
    direction, _ = direction_of(path, said)
    total = total_of(case)
    local = load_volume(path)
    mask = load_volume(case.files['mask']) > 0
    if total is None:
        mask &= local != 0
    if not mask.any():
        raise BadData(f'{case.files["mask"]}: there is no voxel in it whose field is known')
    field = (local if total is None else load_volume(total)) / mhz
    weight = load_volume(case.files['magnitude'])
    noise = factor / mhz / np.maximum(weight, 1e-3 * np.median(weight[mask]))
    arrays = [to_ras(array, image.affine) for array in (field, noise, mask)]
    affine = arrays[0][1]
    box = crop_to(arrays[2][0])
    corner = np.block([[np.eye(3), np.array([[s.start] for s in box])], [0, 0, 0, 1]])
    field, noise, mask = (np.ascontiguousarray(array[box]) for array, _ in arrays)
    b = _turned_direction(direction, image.affine, affine)
    channels, context = seen(
        field, noise, mask, voxel_sizes(affine).tolist(), b, 0.0 if total is None else SINGLE
    )
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
