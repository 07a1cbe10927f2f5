"""Pictures of a reconstructed scan."""

from __future__ import annotations

from bidsapp.modalities.kspace.reports.methods import METHODS, REFERENCES
from bidsapp.modalities.kspace.reports.scan import drawn, facts
from bidsapp.reports.page import Page

page = Page(
    figures=drawn,
    facts=facts,
    methods=METHODS,
    references=REFERENCES,
    processing=(
        'Whitening', 'Noise', 'Averages', 'ReversedLines', 'ReadoutOversampling', 'LeftOut',
        'Calibration', 'CoilCompression', 'CoilMaps', 'PhaseHeld', 'SamplingPattern', 'Notes',
    ),
    sources={
        'full': 'all lines (reference)',
        'zerofilled': 'zero-filled',
        'sense': 'CG-SENSE',
        'tv': 'total variation',
    },
)  # fmt: skip
