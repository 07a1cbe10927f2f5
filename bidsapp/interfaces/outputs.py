"""What preprocessing promises for each run, and how it is written."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bidsapp.bids.names import build, source_entities
from bidsapp.bids.samples import load_volume
from bidsapp.bids.write import (
    files_of,
    own_uri,
    raw_uri,
    remove_leftovers,
    whole,
    write_image,
    write_json,
    write_output,
)
from bidsapp.core import Output

if TYPE_CHECKING:
    from collections.abc import Mapping

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


def promised_by_preprocessing(entities: Mapping[str, str]) -> list[Path]:
    """Every file, below the root, that preprocessing one run leaves."""
    maps = [p for output, source in WITH_PREPROCESSING for p in files_of(entities, output, source)]
    return [*maps, *preprocessed_files(entities).values()]


def write_preprocessed(given: Mapping[str, Any], sidecar: Mapping[str, Any]) -> dict[str, str]:
    """Write the run; returns the files for the steps that follow."""
    root, raw_root, raw = (Path(given[k]) for k in ('out_root', 'raw_root', 'raw'))
    entities = given['entities']
    files = {kind: root / path for kind, path in preprocessed_files(entities).items()}
    remove_leftovers(files['dwi'].parent)
    sources = [raw_uri(raw, raw_root)]
    doubts = list(given.get('mask_warnings', []))
    for (output, source), key in zip(WITH_PREPROCESSING, ('mask', 'fa', 'md'), strict=True):
        described: dict[str, Any] = {
            'Sources': sources if output is MASK else [own_uri(files['dwi'], root)]
        }
        if output is MASK:
            described |= {'Type': 'Brain', 'Warnings': doubts}
        write_output(root, entities, output, source, load_volume(Path(given[key])), raw, described)
    for kind in ('bval', 'bvec'):
        with whole(files[kind]) as hidden:
            shutil.copyfile(given[kind], hidden)
    description = {
        'Description': 'Diffusion MRI corrected for head motion, eddy currents and receive bias; '
        'gradients turned with the head. Not denoised, not unringed, not corrected for '
        'susceptibility distortion.',
        'Units': 'arbitrary',
        'SkullStripped': False,
        'Sources': sources,
        'DistortionCorrection': 'none',
        **sidecar,
    }
    write_json(files['json'], description)
    write_image(files['dwi'], load_volume(Path(given['dwi'])), raw, 'float32')
    return {kind: str(files[kind]) for kind in ('dwi', 'bval', 'bvec', 'mask')}
