"""What a network sees of a scan, plane by plane; how it is turned, and given another phase.

A full scan is learnt from by planes of which lines are left out: {'plane': 7, 'draw': 2} is a plane
with the lines of a draw, its target the image of all lines. A plane of whole lines is cropped along
readout, for the operator is exact there.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bidsapp.core import Batch, Case, Sample
from bidsapp.modalities.kspace.bids.planes import planes_in, spread
from bidsapp.modalities.kspace.bids.prepared import acquisition_of, opened_case
from bidsapp.modalities.kspace.physics.measured import undersampled
from bidsapp.modalities.kspace.physics.planes import planes_of
from bidsapp.modalities.kspace.physics.sampling import retrospective
from bidsapp.modalities.kspace.physics.seen import CHANNELS, seen, stacked
from bidsapp.physics.geometry import turned_voxels
from bidsapp.physics.streams import stream
from bidsapp.problems import BadData

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Generator, Tensor

    from bidsapp.core import FloatArray, Turn
    from bidsapp.learn.inputs import Part, Use
    from bidsapp.modalities.kspace.bids.prepared import Samples
    from bidsapp.modalities.kspace.bids.raw import RawImage
    from bidsapp.modalities.kspace.physics.planes import Plane

#: Planes of a scan that are learnt from, evenly spread, and how often each with other lines.
PLANES, DRAWS = 12, 4
#: R of those lines, evenly in its logarithm, where no other is asked for.
ACCELERATION = (2.0, 8.0)
#: Readout positions of a crop, and those at either end that see the end and do not count.
COLUMNS, EDGE = 64, 8
#: Radians that a phase drawn anew turns from the middle of an image to its edge, typically.
TURNING = 2.0


def parts(case: Case, use: Use) -> list[Part]:
    """All of a scan; to learn from, planes of it with several draws of lines that are left out."""
    if not use.training:
        return [{}]
    acquisition = acquisition_of(case)
    count = acquisition.matrix[0] if len(acquisition.matrix) > 2 else acquisition.slices
    asked = use.options.get('undersample')
    return [
        {'plane': plane, 'draw': draw, 'acceleration': asked}
        for plane in sorted(spread(count, PLANES))
        for draw in range(DRAWS)
    ]


def sample_of(case: Case, part: Part) -> Sample:
    """Every plane of a run as it was measured; of a part one plane with its target.

    The grid is that of the samples, which may be wider than the run's. Raises MissingInput where
    the raw data are gone, BadData for a part of a scan of which lines are missing.
    """
    with opened_case(case, whole=bool(part)) as samples:
        return drawn_plane(samples, part) if part else every_plane(samples)


def every_plane(samples: Samples) -> Sample:
    """What a network is applied to."""
    image, context = stacked([seen(one.plane) for one in planes_in(samples)])
    mask = torch.ones(1, *image.shape[1:], dtype=torch.bool)
    return Sample(image, mask, _affine(samples.image, image.shape[1:]), context=context)


def drawn_plane(samples: Samples, part: Part) -> Sample:
    """One plane of a full scan, some of its lines left out, and the image of them all."""
    image, number, draw = samples.image, int(part['plane']), int(part['draw'])
    if not image.measured.all():
        raise BadData(
            'lines were left out when it was measured, so what all of them show is not known. '
            'Learn from scans of which every line was measured.'
        )
    generator = stream(number, draw, of='lines left out to learn')
    low, high = (math.log(x) for x in ACCELERATION)
    drawn = math.exp(low + (high - low) * float(torch.rand((), generator=generator)))
    y, z = image.measured.shape
    mask = retrospective((y, z), image.coils, float(part['acceleration'] or drawn), generator)
    whole = samples.whole(0 if image.three_dimensional else number)
    # Compressed, and seen by maps, as what is left of the lines is.
    calibration = undersampled(whole, mask).calibration
    planes = planes_of(replace(whole, calibration=calibration))
    plane = planes.at(number if image.three_dimensional else 0)
    lines = mask[0] if image.three_dimensional else mask[0, :, 0]
    return _cropped(plane, plane.lines * lines, generator)


def _cropped(plane: Plane, lines: Tensor, generator: Generator) -> Sample:
    """What ``lines`` leave of a full ``plane``; of whole lines some readout positions."""
    columns, n = slice(None), plane.y.shape[1]
    if plane.axes == 1 and n > COLUMNS:
        first = int(torch.randint(n - COLUMNS + 1, (), generator=generator))
        columns = slice(first, first + COLUMNS)
        plane = plane.at_columns(columns)
    image, context = seen(plane.shown(lines))
    target = torch.view_as_real(plane.zero_filled).movedim(-1, 0)[..., None]
    mask = torch.ones(1, *image.shape[1:], dtype=torch.bool)
    if columns != slice(None):
        mask[:, :EDGE] = mask[:, -EDGE:] = False
    return Sample(image, mask, np.eye(4), target.contiguous(), context)


def _affine(image: RawImage, shape: Sequence[int]) -> FloatArray:
    """(4, 4) of planes stacked along the last axis, of an image whose field of view may be less."""
    order = [1, 2, 0] if image.three_dimensional else [0, 1, 2]
    first = np.zeros(3)
    for axis, n in zip(order, shape, strict=True):
        first[axis] = image.shape[axis] // 2 - n // 2
    affine = image.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ first
    return np.asarray(affine[:, [*order, 3]])


def turned(
    image: Tensor, context: Mapping[str, Tensor], turn: Turn
) -> tuple[Tensor, Mapping[str, Tensor]]:
    """Image and context of slices that are mirrored or turned in their plane.

    Maps are turned as the image is. Of k-space the origin stays where it is, n // 2: the mirror
    image of sample k is sample -k, and of an even number the first, -n / 2, is its own. Raises
    ValueError for a turn out of the plane.
    """
    if turn[2][:2] != (0, 0):
        raise ValueError('slices are not turned out of their plane')
    moved = dict(context)
    if 'maps' in moved:
        moved['maps'] = turned_voxels(moved['maps'], turn)
        mask = turned_voxels(moved['mask'], turn)
        for axis, row in zip((-3, -2), turn[:2], strict=True):
            if sum(row) < 0 and mask.shape[axis] % 2 == 0:
                mask = mask.roll(1, axis)
        moved['mask'] = mask
        if turn[2][2] < 0:
            moved['sigma'] = moved['sigma'].flip(-1)
    return turned_voxels(image, turn), moved


def rephased(batch: Batch, generator: Generator) -> Batch:
    """Slices with another smooth phase, which the maps take off again: the data stay the same."""
    x, y = (torch.linspace(-1, 1, n) for n in batch.image.shape[2:4])
    one, other = x[:, None].expand(len(x), len(y)), y.expand(len(x), len(y))
    shapes = torch.stack([torch.ones_like(one), one, other, one * other, one**2, other**2])
    weights = TURNING * torch.randn(len(batch.image), len(shapes), generator=generator)
    angle = torch.einsum('bk,kxy->bxy', weights, shapes)
    phase = torch.polar(torch.ones_like(angle), angle)[..., None].to(batch.image.device)
    context = dict(batch.context)
    context['maps'] = context['maps'] * phase[:, None].conj()
    return Batch(_times(batch.image, phase), _times(batch.target, phase), batch.mask, context)


def _times(channels: Tensor, phase: Tensor) -> Tensor:
    """(B, 2n, X, Y, Z) pairs of real and imaginary parts, times (B, X, Y, 1)."""
    pairs = channels.unflatten(1, (-1, 2)).movedim(2, -1).contiguous()
    found = torch.view_as_real(torch.view_as_complex(pairs) * phase[:, None])
    return found.movedim(-1, 2).flatten(1, 2)


def about(samples: Sequence[Sample]) -> dict[str, Any]:
    """What a card says of the input."""
    return {'input': f'{", ".join(CHANNELS)}; coil maps, mask and noise (docs/architecture.md)'}
