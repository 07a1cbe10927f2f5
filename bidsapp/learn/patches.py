"""Sample ↔ TorchIO: patches to learn from, and overlapping patches blended to a whole volume."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bidsapp.core import Batch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from bidsapp.core import Patch, Sample


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """torch's global generator seeded from ``numbers`` inside, as it was before outside.

    TorchIO's samplers draw from the global generator; nobody else shall notice.
    """
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def stacked(contexts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Contexts of samples → (B, …) by name. Raises ValueError where they are not of one kind."""
    first = contexts[0]
    shapes = {name: value.shape for name, value in first.items()}
    if any({name: v.shape for name, v in own.items()} != shapes for own in contexts):
        raise ValueError('samples that are told different things cannot share a batch')
    return {name: torch.stack([own[name] for own in contexts]) for name in first}


def padded_to(tensor: Tensor, sides: Sequence[int]) -> Tensor:
    """(…, X, Y, Z) with zeros appended until each side is at least that of ``sides``."""
    missing = [max(0, n - length) for n, length in zip(sides, tensor.shape[-3:], strict=True)]
    if not any(missing):
        return tensor
    return F.pad(tensor, [0, missing[2], 0, missing[1], 0, missing[0]])


def _centres(mask: Tensor, sides: Sequence[int]) -> Tensor:
    """(1, X, Y, Z) how often a patch of ``sides`` shall be centred at each voxel.

    Each voxel of the mask counts once, at the nearest centre whose patch lies inside the volume; so
    its edge is seen as often as its middle, and a volume of one patch has one centre.
    """
    shape, side = torch.tensor(mask.shape[1:]), torch.tensor(tuple(sides))
    first, last = side // 2, shape - (side - side // 2)
    where = mask[0].nonzero()
    clamped = torch.minimum(torch.maximum(where, first), last)
    counts = torch.zeros(tuple(shape.tolist()))
    counts.index_put_(tuple(clamped.T), torch.ones(len(where)), accumulate=True)
    return counts[None]


class PatchSource:
    """Draws batches of patches from a list of samples with targets.

    Along an axis of the ``patch`` that is None it takes the whole sample, as it is. Then those of a
    batch are of samples of one shape, that of the first that is drawn.
    """

    def __init__(self, samples: Sequence[Sample], patch: Patch) -> None:
        import torchio as tio

        self.channels_in = samples[0].image.shape[0]
        self._subjects, self._contexts, self._samplers = [], [], []
        for sample in samples:
            if sample.target is None:
                raise ValueError('a sample without a target cannot be learnt from')
            shape = sample.mask.shape[1:]
            i, j, k = (n if side is None else side for side, n in zip(patch, shape, strict=True))
            sides = i, j, k
            mask = padded_to(sample.mask, sides)
            self._samplers.append(tio.WeightedSampler(sides, 'centres'))
            self._contexts.append(sample.context)
            self._subjects.append(
                tio.Subject(
                    image=tio.ScalarImage(tensor=padded_to(sample.image, sides)),
                    target=tio.ScalarImage(tensor=padded_to(sample.target, sides)),
                    mask=tio.LabelMap(tensor=mask),
                    centres=tio.Image(tensor=_centres(mask, sides), type=tio.SAMPLING_MAP),
                )
            )
        self._whole = [None if all(patch) else s.mask.shape for s in samples]

    def batch(self, size: int, seed: int, step: int) -> Batch:
        """Batch number ``step`` of a run with ``seed``; the same numbers give the same batch."""
        with seeded(seed, step):
            chosen = self._choose(size)
            patches: list[Any] = [next(self._samplers[i](self._subjects[i], 1)) for i in chosen]
        image, target, mask = (
            torch.stack([patch[key].data for patch in patches])
            for key in ('image', 'target', 'mask')
        )
        return Batch(image, target, mask.bool(), stacked([self._contexts[i] for i in chosen]))

    def _choose(self, size: int) -> list[int]:
        """Indices of samples that fit into one batch."""
        chosen: list[int] = torch.randint(len(self._subjects), (size,)).tolist()
        shape = self._whole[chosen[0]]
        if shape is None:
            return chosen
        alike = [i for i, other in enumerate(self._whole) if other == shape]
        return [chosen[0], *(alike[i % len(alike)] for i in chosen[1:])]


def in_patches(
    network: Callable[[Tensor], Tensor],
    image: Tensor,
    patch: Sequence[int | None],
    overlap: int,
    stride: Sequence[int],
    device: Any,
) -> Tensor:
    """``network`` over ``image`` (C, X, Y, Z) in patches blended with a Hann window: (K, X, Y, Z).

    Sides of the ``patch`` (None: the whole axis) and the ``overlap`` are multiples of ``stride``,
    and the volume is padded to one, so that every patch pools the same voxels together as the
    whole volume would.
    """
    import torchio as tio

    shape = image.shape[1:]
    grid = [-(-length // step) * step for length, step in zip(shape, stride, strict=True)]
    padding = [0, grid[2] - shape[2], 0, grid[1] - shape[1], 0, grid[0] - shape[0]]
    i, j, k = (n if side is None else min(side, n) for side, n in zip(patch, grid, strict=True))
    a, b, c = (overlap if n > side else 0 for side, n in zip((i, j, k), grid, strict=True))
    subject = tio.Subject(image=tio.ScalarImage(tensor=F.pad(image, padding)))
    sampler = tio.GridSampler(subject, (i, j, k), (a, b, c))
    aggregator = tio.GridAggregator(sampler, overlap_mode='hann')
    for index in range(len(sampler)):
        piece = sampler[index]
        output = network(piece['image'].data[None].to(device)).cpu()
        aggregator.add_batch(output, piece[tio.LOCATION][None])
    blended: Tensor = aggregator.get_output_tensor()
    return blended[:, : shape[0], : shape[1], : shape[2]]
