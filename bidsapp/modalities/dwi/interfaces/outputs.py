"""What preprocessing promises for each run, and how it is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from nipype.interfaces.base import File, TraitedSpec, Undefined, traits

from bidsapp.bids.derivatives import own_uri
from bidsapp.bids.images import load_volume
from bidsapp.bids.names import build, source_entities
from bidsapp.bids.outputs import write_output
from bidsapp.bids.prepared import main_sidecar, prepared_files
from bidsapp.bids.write import whole, write_image, write_json
from bidsapp.interfaces.base import RecordingInput, Step
from bidsapp.interfaces.files import load_mask
from bidsapp.modalities.dwi.bids.prepared import (
    CONFOUNDS,
    MASK,
    NOISE,
    PREPARED,
    WITH_PREPROCESSING,
)
from bidsapp.modalities.dwi.bids.tables import B0_FIELD
from bidsapp.modalities.dwi.interfaces.files import MaskedScanInput
from bidsapp.modalities.dwi.physics.gradients import B0_THRESHOLD

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Fields of the raw sidecar that still hold after preprocessing.
KEPT = (
    'Manufacturer', 'ManufacturersModelName', 'MagneticFieldStrength', 'EchoTime',
    'RepetitionTime', 'FlipAngle', 'PhaseEncodingDirection', 'PhaseEncodingAxis',
    'TotalReadoutTime', 'EffectiveEchoSpacing', 'SpatialReference',
)  # fmt: skip
#: Field of the sidecar, input of the writer, and what the description calls it.
CORRECTIONS = (
    ('Denoising', 'denoising', 'noise'),
    ('GibbsUnringing', 'unringing', 'Gibbs ringing'),
    ('MotionCorrection', 'motion', 'head motion and eddy currents'),
    ('DistortionCorrection', 'distortion', 'susceptibility distortion'),
    ('BiasFieldCorrection', 'bias', 'receive bias'),
)
NONE = 'none'
#: Columns of the confounds table.
COLUMNS = {
    **{
        f'trans_{a}': {
            'Description': f'Translation of the head, world {a}; the shift by eddy currents is '
            'not in it',
            'Units': 'mm',
        }
        for a in 'xyz'
    },
    **{
        f'rot_{a}': {'Description': f'Rotation of the head about world {a}', 'Units': 'rad'}
        for a in 'xyz'
    },
    'framewise_displacement': {
        'Description': 'Sum of the absolute changes of the six since the volume before, rotations '
        'as arcs at 50 mm (Power 2012)', 'Units': 'mm'},
    'outlier_slices': {'Description': 'Slices that had lost signal and were replaced by what the '
                       'other volumes predict'},
    'residual': {'Description': 'RMS difference in the brain from what the other volumes predict, '
                 'after correction, over the RMS of the volume'},
}  # fmt: skip


class _WriteInput(MaskedScanInput, RecordingInput):
    fa = File(exists=True, mandatory=True)
    md = File(exists=True, mandatory=True)
    like = File(exists=True, mandatory=True, desc='the image whose grid and header are kept')
    out_root = traits.Str(mandatory=True, desc="'': in the step's own folder")
    entities = traits.Dict(mandatory=True)
    sources = traits.List(traits.Str, mandatory=True, desc='BIDS URIs')
    metadata = traits.Dict(desc='of the sidecar that came with the run')
    notes = traits.List(traits.Str)
    scan_warnings = traits.List(traits.Str)
    motion_warnings = traits.List(traits.Str)
    map_warnings = traits.List(traits.Str)
    left_out = traits.Dict(desc='number of each volume that is not in it, and why')
    mask_warnings = traits.List(traits.Str)
    gradient_check = traits.Dict()
    b0_threshold = traits.Float(B0_THRESHOLD, usedefault=True)
    denoising = traits.Dict()
    unringing = traits.Dict()
    motion = traits.Dict()
    distortion = traits.Dict()
    bias = traits.Dict()
    corrected_by = traits.Str(desc='another pipeline that has done all this')
    confounds = File(exists=True)
    noise = File(exists=True, desc='(X, Y, Z, 2) before denoising, and what is left of it')


class _Written(TraitedSpec):
    dwi = File(exists=True)
    bval = File(exists=True)
    bvec = File(exists=True)
    mask = File(exists=True)


class WritePreprocessed(Step):
    """The preprocessed run, its mask, its confounds and its tensor maps, as BIDS derivatives."""

    input_spec = _WriteInput
    output_spec = _Written

    def step(self, folder: Path) -> dict[str, Any]:
        """The dMRI comes last: where it is, the rest is."""
        given = {k: v for k, v in self.inputs.get().items() if v is not Undefined}
        given['out_root'] = given['out_root'] or str(folder)
        root, like, entities = Path(given['out_root']), Path(given['like']), given['entities']
        files = {kind: root / path for kind, path in prepared_files(PREPARED, entities).items()}
        made_from = self.inputs.made_from()
        space = {'SpatialReference': given['sources'][0]} if 'space' in entities else {}
        for (output, source), key in zip(WITH_PREPROCESSING, ('mask', 'fa', 'md'), strict=True):
            sources = given['sources'] if output is MASK else [own_uri(files['dwi'], root)]
            described: dict[str, Any] = {'Sources': sources, **space, **made_from}
            if output is MASK:
                described |= {'Type': 'Brain', 'Warnings': given.get('mask_warnings', [])}
            array = load_volume(Path(given[key]))
            write_output(root, entities, output, source, array, like, described)
        if 'noise' in given:
            given['denoising'] = {**given['denoising'], **write_noise(given, space | made_from)}
        if 'confounds' in given:
            own = source_entities(entities)
            explained, table = (root / build({**own, **named}) for named in CONFOUNDS)
            write_json(explained, COLUMNS)
            with whole(table) as hidden:
                shutil.copyfile(given['confounds'], hidden)
        for kind in ('bval', 'bvec'):
            with whole(files[kind]) as hidden:
                shutil.copyfile(given[kind], hidden)
        write_json(root / main_sidecar(PREPARED, entities), {**sidecar_of(given), **made_from})
        write_image(files['dwi'], load_volume(Path(given['dwi'])), like, 'float32')
        return {kind: str(files[kind]) for kind in ('dwi', 'bval', 'bvec', 'mask')}


def write_noise(given: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Write the maps of the noise, ``more`` in their sidecars; what the run's own says of them."""
    root, like, entities = Path(given['out_root']), Path(given['like']), given['entities']
    both, brain = load_volume(Path(given['noise'])), load_mask(Path(given['mask']))
    described = {'Sources': given['sources'], **more}
    written = [
        write_output(root, entities, output, 'preproc', both[..., k], like, described)
        for k, output in enumerate(NOISE)
    ]
    medians = [float(f'{np.median(both[brain, k]):.4g}') for k in range(len(NOISE))]
    return {
        'NoiseMedian': medians[0],
        'NoiseLeftMedian': medians[1],
        'NoiseMaps': [own_uri(path, root) for path in written],
    }


def sidecar_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """What the sidecar of a preprocessed run says: what was corrected, how, and what was not."""
    metadata = {k: v for k, v in given.get('metadata', {}).items() if k in KEPT}
    done = {field: given.get(key, {'Method': NONE}) for field, key, _ in CORRECTIONS}
    words = {field: name for field, _, name in CORRECTIONS}
    corrected = [words[field] for field in done if done[field].get('Method') != NONE]
    left = [words[field] for field in done if done[field].get('Method') == NONE]
    description = 'Diffusion MRI'
    if corrected:
        description += f' corrected for {", ".join(corrected)}; gradients turned with the head'
    if left:
        description += f'. Not corrected for {", ".join(left)}'
    if 'corrected_by' in given:
        description = f'Diffusion MRI as {given["corrected_by"]} has left it'
        done = {'CorrectedBy': given['corrected_by']}
    content = {
        'Description': description + '.',
        'Units': 'arbitrary',
        'SkullStripped': False,
        'Sources': given['sources'],
        **metadata,
        'Warnings': [
            warning
            for of in ('scan', 'motion', 'mask', 'map')
            for warning in given.get(f'{of}_warnings', [])
        ],
        'VolumesLeftOut': given.get('left_out', {}),
        'Notes': given.get('notes', []),
        B0_FIELD: given.get('b0_threshold', B0_THRESHOLD),
        'GradientTableTest': given.get('gradient_check', {}),
        **done,
    }
    return dict(json.loads(json.dumps(content)))
