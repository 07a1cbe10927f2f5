"""The HDF5 layout of ISMRMRD: acquisitions of a header and samples each (its specification, 1.x).

It is read with h5py and the XML library of Python, not with the package ``ismrmrd``: that would
bring xsdata, reads an acquisition at a time, and none of its classes are needed.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from bidsapp.modalities.kspace.bids.header import Unserved
from bidsapp.problems import BadData

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Bits of ``flags``, counted from 1, of lines that make no image, by what a user calls them.
DROPPED = {
    23: 'navigator', 24: 'phase-correction', 26: 'feedback', 27: 'dummy', 28: 'feedback',
    29: 'surface-coil-correction', 30: 'phase-stabilisation', 31: 'phase-stabilisation',
}  # fmt: skip
NOISE, CALIBRATION, CALIBRATION_TOO, REVERSED = 19, 20, 21, 22
#: Where raw data are converted that are not HDF5, by the ends of their names.
CONVERTERS = {
    '.dat': 'siemens_to_ismrmrd', '.7': 'ge_to_ismrmrd', '.raw': 'philips_to_ismrmrd',
    '.lab': 'philips_to_ismrmrd', '.sin': 'philips_to_ismrmrd', '.fid': 'bruker_to_ismrmrd',
}  # fmt: skip

COUNTERS = np.dtype(
    [
        (name, '<u2')
        for name in (
            'kspace_encode_step_1', 'kspace_encode_step_2', 'average', 'slice', 'contrast',
            'phase', 'repetition', 'set', 'segment',
        )
    ]
    + [('user', '<u2', (8,))]
)  # fmt: skip
HEAD = np.dtype(
    [
        ('version', '<u2'), ('flags', '<u8'), ('measurement_uid', '<u4'), ('scan_counter', '<u4'),
        ('acquisition_time_stamp', '<u4'), ('physiology_time_stamp', '<u4', (3,)),
        ('number_of_samples', '<u2'), ('available_channels', '<u2'), ('active_channels', '<u2'),
        ('channel_mask', '<u8', (16,)), ('discard_pre', '<u2'), ('discard_post', '<u2'),
        ('center_sample', '<u2'), ('encoding_space_ref', '<u2'), ('trajectory_dimensions', '<u2'),
        ('sample_time_us', '<f4'), ('position', '<f4', (3,)), ('read_dir', '<f4', (3,)),
        ('phase_dir', '<f4', (3,)), ('slice_dir', '<f4', (3,)),
        ('patient_table_position', '<f4', (3,)), ('idx', COUNTERS), ('user_int', '<i4', (8,)),
        ('user_float', '<f4', (8,)),
    ]
)  # fmt: skip
_FLOATS = h5py.vlen_dtype(np.dtype('<f4'))
ACQUISITION = np.dtype([('head', HEAD), ('traj', _FLOATS), ('data', _FLOATS)])


@contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """An HDF5 file; whatever is wrong with it is BadData."""
    if path.suffix in CONVERTERS:
        raise Unserved(
            f'{path.name} is raw data of a vendor; ISMRMRD was expected. Convert it with '
            f'{CONVERTERS[path.suffix]}.'
        )
    try:
        with h5py.File(path, 'r') as file:
            yield file
    except FileNotFoundError:
        raise
    except (OSError, KeyError) as error:
        raise BadData(
            f'{path.name} cannot be read as HDF5 ({error}): it is no HDF5 file, or its end is '
            'missing. Copy or convert it again.'
        ) from error


def group_of(file: h5py.File) -> h5py.Group | None:
    """The group of an ISMRMRD data set, mostly called 'dataset'; None if there is none."""
    for group in (file, *(g for g in file.values() if isinstance(g, h5py.Group))):
        if 'xml' in group or ('data' in group and group['data'].dtype.names):
            return group
    return None


def xml_of(group: h5py.Group, name: str) -> bytes:
    """The XML header. Raises BadData where there is none."""
    if 'xml' not in group:
        raise BadData(f'{name} has acquisitions and no XML header. Convert the scan again.')
    text = np.asarray(group['xml'][()]).ravel()
    return _bytes(text[0]) if len(text) else b''


def _bytes(text: Any) -> bytes:
    return text.encode() if isinstance(text, str) else bytes(text)


def heads_of(group: h5py.Group, name: str) -> np.ndarray:
    """(N,) of `HEAD`, without the samples. Raises BadData."""
    if 'data' not in group or not len(group['data']):
        raise BadData(f'{name} holds no acquisition: nothing was measured, or nothing converted.')
    table = group['data']
    if not table.dtype.names or not {'head', 'data'} <= set(table.dtype.names):
        raise BadData(f'{name}: its acquisitions have no head and data. Convert the scan again.')
    heads = table.fields('head')[()]
    missing = set(HEAD.names or ()) - set(heads.dtype.names or ())
    if missing:
        raise BadData(f'{name}: heads of its acquisitions lack {", ".join(sorted(missing))}.')
    return np.asarray(heads)


def samples_of(group: h5py.Group, heads: np.ndarray, which: np.ndarray, name: str) -> np.ndarray:
    """(N, C, samples) complex64 of the acquisitions ``which``, rising, all of one length."""
    found = group['data'].fields('data')[which]
    coils, n = (int(heads[key][which[0]]) for key in ('active_channels', 'number_of_samples'))
    wanted = 2 * coils * n
    if any(len(line) != wanted for line in found):
        raise BadData(
            f'{name}: lines of {coils} coils and {n} samples were announced, and others are there. '
            'Convert the scan again.'
        )
    lines = np.stack(list(found)).view(np.complex64).reshape(len(which), coils, n)
    if not np.isfinite(lines.view(np.float32)).all():
        raise BadData(f'{name}: samples are not finite numbers. Convert the scan again.')
    return np.asarray(lines)


def flagged(heads: np.ndarray, *bits: int) -> np.ndarray:
    """(N,) whether any of the ``bits``, counted from 1, is set."""
    mask = np.uint64(sum(1 << (bit - 1) for bit in bits))
    return np.asarray((heads['flags'] & mask) != 0)
