"""Which raw scans there are, and what is known of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bidsapp.bids.runs import Files
from bidsapp.modalities.kspace.bids.prepared import PREPARED, acquisition_of
from bidsapp.modalities.kspace.bids.runs import KspaceRun, runs_of
from bidsapp.modalities.kspace.bids.survey import examine_run, survey

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from bidsapp.bids.dataset import Selection


def find(raw: Selection, derivatives: Mapping[str, Path]) -> list[KspaceRun]:
    """The selected raw scans; no pipeline's results take their place."""
    return runs_of(raw)


files = Files(
    words='raw k-space',
    find=find,
    survey=survey,
    check=examine_run,
    acquisition=acquisition_of,
    prepared=PREPARED,
    looked_for='sourcedata/sub-*/[ses-*/]anat/*.h5',
)
