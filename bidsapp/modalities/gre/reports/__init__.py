"""Pictures of a gradient-echo run."""

from __future__ import annotations

from bidsapp.modalities.gre.reports.methods import METHODS, REFERENCES
from bidsapp.modalities.gre.reports.scan import background, drawn, facts
from bidsapp.reports.page import Page

page = Page(
    background=background,
    background_name='magnitude',
    background_words='magnitude of the echoes',
    figures=drawn,
    facts=facts,
    methods=METHODS,
    references=REFERENCES,
    processing=('Phase', 'FieldFit', 'BackgroundRemoval', 'PhaseSign', 'Notes'),
    sources={
        'reference': 'total variation, weighted (reference)',
        'tkd': 'truncated division',
        'tikhonov': 'Tikhonov',
    },
    tables={'stats': ('Susceptibility by region, with the deviation of its mean.', 'ppm')},
)
