"""What a page shows of a dMRI run: its background, its protocol, its figures in their order."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from bidsapp.bids.images import open_image
from bidsapp.modalities.dwi.bids.tables import b0_threshold_of, load_table, read_numbers
from bidsapp.modalities.dwi.physics.acquisition import acquisition
from bidsapp.modalities.dwi.reports import figures, preprocessing, restored
from bidsapp.problems import BadData
from bidsapp.reports import maps
from bidsapp.reports.planes import mean_of

if TYPE_CHECKING:
    from bidsapp.core import Case
    from bidsapp.reports.page import Figure
    from bidsapp.reports.planes import View
    from bidsapp.reports.written import WrittenRun

#: Parameter maps that have figures of their own, or none: harmonics are numbers for programs.
APART = ('direction', 'fod', 'residual', 'noisefloor', 'noisespread')


def background(case: Case) -> np.ndarray:
    """(X, Y, Z) mean of the volumes without diffusion weighting. Raises BadData."""
    image = open_image(case.files['dwi'])
    limit = b0_threshold_of(case.files['dwi'])
    weighted = read_numbers(case.files['bval']).ravel() > limit
    if len(image.shape) != 4 or len(weighted) != image.shape[3]:
        raise BadData(
            f'{case.files["dwi"].name} has shape {image.shape}, its table {len(weighted)} b-values'
        )
    chosen = np.flatnonzero(weighted if weighted.all() else ~weighted)
    return mean_of(case.files['dwi'], chosen)


def facts(run: WrittenRun) -> dict[str, Any]:
    """Gradients in words."""
    table = load_table(run.case)
    known = acquisition(table)
    return {
        'Of these without diffusion weighting': int(table.b0.sum()),
        'Shells': [f'b = {b:.0f} s/mm²: {n} directions' for b, n in known.shells],
        'Condition number of the tensor': round(float(known.condition), 2),
    }


def drawn(run: WrittenRun, view: View) -> list[Figure]:
    """Every figure that a run may have, in their order on the page."""
    return [
        partial(maps.draw_mask, run, view),
        partial(preprocessing.draw_ingested, run),
        partial(preprocessing.draw_motion, run),
        partial(preprocessing.draw_distortion, run, view),
        partial(figures.draw_anisotropy, run, view),
        *(partial(maps.draw_labels, run, view, name) for name in maps.segmentations(run)),
        partial(figures.draw_directions, run, view),
        *(partial(maps.draw_parameter, run, view, name) for name in maps.parameters(run, APART)),
        partial(restored.draw_restored, run, view),
        partial(restored.draw_residual, run, view),
        partial(restored.draw_residual_by_volume, run),
    ]
