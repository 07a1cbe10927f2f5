"""Gradient tables (bval, bvec) as files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bidsapp.bids.annex import check_content
from bidsapp.bids.images import open_image
from bidsapp.modalities.dwi.physics.gradients import GradientTable, from_fsl
from bidsapp.problems import BadData

if TYPE_CHECKING:
    from pathlib import Path

    from bidsapp.core import Case


def read_numbers(path: Path) -> np.ndarray:
    """The numbers of a bval or bvec file, (rows, columns). Raises BadData or MissingInput."""
    check_content(path.parent, [path])
    try:
        rows = [
            [float(x) for x in line.replace(',', ' ').split()]
            for line in path.read_text().splitlines()
        ]
    except (ValueError, UnicodeDecodeError) as error:
        raise BadData(f'{path} holds something that is not a number: {error}') from error
    rows = [row for row in rows if row]
    if not rows or len({len(row) for row in rows}) != 1:
        lengths = ', '.join(str(len(row)) for row in rows) or 'none'
        raise BadData(f'{path} has rows of different lengths ({lengths}); expected equal rows')
    return np.array(rows)


def load_table(case: Case) -> GradientTable:
    """World-axes gradient table of a preprocessed run, whose files we wrote."""
    affine = open_image(case.files['dwi']).affine
    return from_fsl(
        read_numbers(case.files['bvec']), read_numbers(case.files['bval']).ravel(), affine
    )
