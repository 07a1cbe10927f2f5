"""Which dMRI runs there are, and what is known of them."""

from __future__ import annotations

from bidsapp.bids.masks import HELPS
from bidsapp.bids.runs import Files
from bidsapp.modalities.dwi.bids.ingest import (
    SUPPORTED,
    check_derivative,
    runs_with_preprocessed,
)
from bidsapp.modalities.dwi.bids.prepared import PREPARED
from bidsapp.modalities.dwi.bids.survey import acquisition_of, examine_run, survey

files = Files(
    words='dMRI',
    find=runs_with_preprocessed,
    survey=survey,
    check=examine_run,
    acquisition=acquisition_of,
    prepared=PREPARED,
    looked_for='sub-*/[ses-*/]dwi/*_dwi.nii.gz',
    pipelines=SUPPORTED,
    check_pipeline=check_derivative,
    helps=HELPS,
    ignored=('*.bval', '*.bvec', '*_dwimap.*', '*_timeseries.*'),
)
