"""Step: what the preparation of a gradient-echo run leaves, written as BIDS derivatives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nipype.interfaces.base import File, TraitedSpec, Undefined, traits

from bidsapp.bids.images import load_volume
from bidsapp.bids.names import build, source_entities
from bidsapp.bids.outputs import write_output
from bidsapp.bids.scans import sidecar_of
from bidsapp.bids.write import write_image, write_json
from bidsapp.interfaces.base import RecordingInput, Step
from bidsapp.modalities.gre.bids.direction import FIELD
from bidsapp.modalities.gre.bids.prepared import BRAIN, FURTHER, NOISE_FIELD, PREPARED

#: Kind of file → unit and description.
DESCRIBED = {
    'total_magnitude': ('arbitrary', 'Magnitude of the echoes, weighted by their times squared'),
    'total': ('Hz', 'Field of sources within and outside the brain, above the scanner frequency'),
    'r2star': ('1/s', 'Effective transverse relaxation rate'),
    't2star': ('s', 'Effective transverse relaxation time; 0 outside the brain'),
    'swi': (
        'arbitrary',
        'Susceptibility-weighted image: mean over echoes of the magnitude, '
        'darkened by the phase of paramagnetic matter',
    ),
    'minip': (
        'arbitrary',
        'Least value of the susceptibility-weighted image in a slab of 14 mm around each slice',
    ),
    'magnitude': ('arbitrary', 'Magnitude of the echoes, weighted by their times squared'),
    'mask': ('', 'Where in the brain the phase can be believed'),
    'field': ('Hz', 'Field of sources within the brain; 0 where it is not known'),
}
#: Fields of the main sidecar that tell how the field was found, and the inputs that say it.
QUALITY = {
    'Phase': 'phase_quality',
    'FieldFit': 'field_quality',
    'BackgroundRemoval': 'background_quality',
    'PhaseSign': 'sign_quality',
}


class _WriteInput(RecordingInput):
    like = File(exists=True, mandatory=True, desc='the image whose grid and header are kept')
    out_root = traits.Str(mandatory=True)
    entities = traits.Dict(mandatory=True)
    sources = traits.List(traits.Str, mandatory=True, desc='BIDS URIs')
    imaging_mhz = traits.Float(mandatory=True)
    frequency_from = traits.Str(mandatory=True)
    direction = traits.List(traits.Float, mandatory=True, desc='of B0 along the voxel axes')
    echo_times = traits.List(traits.Float, desc='s')
    notes = traits.List(traits.Str)
    brain = File(exists=True, mandatory=True)
    mask = File(exists=True, mandatory=True, desc='where phase can be believed')
    magnitude = File(exists=True, mandatory=True)
    field = File(exists=True, mandatory=True, desc='local, Hz')
    total = File(exists=True, desc='total, Hz')
    r2star = File(exists=True)
    t2star = File(exists=True)
    swi = File(exists=True)
    minip = File(exists=True)
    noise = traits.Float(mandatory=True, desc='of the field times the magnitude, Hz')
    phase_quality = traits.Dict()
    field_quality = traits.Dict()
    background_quality = traits.Dict()
    sign_quality = traits.Dict()
    survey_warnings = traits.List(traits.Str)
    phase_warnings = traits.List(traits.Str)
    mask_warnings = traits.List(traits.Str)
    field_warnings = traits.List(traits.Str)
    sign_warnings = traits.List(traits.Str)


class _Written(TraitedSpec):
    magnitude = File()
    mask = File()
    field = File()


class WriteField(Step):
    """Masks, fields with their magnitudes, R2* and T2*; each whole, the local field last."""

    input_spec = _WriteInput
    output_spec = _Written

    def step(self, folder: Path) -> dict[str, Any]:
        """Where the local field is, the rest is."""
        given = {k: v for k, v in self.inputs.get().items() if v is not Undefined}
        root, like, entities = Path(given['out_root']), Path(given['like']), given['entities']
        own = {'Sources': given['sources'], **self.inputs.made_from()}
        brain = {'Type': 'Brain', 'Warnings': given.get('mask_warnings', []), **own}
        write_output(root, entities, BRAIN, 'brain', load_volume(Path(given['brain'])), like, brain)
        if 'total' in given:
            given['total_magnitude'] = given['magnitude']
        written = {}
        for kind, (unit, words) in DESCRIBED.items():
            if kind not in given:
                continue
            named = {**FURTHER, **PREPARED.names}[kind]
            target = root / build({**source_entities(entities), **named})
            kept = {'Units': unit, 'SkullStripped': True} if unit else {'Type': 'Brain'}
            said = {'Description': words + '.', **kept, **own}
            if kind == PREPARED.main:
                said |= self.found(given)
            dtype = 'uint8' if kind == 'mask' else 'float32'
            write_json(sidecar_of(target), said)
            write_image(target, load_volume(Path(given[kind])), like, dtype)
            written[kind] = str(target)
        return {kind: written[kind] for kind in PREPARED.names}

    @staticmethod
    def found(given: dict[str, Any]) -> dict[str, Any]:
        """What the sidecar of the local field says of how it was found."""
        return {
            'ImagingFrequency': given['imaging_mhz'],
            'FrequencyFrom': given['frequency_from'],
            'EchoTimes': given.get('echo_times', []),
            FIELD: given['direction'],
            NOISE_FIELD: given['noise'],
            **{name: given.get(key, {}) for name, key in QUALITY.items()},
            'Warnings': [
                warning
                for of in ('survey', 'phase', 'mask', 'field', 'sign')
                for warning in given.get(f'{of}_warnings', [])
            ],
            'Notes': given.get('notes', []),
        }
