"""Pictures of a dMRI run."""

from __future__ import annotations

from bidsapp.modalities.dwi.reports.methods import METHODS, REFERENCES
from bidsapp.modalities.dwi.reports.scan import background, drawn, facts
from bidsapp.reports.page import Page

page = Page(
    background=background,
    background_name='mean b=0 image',
    background_words='mean image without diffusion weighting',
    figures=drawn,
    facts=facts,
    methods=METHODS,
    references=REFERENCES,
    processing=(
        'CorrectedBy', 'Denoising', 'GibbsUnringing', 'MotionCorrection', 'DistortionCorrection',
        'BiasFieldCorrection', 'Registration', 'SkullStripped', 'Notes',
    ),
    sources={
        'csd': 'reference, spherical deconvolution',
        'tensor': 'reference, diffusion tensor',
        'noddi': 'reference, NODDI',
        'smt': 'spherical mean technique',
        'dki': 'reference, kurtosis imaging',
    },
    tables={'timeseries': ('Motion of the head and slices replaced, by volume.', 'mm, rad')},
)  # fmt: skip
