"""What a page shows of a gradient-echo run: background, protocol, figures in their order."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from bidsapp.bids.images import load_volume
from bidsapp.modalities.gre.bids.survey import acquisition_of
from bidsapp.modalities.gre.reports import chimaps, fields

if TYPE_CHECKING:
    import numpy as np

    from bidsapp.core import Case
    from bidsapp.reports.page import Figure
    from bidsapp.reports.planes import View
    from bidsapp.reports.written import WrittenRun


def background(case: Case) -> np.ndarray:
    """(X, Y, Z) magnitude of the echoes."""
    return load_volume(case.files['magnitude'])


def facts(run: WrittenRun) -> dict[str, Any]:
    """The protocol in words."""
    return {'Protocol': acquisition_of(run.case).words}


def drawn(run: WrittenRun, view: View) -> list[Figure]:
    """Every figure that a run may have, in their order on the page."""
    return [
        partial(chimaps.draw_maps, run, view),
        partial(fields.draw_masks, run, view),
        partial(fields.draw_phase, run, view),
        partial(fields.draw_fields, run, view),
        partial(chimaps.draw_residual, run, view),
        partial(fields.draw_decay, run, view),
        partial(fields.draw_weighted, run, view),
    ]
