"""Gradient tables (bval, bvec) as files."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from bidsapp.bids.annex import check_content
from bidsapp.bids.images import doubts_of, not_numbers, open_image
from bidsapp.bids.scans import said_beside
from bidsapp.bids.text import text_of
from bidsapp.core import Finding
from bidsapp.modalities.dwi.physics.gradients import (
    B0_THRESHOLD,
    GradientTable,
    from_fsl,
)
from bidsapp.modalities.dwi.physics.scaled_vectors import decay_agrees
from bidsapp.modalities.dwi.physics.tables import Examined, examine, without
from bidsapp.problems import BadData

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from bidsapp.core import Case


#: Voxels that an image must have along each axis.
MIN_SLICES = 3
#: Field of the sidecar of a preprocessed run: the greatest b that counts as b = 0.
B0_FIELD = 'B0Threshold'
#: What may stand between the numbers of a table.
SEPARATORS = re.compile(r'[\s,;]+')

#: A number with a comma for its point, or without either: '0,577', '-1e-3', '1000'.
DECIMAL_COMMA = re.compile(r'[+-]?\d*(,\d+)?(e[+-]?\d+)?', re.IGNORECASE)


def read_numbers(path: Path) -> np.ndarray:
    """The numbers of a bval or bvec file, (rows, columns). Raises BadData or MissingInput."""
    check_content(path.parent, [path])
    text = re.sub(r'#.*', '', text_of(path))
    if '.' not in text and all(DECIMAL_COMMA.fullmatch(t) for t in re.split(r'[\s;]+', text) if t):
        text = text.replace(',', '.')
    lines = text.splitlines()
    try:
        rows = [[float(x) for x in SEPARATORS.split(line.strip()) if x] for line in lines]
    except ValueError as error:
        raise BadData(f'{path} holds something that is not a number: {error}') from error
    rows = [row for row in rows if row]
    if not rows:
        raise BadData(f'{path} is empty; expected numbers, one or one column for each volume')
    if len({len(row) for row in rows}) != 1:
        lengths = ', '.join(str(len(row)) for row in rows)
        raise BadData(f'{path} has rows of different lengths ({lengths}); expected equal rows')
    return np.array(rows)


def examine_table(
    path: Path,
    bvecs: np.ndarray,
    bvals: np.ndarray,
    b0_threshold: float = B0_THRESHOLD,
    excluded: Collection[int] = (),
) -> Examined:
    """Look at a table and at the header of the image ``path`` that it belongs to.

    Volumes ``excluded`` by the user are left out.

    Raises BadData for an image that is no series of volumes of several slices.
    """
    shape = open_image(path).shape
    if len(shape) != 4:
        raise BadData(f'{path} has {len(shape)} dimensions; expected 4 (x, y, z, volume)')
    if min(shape[:3]) < MIN_SLICES:
        thin = min(shape[:3])
        raise BadData(
            f'{path} has {thin} slice{"s" * (thin > 1)} (shape {shape}); at least {MIN_SLICES} are '
            'needed to see how a head lies and moves.'
        )
    found = examine(bvecs, bvals, shape[3], b0_threshold, excluded)
    return replace(found, findings=(*doubts_of(path), *found.findings))


def examine_volumes(path: Path, data: np.ndarray, table: Examined) -> Examined:
    """``table`` without volumes of ``data`` (X, Y, Z, N), the image ``path``, that carry no head.

    With errors for scattered voxels that are not numbers, and for too little that is left.
    """
    from bidsapp.modalities.dwi.physics.volumes import unusable, without_numbers

    broken = without_numbers(data)
    if 2 * len(broken) < data.shape[-1]:
        table = without(table, broken)
    if len(table.kept) < data.shape[-1]:
        data = data[..., table.kept]
    if bad := not_numbers(data):
        message = (
            f'{bad} voxels of {path.name} are not numbers (NaN or infinite). Convert it again from '
            'the scanner files'
        )
        return replace(table, findings=(*table.findings, Finding('error', 'IMAGE_NAN', message)))
    if table.errors or not data.any():
        return table
    gtab = GradientTable(table.bvecs.T, table.bvals, table.b0_threshold)
    found = unusable(data, gtab)
    return without(table, {int(table.kept[v]): why for v, why in found.items()})


def check_lengths(data: np.ndarray, table: Examined) -> None:
    """Raises BadData where b was read from the lengths of vectors and the signal says otherwise.

    ``data`` (X, Y, Z, N) are all volumes of the image.
    """
    if table.in_lengths and not decay_agrees(data[..., table.kept], table.bvals):
        raise BadData(
            'the lengths of the gradient vectors form groups under one b-value, as where b stands '
            "in the lengths, but the signal does not fall as that would say. Write each volume's "
            'own b into the bval file, and vectors of length 1 into the bvec file.'
        )


def load_table(case: Case) -> GradientTable:
    """World-axes gradient table of a preprocessed run, whose files we wrote."""
    image = case.files['dwi']
    return from_fsl(
        read_numbers(case.files['bvec']),
        read_numbers(case.files['bval']).ravel(),
        open_image(image).affine,
        b0_threshold_of(image),
    )


def b0_threshold_of(image: Path) -> float:
    """The greatest b (s/mm²) that counted as b = 0 when the run ``image`` was preprocessed."""
    said = said_beside(image).get(B0_FIELD)
    return float(said) if isinstance(said, int | float) else B0_THRESHOLD
