"""The header of raw data: ISMRMRD's XML (Inati et al., MRM 77:411, 2017)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from bidsapp.problems import BadData

if TYPE_CHECKING:
    from collections.abc import Callable

Triple = tuple[float, float, float]


class Unserved(BadData):
    """A file of which nothing can be made in principle: it promises nothing."""


class NoImage(Unserved):
    """A file of other measurements, such as noise alone."""


@dataclass(frozen=True, slots=True)
class Space:
    """A grid along readout, first and second phase encoding."""

    matrix: tuple[int, int, int]
    fov_mm: Triple

    @property
    def voxel_mm(self) -> Triple:
        """Edges of a voxel, mm."""
        x, y, z = (size / n for size, n in zip(self.fov_mm, self.matrix, strict=True))
        return x, y, z


@dataclass(frozen=True, slots=True)
class Encoding:
    """How k-space was sampled, and the image that is wanted of it."""

    encoded: Space
    recon: Space
    centre: tuple[int, int]  #: counters of the origin of k-space along phase encoding
    last: tuple[int, int]  #: the highest counters

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels of the image: the field of view that is wanted, at the resolution measured.

        Zero-filling to the wanted matrix would add voxels and no information.
        """
        sizes = zip(self.encoded.matrix, self.recon.fov_mm, self.encoded.voxel_mm, strict=True)
        x, y, z = (max(min(n, round(wanted / voxel)), 1) for n, wanted, voxel in sizes)
        return x, y, z


@dataclass(frozen=True, slots=True)
class Header:
    """What holds for all of a file."""

    encodings: tuple[Encoding, ...]
    noise_bandwidth: float  #: share of a noise scan's bandwidth that the receiver lets through


def parse_header(xml: bytes, name: str) -> Header:
    """Reads the XML of the file ``name``. Raises BadData; Unserved for what is not Cartesian."""
    try:
        root = ElementTree.fromstring(xml)
    except ElementTree.ParseError as error:
        raise BadData(
            f'{name}: its header is not valid XML ({error}). Convert the scan again.'
        ) from error
    found = root.findall('{*}encoding')
    if not found:
        raise BadData(
            f'{name}: its header has no <encoding>; expected the matrix and the field of view of '
            'at least one. Convert the scan again.'
        )
    for encoding in found:
        _require_cartesian(encoding, name)
    share = root.findtext('{*}acquisitionSystemInformation/{*}relativeReceiverNoiseBandwidth')
    return Header(tuple(_encoding(e, name) for e in found), _number(share, name))


def _require_cartesian(encoding: ElementTree.Element, name: str) -> None:
    kind = (encoding.findtext('{*}trajectory') or '').strip().lower()
    if kind != 'cartesian':
        raise Unserved(
            f'{name} was sampled on a {kind or "nameless"} trajectory; only Cartesian scans are '
            'reconstructed.'
        )
    bands = encoding.findtext('{*}parallelImaging/{*}multiband/{*}multiband_factor')
    if _number(bands, name) > 1:
        raise Unserved(
            f'{name} excites {bands} slices at once; only slices one by one are reconstructed.'
        )


def _number(text: str | None, name: str) -> float:
    """A positive number; 1 where nothing is said."""
    try:
        value = float(text or 1)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise BadData(f'{name}: its header says {text!r} where a positive number was expected.')
    return value


def _encoding(element: ElementTree.Element, name: str) -> Encoding:
    encoded, recon = (_space(element, f'{side}Space', name) for side in ('encoded', 'recon'))
    limits = [_limits(element, axis, encoded.matrix[axis], name) for axis in (1, 2)]
    (centre_1, last_1), (centre_2, last_2) = limits
    return Encoding(encoded, recon, (centre_1, centre_2), (last_1, last_2))


def _space(element: ElementTree.Element, side: str, name: str) -> Space:
    matrix = _three(element, f'{side}/matrixSize', int, name)
    fov = _three(element, f'{side}/fieldOfView_mm', float, name)
    if min(matrix) < 1 or min(fov) <= 0:
        raise BadData(
            f'{name}: {side} has a matrix of {matrix} and a field of view of {fov} mm; expected '
            'positive numbers. Convert the scan again.'
        )
    return Space((int(matrix[0]), int(matrix[1]), int(matrix[2])), fov)


def _three(
    element: ElementTree.Element, path: str, kind: Callable[[str], float], name: str
) -> Triple:
    texts = [element.findtext('/'.join(f'{{*}}{p}' for p in (*path.split('/'), a))) for a in 'xyz']
    try:
        x, y, z = (kind(text or '') for text in texts)
    except ValueError as error:
        raise BadData(
            f'{name}: its header says {texts} for {path}; expected three numbers. Convert the scan '
            'again.'
        ) from error
    return x, y, z


def _limits(element: ElementTree.Element, axis: int, n: int, name: str) -> tuple[int, int]:
    """The counter at the origin of k-space, and the highest one."""
    found = element.find(f'{{*}}encodingLimits/{{*}}kspace_encoding_step_{axis}')
    texts = [None if found is None else found.findtext(f'{{*}}{x}') for x in ('center', 'maximum')]
    if None in texts and n == 1:
        return 0, 0
    try:
        centre, last = (int(text or '') for text in texts)
    except ValueError as error:
        raise BadData(
            f'{name}: its header does not say which line is the centre of k-space '
            f'(encodingLimits/kspace_encoding_step_{axis}); lines cannot be placed by counting. '
            'Convert the scan again.'
        ) from error
    return centre, last
