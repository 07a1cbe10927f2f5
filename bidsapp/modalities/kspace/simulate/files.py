"""Raw k-space written as ISMRMRD, line by line, as a scanner does, and in fastMRI's layout."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import h5py
import numpy as np
from numpy.typing import NDArray

from bidsapp.modalities.kspace.bids.layout import (
    ACQUISITION,
    CALIBRATION,
    HEAD,
    NOISE,
    REVERSED,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

#: A head, no trajectory, and samples as numbers.
Line = tuple[Any, NDArray[np.float32], NDArray[np.float32]]

XML = 'http://www.ismrm.org/ISMRMRD'
_ORDER = ('matrixSize', 'fieldOfView_mm')


@dataclass(frozen=True, slots=True)
class Protocol:
    """How k-space (slices, C, X, Y) is written."""

    fov_mm: tuple[float, float, float]  #: of X and Y as sampled; thickness of a slice
    recon_x: int = 0  #: voxels along readout that are wanted; 0: all, no oversampling
    centre: int | None = None  #: counter of the origin along phase encoding; None: Y // 2
    axes: NDArray[np.float64] = field(default_factory=lambda: np.eye(3))  #: (3, 3) LPS, a column
    #: each: readout, phase encoding, slices
    positions: tuple[tuple[float, float, float], ...] = ((0.0, 0.0, 0.0),)  #: LPS mm of slices
    order: tuple[int, ...] = ()  #: in which slices are measured; none: as they lie
    averages: int = 1
    reversed_lines: bool = False  #: every other line is read backwards
    separate: int = 0  #: calibration lines that make maps only
    noise: NDArray[np.complex64] | None = None  #: (C, N) of a noise scan
    dwell_us: tuple[float, float] = (5.0, 5.0)  #: of the image and of the noise scan
    skipped: tuple[int, int] = (0, 0)  #: samples at either end of a line that are not to be used


def write_ismrmrd(
    path: Path,
    kspace: NDArray[np.complex64],
    measured: NDArray[np.bool_],
    protocol: Protocol,
    separate: NDArray[np.complex64] | None = None,
) -> Path:
    """Writes the lines ``measured`` (Y,) of k-space (slices, averages, C, X, Y).

    ``separate`` (slices, C, X, Y) is what the separate calibration lines are taken from.
    """
    lines = list(_noise(protocol))
    slices, averages, _, _, n = kspace.shape
    for one in protocol.order or range(slices):
        for average in range(averages):
            for y in np.flatnonzero(measured):
                line = kspace[one, average, :, :, y]
                lines.append(_line(line, protocol, one, int(y), n, average))
        first = n // 2 - protocol.separate // 2
        for y in range(first, first + protocol.separate):
            assert separate is not None
            line = separate[one, :, :, y]
            lines.append(_line(line, protocol, one, y, n, flags=1 << (CALIBRATION - 1)))
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, 'w') as file:
        group = file.create_group('dataset')
        group.create_dataset(
            'xml', data=np.array([header_xml(kspace.shape[-2:], protocol)], object),
            dtype=h5py.string_dtype(),
        )  # fmt: skip
        table = group.create_dataset('data', (len(lines),), ACQUISITION, maxshape=(None,))
        table[:] = np.array(lines, ACQUISITION)
    return path


def write_fastmri(
    path: Path,
    kspace: NDArray[np.complex64],
    measured: NDArray[np.bool_],
    protocol: Protocol,
) -> Path:
    """K-space (slices, C, X, Y) with zeros where it was not ``measured``, and a mask."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, 'w') as file:
        file['kspace'] = kspace * measured
        file['mask'] = measured.astype(np.float32)
        file['ismrmrd_header'] = header_xml(kspace.shape[-2:], protocol)
    return path


def _noise(
    protocol: Protocol,
) -> Iterator[Line]:
    if protocol.noise is None:
        return
    head = _head(protocol, protocol.noise.shape)
    head['flags'] = 1 << (NOISE - 1)
    head['sample_time_us'] = protocol.dwell_us[1]
    head['center_sample'] = 0
    yield _acquisition(head, protocol.noise)


def _line(
    line: NDArray[np.complex64],
    protocol: Protocol,
    slice_number: int,
    y: int,
    n: int,
    average: int = 0,
    flags: int = 0,
) -> Line:
    before, after = protocol.skipped
    rubbish = np.full((len(line), before + after), 1e3, np.complex64)
    stored = np.concatenate([rubbish[:, :before], line, rubbish[:, before:]], 1)
    head = _head(protocol, stored.shape)
    centre = line.shape[1] // 2 + before
    if protocol.reversed_lines and y % 2:
        stored, before, after = stored[:, ::-1], after, before
        centre = stored.shape[1] - 1 - centre
        flags |= 1 << (REVERSED - 1)
    head['flags'], head['center_sample'] = flags, centre
    head['discard_pre'], head['discard_post'] = before, after
    head['position'] = protocol.positions[slice_number]
    origin = n // 2 if protocol.centre is None else protocol.centre
    head['idx']['kspace_encode_step_1'] = y - n // 2 + origin
    head['idx']['slice'], head['idx']['average'] = slice_number, average
    return _acquisition(head, stored)


def _head(protocol: Protocol, shape: Sequence[int]) -> np.ndarray:
    head = np.zeros((), HEAD)
    head['version'] = 1
    head['active_channels'] = head['available_channels'] = shape[0]
    head['number_of_samples'] = shape[1]
    head['sample_time_us'] = protocol.dwell_us[0]
    for name, axis in zip(('read_dir', 'phase_dir', 'slice_dir'), protocol.axes.T, strict=True):
        head[name] = axis
    return head


def _acquisition(head: np.ndarray, stored: NDArray[np.complex64]) -> Line:
    numbers = np.ascontiguousarray(stored, np.complex64).view(np.float32).ravel()
    return head[()], np.zeros(0, np.float32), np.asarray(numbers, np.float32)


def header_xml(shape: Sequence[int], protocol: Protocol) -> str:
    """The header of k-space (X, Y), in the order of ISMRMRD's schema."""
    ElementTree.register_namespace('', XML)
    root = ElementTree.Element(f'{{{XML}}}ismrmrdHeader')
    conditions = _under(root, 'experimentalConditions')
    _under(conditions, 'H1resonanceFrequency_Hz', 123_250_000)
    encoding = _under(root, 'encoding')
    x, y = shape
    fov = protocol.fov_mm
    wanted = protocol.recon_x or x
    for side, nx in (('encodedSpace', x), ('reconSpace', wanted)):
        space = _under(encoding, side)
        for name, values in zip(
            _ORDER, ((nx, y, 1), (fov[0] * nx / x, fov[1], fov[2])), strict=True
        ):
            for axis, value in zip('xyz', values, strict=True):
                _under(_child(space, name), axis, value)
    origin = y // 2 if protocol.centre is None else protocol.centre
    last = y - 1 - y // 2 + origin
    limits = _under(encoding, 'encodingLimits')
    steps = {'kspace_encoding_step_1': (last, origin), 'slice': (len(protocol.positions) - 1, 0)}
    for name, (maximum, centre) in steps.items():
        limit = _under(limits, name)
        for key, value in (('minimum', 0), ('maximum', maximum), ('center', centre)):
            _under(limit, key, value)
    _under(encoding, 'trajectory', 'cartesian')
    return ElementTree.tostring(root, encoding='unicode')


def _child(parent: ElementTree.Element, name: str) -> ElementTree.Element:
    found = parent.find(f'{{{XML}}}{name}')
    return _under(parent, name) if found is None else found


def _under(parent: ElementTree.Element, name: str, value: object = None) -> ElementTree.Element:
    child = ElementTree.SubElement(parent, f'{{{XML}}}{name}')
    child.text = None if value is None else str(value)
    return child
