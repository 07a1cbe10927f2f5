"""What preprocessing of a dMRI run promises, and how it is named."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bidsapp.bids.runs import Prepared
from bidsapp.core import Output

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bidsapp.bids.runs import Run

MASK = Output('mask', {'suffix': 'mask'}, 'uint8', description='Brain.')
FA = Output('fa', {'suffix': 'FA'}, 'float32', description='Fractional anisotropy, 0 to 1.')
ADC = Output('adc', {'suffix': 'ADC'}, 'float32', units='mm^2/s', description='Mean diffusivity.')
NOISE_FLOOR = Output(
    'noise_floor', {'suffix': 'dwimap', 'param': 'noisefloor'}, 'float32',
    description='Standard deviation of the noise before the magnitude was taken and before '
    'denoising, scaled as the signal is: what the floor of low signals comes from.',
)  # fmt: skip
NOISE_SPREAD = Output(
    'noise_spread', {'suffix': 'dwimap', 'param': 'noisespread'}, 'float32',
    description='Standard deviation of what denoising left of the noise in each volume.',
)  # fmt: skip
#: The noise of a run that was denoised, in the order of the steps' image of it.
NOISE = (NOISE_FLOOR, NOISE_SPREAD)
#: Output and the source it is written with; the preprocessed dMRI itself is named apart.
WITH_PREPROCESSING = ((MASK, 'brain'), (FA, 'reference'), (ADC, 'reference'))
#: Entities of the table of confounds (head motion by volume), and of what explains it.
CONFOUNDS = tuple(
    {'desc': 'confounds', 'suffix': 'timeseries', 'extension': extension}
    for extension in ('.json', '.tsv')
)


def confounds(run: Run) -> tuple[Mapping[str, str], ...]:
    """A run that another pipeline has corrected has its confounds there."""
    return () if run.taken_from else CONFOUNDS


PREPARED = Prepared(
    datatype='dwi',
    main='dwi',
    names={
        **{k: {'desc': 'preproc', 'suffix': 'dwi', 'extension': f'.{k}'} for k in ('bval', 'bvec')},
        'mask': {'desc': 'brain', 'suffix': 'mask', 'extension': '.nii.gz'},
        'dwi': {'desc': 'preproc', 'suffix': 'dwi', 'extension': '.nii.gz'},
    },
    outputs=WITH_PREPROCESSING,
    sometimes=tuple((output, 'preproc') for output in NOISE),
    besides=confounds,
    words='preprocessed dMRI (*_desc-preproc_dwi.nii.gz with mask and gradients)',
)
