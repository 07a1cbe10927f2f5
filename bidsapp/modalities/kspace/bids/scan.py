"""A file of raw data: its images, and their slices, read one by one."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bidsapp.bids.dataset import IMAGES
from bidsapp.modalities.kspace.bids import layout
from bidsapp.modalities.kspace.bids.header import Unserved
from bidsapp.modalities.kspace.bids.raw import RawFile, RawImage, survey_ismrmrd
from bidsapp.problems import BadData

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import h5py
    from torch import Tensor

    from bidsapp.modalities.kspace.physics.measured import Measured

#: Voxels along readout and lines from which there is an image to speak of.
LEAST = 8


@dataclass(frozen=True, slots=True, eq=False)
class RawScan:
    """An open file."""

    images: tuple[RawImage, ...]
    #: image, number of its slice → samples; raises BadData
    read: Callable[[RawImage, int], Measured]


@contextmanager
def opened_scan(path: Path) -> Iterator[RawScan]:
    """The scan in ``path``: raw data, or an image that is made k-space again.

    Raises BadData for a damaged file, Unserved for one of which nothing can be made in principle.
    """
    if path.name.endswith(IMAGES):
        from bidsapp.modalities.kspace.bids import magnitudes

        yield RawScan((magnitudes.survey_image(path),), _later(path))
        return
    with layout.opened(path) as file:
        yield _scan(file, path.name)


def _later(path: Path) -> Callable[[RawImage, int], Measured]:
    """Reads an image when the first slice is asked for."""
    found: list[Callable[[RawImage, int], Measured]] = []

    def read(image: RawImage, number: int) -> Measured:
        from bidsapp.modalities.kspace.bids import magnitudes

        if not found:
            found.append(magnitudes.reader_of(path))
        return found[0](image, number)

    return read


def survey_scan(path: Path) -> tuple[RawImage, ...]:
    """The images of ``path``, from headers alone. Raises as `opened_scan`."""
    with opened_scan(path) as scan:
        return scan.images


def _scan(file: h5py.File, name: str) -> RawScan:
    if 'kspace' in file and 'ismrmrd_header' in file:
        from bidsapp.modalities.kspace.bids import fastmri

        only = fastmri.survey_fastmri(file, name)
        _require_size(only, name)
        return RawScan((only,), lambda image, n: fastmri.read_slice(file, image, n, name))
    group = layout.group_of(file)
    if group is None:
        raise Unserved(
            f'{name} is HDF5 of neither layout that is known (ISMRMRD, fastMRI). Convert the scan '
            'to ISMRMRD.'
        )
    raw = survey_ismrmrd(group, name)
    for image in raw.images:
        _require_size(image, name)
    return RawScan(raw.images, _reader(group, raw, name))


def _reader(group: h5py.Group, raw: RawFile, name: str) -> Callable[[RawImage, int], Measured]:
    from bidsapp.modalities.kspace.bids import lines

    white: dict[int, lines.Whitening] = {}

    def read(image: RawImage, number: int) -> Measured:
        found = white.get(id(image)) or lines.whitening_of(group, raw, image, name)
        white[id(image)] = found
        return lines.read_slice(group, raw, image, number, found, name)

    return read


def _require_size(image: RawImage, name: str) -> None:
    x, y, _ = image.encoding.encoded.matrix
    if min(x, y) < LEAST:
        raise BadData(
            f'{name}: its k-space is {x} x {y}; expected {LEAST} samples and more along readout '
            'and phase encoding. Convert the scan again.'
        )


def onto_grid(image: Tensor, like: RawImage) -> Tensor:
    """The wanted field of view of a reconstructed slice (…, X, Y), or slab (…, X, Y, Z)."""
    from bidsapp.modalities.kspace.physics.fourier import middle

    last = 3 if like.three_dimensional else 2
    for axis in range(last):
        image = middle(image, like.shape[axis], axis - last)
    return image
