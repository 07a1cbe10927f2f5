"""Images made k-space again, of which lines are then left out: simulation, and said to be.

A magnitude image has lost phase, noise and coils, and a scanner may have interpolated it: whatever
is reconstructed from it looks better than from raw data. Slices are those of the third axis, with
phase encoding along the second.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bidsapp.bids.images import load_volume, open_image
from bidsapp.bids.names import parse
from bidsapp.modalities.kspace.bids.header import Encoding, Space
from bidsapp.modalities.kspace.bids.raw import RawImage
from bidsapp.physics.geometry import voxel_sizes
from bidsapp.problems import BadData

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from bidsapp.modalities.kspace.physics.measured import Measured

#: Share of what is as bright as it gets below which noise is not believed: interpolated images have
#: none in the corners of k-space.
LEAST_NOISE = 1e-3


def phase_beside(path: Path) -> Path | None:
    """The phase of a magnitude image; None where there is none."""
    if parse(path.name).get('part') != 'mag':
        return None
    phase = path.with_name(path.name.replace('_part-mag_', '_part-phase_'))
    return phase if phase.is_file() else None


def survey_image(path: Path) -> RawImage:
    """An image as if every line of one coil had been measured. Raises BadData."""
    image = open_image(path)
    if len(image.shape) != 3:
        raise BadData(f'{path.name} has the shape {image.shape}; expected one volume.')
    x, y, z = (int(n) for n in image.shape)
    edges = [float(size) for size in voxel_sizes(image.affine)]
    space = Space((x, y, 1), (x * edges[0], y * edges[1], edges[2]))
    return RawImage(
        Encoding(space, space, (y // 2, 0), (y - 1, 0)), np.asarray(image.affine, float), True,
        (x, y, z), 0, tuple(np.array([n]) for n in range(z)), 1, np.ones((y, 1), bool), (y, 1),
        ('simulated from an image',),
    )  # fmt: skip


def reader_of(path: Path) -> Callable[[RawImage, int], Measured]:
    """Reads slices of an image as samples. Raises BadData for phase on another scale than radians.

    An image is read as a whole.
    """
    import torch

    from bidsapp.modalities.kspace.physics import measured
    from bidsapp.modalities.kspace.physics.fourier import BOTH

    magnitude = load_volume(path)
    if not np.isfinite(magnitude).all():
        raise BadData(f'{path.name}: voxels are not finite numbers. Convert the image again.')
    volume = torch.from_numpy(magnitude).to(torch.complex64)
    phase, said = phase_beside(path), 'magnitudes alone'
    if phase is not None:
        angle = torch.from_numpy(load_volume(phase))
        if angle.shape != volume.shape or not bool((angle.abs() <= 3.15).all()):
            raise BadData(
                f'{phase.name}: expected phase in radians, -π to π, on the grid of {path.name}. '
                'Convert the images again.'
            )
        volume, said = volume * torch.exp(1j * angle), 'magnitude and phase'
    floor = LEAST_NOISE * float(np.percentile(np.abs(magnitude), 99))

    def read(image: RawImage, number: int) -> Measured:
        kspace = BOTH(volume[..., number])[None, ..., None]
        weights = torch.ones(1, kspace.shape[2], 1)
        sigma = max(measured.corner_noise(kspace, weights), floor)
        steps = {
            'Whitening': 'not done, there is one coil',
            'Noise': f'{sigma:.4g}, from the outer corners of k-space',
            'Calibration': 'lines of the image',
            'SimulatedFrom': f'{said} of {path.name}',
        }
        return measured.Measured(kspace, weights, kspace, sigma, steps)

    return read
