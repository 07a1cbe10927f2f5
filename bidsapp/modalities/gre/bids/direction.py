"""Where B0 points in the voxels of an image, by its header and its sidecar, and how sure that is.

An error of some degrees is an error of some per cent of χ, and nothing in the data shows it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bidsapp.bids.images import open_image
from bidsapp.core import Finding
from bidsapp.physics.geometry import grid_axes
from bidsapp.problems import BadData

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from bidsapp.core import FloatArray

#: Field of the sidecar, as simulators of multi-echo scans write it: (3,) along the voxel axes.
FIELD = 'B0_dir'
#: Degrees that two directions may lie apart and still be one: headers are rounded.
SAME = 1.0
#: Of NIfTI: the axes are those of the scanner.
SCANNER = 1


def direction_of(path: Path, said: Mapping[str, Any]) -> tuple[tuple[float, ...], list[Finding]]:
    """(3,) unit vector of B0 along the voxel axes of the image ``path``, and what is doubtful.

    The sidecar, ``said``, has the word; else B0 is world z of the affine. No voxel is read. Raises
    BadData for a direction that is none, and as `open_image` does.
    """
    image = open_image(path)
    header, findings = _of_header(image.affine), _doubts(image)
    if FIELD not in said:
        return _plain(header), findings
    given = _given(said[FIELD], path)
    if (apart := degrees(given, header)) > SAME:
        findings.append(
            _doubt(f'{FIELD} of the metadata lies {apart:.0f}° from where the header puts B0: the '
                   'metadata are used')
        )  # fmt: skip
    return _plain(given), findings


def degrees(one: FloatArray, other: FloatArray) -> float:
    """Angle between two unit vectors (3,) up to their sign, which does not matter to a dipole."""
    return float(np.degrees(np.arccos(min(abs(float(one @ other)), 1.0))))


def _of_header(affine: FloatArray) -> np.ndarray:
    # `dipole.b0_direction` is the same and loads torch.
    return np.asarray(grid_axes(affine)[2])


def _plain(direction: FloatArray) -> tuple[float, ...]:
    return tuple(round(float(x), 6) + 0.0 for x in direction)


def _given(value: Any, path: Path) -> np.ndarray:
    try:
        vector = np.asarray(value, float)
        length = float(np.linalg.norm(vector))
    except (TypeError, ValueError):
        vector, length = np.zeros(0), 0.0
    if vector.shape != (3,) or not np.isfinite(length) or length == 0:
        raise BadData(
            f'{path.name}: {FIELD} in the metadata is {value!r}; expected three numbers, the '
            'direction of B0 along the voxel axes. Correct it, or take it away to use the header.'
        )
    return vector / length


def _doubts(image: Any) -> list[Finding]:
    """What in a header makes the direction of B0 doubtful."""
    (sform, s_code), (qform, q_code) = _coded(image)
    code = s_code or q_code
    found = []
    if sform is not None and qform is not None:
        apart = degrees(_of_header(sform), _of_header(qform))
        if apart > SAME:
            found.append(
                _doubt(f'sform and qform of the header put B0 {apart:.0f}° apart: the sform is '
                       'used; where an image was registered, the qform may be the scanner\'s')
            )  # fmt: skip
    if code != SCANNER:
        found.append(
            _doubt(f'the code of the header\'s affine is {code} and not 1, scanner: B0 is taken '
                   'to lie along world z, which is right only if the image was not turned')
        )  # fmt: skip
    if np.array_equal(grid_axes(image.affine), np.eye(3)):
        found.append(
            _doubt('the affine is the identity but for voxel sizes, as of scans whose orientation '
                   'was lost: B0 is taken to lie along the third axis')
        )  # fmt: skip
    return found


def _coded(image: Any) -> tuple[tuple[Any, int], tuple[Any, int]]:
    """(sform, its code), (qform, its code) of an image whose header can be used."""
    sform, s_code = image.header.get_sform(coded=True)
    try:
        qform, q_code = image.header.get_qform(coded=True)
    except ValueError:
        qform, q_code = None, 0
    return (sform, int(s_code)), (qform, int(q_code))


def _doubt(message: str) -> Finding:
    return Finding('warning', 'B0_DIRECTION', message)
