"""Which gradient-echo runs there are, and what is known of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bidsapp.bids import masks
from bidsapp.bids.runs import Files
from bidsapp.modalities.gre.bids import fields, regions
from bidsapp.modalities.gre.bids.prepared import PREPARED
from bidsapp.modalities.gre.bids.runs import GreRun, runs_of
from bidsapp.modalities.gre.bids.survey import acquisition_of, examine_run, survey

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from bidsapp.bids.dataset import Selection


def find(raw: Selection, derivatives: Mapping[str, Path]) -> list[GreRun]:
    """The selected runs, with fields, masks and regions of the user's; fields may be alone."""
    runs = runs_of(raw)
    if (root := derivatives.get(fields.FIELDS)) is not None:
        runs = fields.with_fields(runs, root, raw)
    if (root := derivatives.get(masks.MASKS)) is not None:
        runs = [
            masks.with_masks([run], root)[0] if _may_be_drawn(run) else run for run in runs
        ]  # fmt: skip
    reference = str(raw.options.get('reference', regions.WHOLE_BRAIN))
    own = derivatives.get(regions.DSEG)
    return [regions.with_regions(fields.masked(run), own, reference) for run in runs]


def _may_be_drawn(run: GreRun) -> bool:
    return 'mask' not in run.case.files and run.unserved is None


files = Files(
    words='gradient-echo',
    find=find,
    survey=survey,
    check=examine_run,
    acquisition=acquisition_of,
    prepared=PREPARED,
    looked_for='sub-*/[ses-*/]anat/*_part-{mag,phase}_{MEGRE,T2starw}.nii.gz',
    helps={**masks.HELPS, **fields.HELPS, **regions.HELPS},
    # No entity of fmap: such fields of runs that have one are derivatives of no schema.
    ignored=('*_rec-*_fieldmap.*', '*_rec-*_magnitude.*', '*_ce-*_fieldmap.*',
             '*_ce-*_magnitude.*', '*_stats.*'),
)  # fmt: skip
