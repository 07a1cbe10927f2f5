"""What preprocessing of a dMRI run promises, and how it is named."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bidsapp.bids.names import build, source_entities
from bidsapp.bids.outputs import files_of
from bidsapp.core import Output

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MASK = Output('mask', {'suffix': 'mask'}, 'uint8', description='Brain.')
FA = Output('fa', {'suffix': 'FA'}, 'float32', description='Fractional anisotropy, 0 to 1.')
ADC = Output('adc', {'suffix': 'ADC'}, 'float32', units='mm^2/s', description='Mean diffusivity.')
#: Output and the source it is written with; the preprocessed dMRI itself is named apart.
WITH_PREPROCESSING = ((MASK, 'brain'), (FA, 'reference'), (ADC, 'reference'))


def preprocessed_files(entities: Mapping[str, str]) -> dict[str, Path]:
    """Below the root: the preprocessed dMRI with its table, sidecar and mask."""
    named = {**source_entities(entities), 'desc': 'preproc', 'suffix': 'dwi'}
    files = {kind: build({**named, 'extension': f'.{kind}'}) for kind in ('json', 'bval', 'bvec')}
    files['mask'] = files_of(entities, MASK, 'brain')[-1]
    files['dwi'] = build({**named, 'extension': '.nii.gz'})
    return files


def confounds_files(entities: Mapping[str, str]) -> list[Path]:
    """Below the root: the table of confounds and what explains it."""
    named = {**source_entities(entities), 'desc': 'confounds', 'suffix': 'timeseries'}
    return [build({**named, 'extension': extension}) for extension in ('.json', '.tsv')]


def promised_by_preprocessing(entities: Mapping[str, str], corrected: bool = True) -> list[Path]:
    """Every file, below the root, that preprocessing one run leaves.

    A run that another pipeline has ``corrected`` has its confounds there.
    """
    maps = [p for output, source in WITH_PREPROCESSING for p in files_of(entities, output, source)]
    confounds = confounds_files(entities) if corrected else []
    return [*maps, *confounds, *preprocessed_files(entities).values()]
