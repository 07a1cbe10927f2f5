"""Writing: each file whole under a hidden name, then renamed; nobody ever sees half a file."""

from __future__ import annotations

import errno
import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from bidsapp.bids.headers import mended
from bidsapp.hidden import hidden
from bidsapp.problems import CannotCreate, InputOutputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

BIDS_VERSION = '1.10.0'


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A hidden name beside ``path`` to write to; it takes the place of ``path`` on success.

    Raises CannotCreate or InputOutputError in place of the system's errors.
    """
    place = hidden(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield place
            place.replace(path)
        finally:
            place.unlink(missing_ok=True)
    except OSError as error:
        raise explained(error, path) from error


def explained(error: OSError, path: Path) -> CannotCreate | InputOutputError:
    """The problem behind an OSError, with the right exit code."""
    reason = error.strerror or str(error)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
        return CannotCreate(
            f'{path} cannot be written: {reason}. Choose an output folder that you may write to.'
        )
    return InputOutputError(f'{path} could not be written: {reason}.')


def write_text(path: Path, text: str) -> Path:
    """Write ``text`` whole."""
    with whole(path) as place:
        place.write_text(text, encoding='utf-8')
    return path


def write_json(path: Path, content: Any) -> Path:
    """Write ``content`` as JSON, whole; numbers that JSON does not know become null."""
    known = json.loads(json.dumps(content), parse_constant=lambda name: None)
    return write_text(path, json.dumps(known, indent=2, ensure_ascii=False) + '\n')


def write_image(path: Path, array: np.ndarray, like: Path, dtype: str) -> Path:
    """Write ``array`` (X, Y, Z[, K]) on the grid of the image ``like``: same affine, same codes."""
    import nibabel as nib

    source, _ = mended(nib.load(like), like)  # type: ignore[arg-type]
    if array.shape[:3] != source.shape[:3]:
        raise ValueError(f'{path.name}: array {array.shape} is not on the grid {source.shape[:3]}')
    header = source.header.copy()
    header.set_data_dtype(dtype)
    header.set_slope_inter(1, 0)
    header['cal_min'] = header['cal_max'] = 0
    header['descrip'] = b'TransferMRI'
    image = nib.Nifti1Image(np.asarray(array, dtype), None, header)
    image.header.set_xyzt_units('mm', 'sec')
    if array.ndim == 4:
        step = (
            source.header.get_zooms()[3] if source.ndim == 4 and array.shape == source.shape else 1
        )
        image.header.set_zooms((*source.header.get_zooms()[:3], step))
    with whole(path) as place:
        nib.save(image, place)
    return path


def write_table(path: Path, header: list[str], rows: Sequence[Sequence[object]]) -> None:
    """Rows of a TSV file."""
    lines = ['\t'.join(str(cell) for cell in row) for row in [header, *rows]]
    write_text(path, '\n'.join(lines) + '\n')
