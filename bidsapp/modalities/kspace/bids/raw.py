"""What raw data hold, from headers alone: images, their slices, and which samples were measured."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bidsapp.modalities.kspace.bids import layout, places
from bidsapp.modalities.kspace.bids.header import Encoding, Header, NoImage, parse_header
from bidsapp.modalities.kspace.bids.layout import flagged
from bidsapp.problems import BadData

if TYPE_CHECKING:
    import h5py

#: Counters of which only one value makes an image.
ALONE = ('repetition', 'phase', 'set')


@dataclass(frozen=True, slots=True, eq=False)
class RawImage:
    """One image of a file: slices in their order."""

    encoding: Encoding
    affine: np.ndarray  #: (4, 4) voxel → RAS mm
    geometry_known: bool
    shape: tuple[int, int, int]  #: voxels, of the field of view that is wanted
    echo: int  #: from 1; 0 where a file has one contrast
    slices: tuple[np.ndarray, ...]  #: of each, the numbers of its lines, calibration among them
    coils: int
    measured: np.ndarray  #: (Y, Z) bool, of the first slice
    calibration: tuple[int, int]  #: how many lines about the origin, along Y and Z, make maps
    notes: tuple[str, ...] = ()

    @property
    def three_dimensional(self) -> bool:
        """Whether there are two directions of phase encoding."""
        return self.encoding.encoded.matrix[2] > 1

    @property
    def acceleration(self) -> float:
        """All lines over measured ones."""
        return self.measured.size / max(int(self.measured.sum()), 1)

    @property
    def words(self) -> str:
        """One line for people."""
        x, y, z = self.encoding.encoded.matrix
        plural = 's' * (self.coils > 1)
        kind = f'{x} x {y} x {z}' if self.three_dimensional else f'{x} x {y}'
        lines = ' x '.join(str(n) for n in self.calibration[: 1 + self.three_dimensional])
        slices = '' if self.three_dimensional else f', {len(self.slices)} slices'
        return (
            f'{self.coils} coil{plural}, {kind}{slices}, R = {self.acceleration:.3g}, '
            f'{lines} calibration lines'
        )


@dataclass(frozen=True, slots=True, eq=False)
class RawFile:
    """An ISMRMRD file."""

    header: Header
    heads: np.ndarray  #: (N,) of `layout.HEAD`
    noise: np.ndarray  #: numbers of its noise lines
    images: tuple[RawImage, ...]


def survey_ismrmrd(group: h5py.Group, name: str) -> RawFile:
    """Reads heads. Raises BadData; NoImage where there is nothing to reconstruct."""
    header = parse_header(layout.xml_of(group, name), name)
    heads = layout.heads_of(group, name)
    noise = np.flatnonzero(flagged(heads, layout.NOISE))
    dropped = {bit: flagged(heads, bit) for bit in layout.DROPPED}
    useful = ~flagged(heads, layout.NOISE, *layout.DROPPED)
    numbers = np.flatnonzero(useful)
    makes_image = ~flagged(heads, layout.CALIBRATION) | flagged(heads, layout.CALIBRATION_TOO)
    imaging = numbers[makes_image[numbers]]
    if not len(imaging):
        raise NoImage(
            f'{name} holds no line of an image, {len(noise)} of noise: it is a calibration.'
        )
    _require_one_kind(heads, numbers, imaging, header, name)
    counted = Counter(dict.fromkeys(layout.DROPPED.values(), 0))
    for bit, there in dropped.items():
        counted[layout.DROPPED[bit]] += int(there.sum())
    notes = tuple(f'{n} {word} lines left out' for word, n in counted.items() if n)
    images = tuple(_images(heads, numbers, imaging, header, name, notes))
    return RawFile(header, heads, noise, images)


def _require_one_kind(
    heads: np.ndarray, numbers: np.ndarray, imaging: np.ndarray, header: Header, name: str
) -> None:
    lines = heads[imaging]
    for key in ALONE:
        values = np.unique(lines['idx'][key])
        if len(values) > 1:
            raise BadData(
                f'{name} has {len(values)} values of the counter {key!r}; an image has one. Put '
                'each into a file of its own.'
            )
    coils = np.unique(heads['active_channels'][numbers])
    if len(coils) > 1 or coils[0] < 1:
        raise BadData(
            f'{name}: some lines have {coils[0]} coils and others {coils[-1]}. Convert the scan '
            'again.'
        )
    spaces = np.unique(lines['encoding_space_ref'])
    if spaces[-1] >= len(header.encodings):
        raise BadData(f'{name}: lines are of encoding {spaces[-1]}, which its header has not.')
    if len({header.encodings[space].encoded for space in spaces}) > 1:
        raise BadData(
            f'{name} has two matrix sizes or fields of view; an image has one. Put each into a '
            'file of its own.'
        )


def _images(
    heads: np.ndarray,
    numbers: np.ndarray,
    imaging: np.ndarray,
    header: Header,
    name: str,
    notes: tuple[str, ...],
) -> list[RawImage]:
    """Of each orientation and contrast one."""
    positions = heads['position'].astype(float)
    axes = places.directions_of(heads[imaging], name)
    group = places.groups_of(axes, positions[imaging])
    contrasts = heads['idx']['contrast'][imaging]
    several = len(np.unique(contrasts)) > 1
    found = []
    for contrast in np.unique(contrasts):
        for one in np.unique(group):
            own = (group == one) & (contrasts == contrast)
            if not own.any():
                continue
            lines = imaging[own]
            encoding = header.encodings[heads['encoding_space_ref'][lines[0]]]
            # Calibration lines of another grid make no maps of this one.
            spaces = [i for i, e in enumerate(header.encodings) if e.encoded == encoding.encoded]
            alike = np.isin(heads['encoding_space_ref'][numbers], spaces)
            alike &= heads['idx']['contrast'][numbers] == contrast
            separate = numbers[alike & ~np.isin(numbers, imaging)]
            echo = int(np.searchsorted(np.unique(contrasts), contrast)) + 1 if several else 0
            found.append(_image(heads, separate, lines, encoding, axes[own][0], echo, name, notes))
    return found


def _image(
    heads: np.ndarray,
    separate: np.ndarray,
    lines: np.ndarray,
    encoding: Encoding,
    axes: np.ndarray,
    echo: int,
    name: str,
    notes: tuple[str, ...],
) -> RawImage:
    slices = np.unique(heads['idx']['slice'][lines])
    first = np.array([lines[heads['idx']['slice'][lines] == s][0] for s in slices])
    where = heads['position'][first].astype(float)
    known = bool(axes.any())
    along = where @ axes[:, 2] if known else slices.astype(float)
    order, step = places.ordered(along, name)
    if encoding.encoded.matrix[2] > 1 and len(slices) > 1:
        raise BadData(f'{name} has {len(slices)} slabs; an image has one. Put each into a file.')
    if not known:
        step = encoding.recon.fov_mm[2] * (len(slices) > 1)
    place = where[order[0]] if known else centred(encoding, len(slices))
    affine = places.affine_of(encoding, axes, place, step)
    own = {
        s: np.sort(np.concatenate([lines[heads['idx']['slice'][lines] == s],
                                   _of_slice(heads, separate, s, p)]))
        for s, p in zip(slices[order], where[order], strict=True)
    }  # fmt: skip
    x, y, z = encoding.shape
    one = own[slices[order[0]]]
    drawn = np.isin(one, lines)
    measured = occupied(heads[one[drawn]], encoding, name)
    calibrating = flagged(heads[one], layout.CALIBRATION, layout.CALIBRATION_TOO)
    apart = not drawn.all()
    block = occupied(heads[one[calibrating]], encoding, name) if apart else measured
    return RawImage(
        encoding, affine, known, (x, y, z if encoding.encoded.matrix[2] > 1 else len(slices)), echo,
        tuple(own.values()), int(heads['active_channels'][lines[0]]), measured,
        middle_size(block), notes,
    )  # fmt: skip


def _of_slice(
    heads: np.ndarray, separate: np.ndarray, number: int, position: np.ndarray
) -> np.ndarray:
    """Which of the calibration lines ``separate`` are of a slice: by its counter and its place."""
    aside = np.abs(heads['position'][separate] - position).max(1)
    return separate[(heads['idx']['slice'][separate] == number) & (aside < places.SAME_MM)]


def centred(encoding: Encoding, slices: int) -> np.ndarray:
    """(3,) LPS mm of the first slice of a row about the origin, where a file does not say."""
    thick = encoding.recon.fov_mm[2]
    deep = 0.0 if encoding.encoded.matrix[2] > 1 else -(slices // 2) * thick
    return np.array([0.0, 0.0, deep])


def line_numbers(heads: np.ndarray, encoding: Encoding, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(N,) each: where lines lie along Y and Z. Raises BadData for one outside the matrix."""
    found = []
    for axis in (1, 2):
        n = encoding.encoded.matrix[axis]
        counter = heads['idx'][f'kspace_encode_step_{axis}'].astype(int)
        place = counter - encoding.centre[axis - 1] + n // 2
        if len(place) and (place.min() < 0 or place.max() >= n):
            raise BadData(
                f'{name}: lines are numbered {counter.min()} to {counter.max()} about a centre of '
                f'{encoding.centre[axis - 1]}, which do not fit a matrix of {n}. Convert the scan '
                'again.'
            )
        found.append(place)
    return found[0], found[1]


def occupied(heads: np.ndarray, encoding: Encoding, name: str) -> np.ndarray:
    """(Y, Z) bool: where lines were measured."""
    measured = np.zeros(encoding.encoded.matrix[1:], bool)
    measured[line_numbers(heads, encoding, name)] = True
    return measured


def middle_size(measured: np.ndarray) -> tuple[int, int]:
    """Lines along Y and Z of the block about the origin that is measured whole."""
    import torch

    from bidsapp.modalities.kspace.physics.measured import centred_block

    flat = measured if measured.shape[1] > 1 else measured[:, 0]
    sizes = [b.stop - b.start for b in centred_block(torch.from_numpy(flat.astype(np.float32)))]
    return sizes[0], sizes[1] if len(sizes) > 1 else 1
