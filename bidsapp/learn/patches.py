"""Sample ↔ TorchIO: patches to learn from, and overlapping patches blended to a whole brain."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from bidsapp.core import Sample


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """torch's global generator seeded from ``numbers`` inside, as it was before outside.

    TorchIO's samplers draw from the global generator; nobody else shall notice.
    """
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _padded(tensor: Tensor, side: int) -> Tensor:
    """(C, X, Y, Z) with zeros appended until each side is at least ``side``."""
    missing = [max(0, side - length) for length in tensor.shape[1:]]
    if not any(missing):
        return tensor
    return F.pad(tensor, [0, missing[2], 0, missing[1], 0, missing[0]])


def _centres(mask: Tensor, side: int) -> Tensor:
    """(1, X, Y, Z) how often a patch of ``side`` shall be centred at each voxel.

    Each brain voxel counts once, at the nearest centre whose patch lies inside the volume; so the
    brain's edge is seen as often as its middle, and a volume of one patch has one centre.
    """
    shape = torch.tensor(mask.shape[1:])
    first, last = side // 2, shape - (side - side // 2)
    where = mask[0].nonzero()
    clamped = torch.minimum(where.clamp_min(first), last)
    counts = torch.zeros(tuple(shape.tolist()))
    counts.index_put_(tuple(clamped.T), torch.ones(len(where)), accumulate=True)
    return counts[None]


class PatchSource:
    """Draws batches of patches (image, target, mask) from a list of samples with targets."""

    def __init__(self, samples: Sequence[Sample], side: int) -> None:
        import torchio as tio

        self.channels_in = samples[0].image.shape[0]
        self._sampler = tio.WeightedSampler(side, 'centres')
        self._subjects = []
        for sample in samples:
            if sample.target is None:
                raise ValueError('a sample without a target cannot be learnt from')
            mask = _padded(sample.mask, side)
            self._subjects.append(
                tio.Subject(
                    image=tio.ScalarImage(tensor=_padded(sample.image, side)),
                    target=tio.ScalarImage(tensor=_padded(sample.target, side)),
                    mask=tio.LabelMap(tensor=mask),
                    centres=tio.Image(tensor=_centres(mask, side), type=tio.SAMPLING_MAP),
                )
            )

    def batch(self, size: int, seed: int, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Batch number ``step`` of a run with ``seed``; the same numbers give the same batch."""
        with seeded(seed, step):
            chosen = torch.randint(len(self._subjects), (size,)).tolist()
            patches: list[Any] = [next(self._sampler(self._subjects[i], 1)) for i in chosen]
        image, target, mask = (
            torch.stack([patch[key].data for patch in patches])
            for key in ('image', 'target', 'mask')
        )
        return image, target, mask.bool()


def in_patches(
    network: Callable[[Tensor], Tensor], image: Tensor, side: int, overlap: int, device: Any
) -> Tensor:
    """``network`` over ``image`` (C, X, Y, Z) in patches blended with a Hann window: (K, X, Y, Z).

    ``side`` and ``overlap`` are multiples of 8, and the volume is padded to one, so that every
    patch pools the same voxels together as the whole volume would.
    """
    import torchio as tio

    shape = image.shape[1:]
    grid = [-(-length // 8) * 8 for length in shape]
    padding = [0, grid[2] - shape[2], 0, grid[1] - shape[1], 0, grid[0] - shape[0]]
    i, j, k = (min(side, length) for length in grid)
    a, b, c = (overlap if length > side else 0 for length in grid)
    subject = tio.Subject(image=tio.ScalarImage(tensor=F.pad(image, padding)))
    sampler = tio.GridSampler(subject, (i, j, k), (a, b, c))
    aggregator = tio.GridAggregator(sampler, overlap_mode='hann')
    for index in range(len(sampler)):
        patch = sampler[index]
        output = network(patch['image'].data[None].to(device)).cpu()
        aggregator.add_batch(output, patch[tio.LOCATION][None])
    blended: Tensor = aggregator.get_output_tensor()
    return blended[:, : shape[0], : shape[1], : shape[2]]
