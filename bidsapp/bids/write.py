"""Writing: each file whole under a hidden name, then renamed; nobody ever sees half a file."""

from __future__ import annotations

import errno
import json
import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bidsapp.bids.headers import mended
from bidsapp.problems import CannotCreate, InputOutputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

BIDS_VERSION = '1.10.0'


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A hidden name beside ``path`` to write to; it takes the place of ``path`` on success.

    Raises CannotCreate or InputOutputError in place of the system's errors.
    """
    hidden = path.with_name(f'.{os.getpid()}.{path.name}')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield hidden
            hidden.replace(path)
        finally:
            hidden.unlink(missing_ok=True)
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


def remove_leftovers(folder: Path) -> None:
    """Take away hidden files that a killed process of this machine left in ``folder``."""
    for path in folder.glob('.[0-9]*.*'):
        pid = path.name[1:].partition('.')[0]
        if pid.isdigit() and not Path(f'/proc/{pid}').exists():
            path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> Path:
    """Write ``text`` whole."""
    with whole(path) as hidden:
        hidden.write_text(text, encoding='utf-8')
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
    with whole(path) as hidden:
        nib.save(image, hidden)
    return path


def write_table(path: Path, header: list[str], rows: Sequence[Sequence[object]]) -> None:
    """Rows of a TSV file."""
    lines = ['\t'.join(str(cell) for cell in row) for row in [header, *rows]]
    write_text(path, '\n'.join(lines) + '\n')
