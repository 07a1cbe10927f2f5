"""Steps: raw data read, coils combined, and the images that a run is known by written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nipype.interfaces.base import File, TraitedSpec, traits

from bidsapp.bids.dataset import IMAGES
from bidsapp.bids.images import load_volume
from bidsapp.bids.names import build, of_recording
from bidsapp.bids.scans import sidecar_of
from bidsapp.bids.write import write_image, write_json
from bidsapp.interfaces.base import ComputingInput, RecordingInput, Step
from bidsapp.modalities.kspace.bids.planes import assembled, planes_in
from bidsapp.modalities.kspace.bids.prepared import (
    AFTERWARDS,
    NUMBER,
    SEED,
    WHOLE,
    ZEROFILLED,
    Afterwards,
    acquisition_of_raw,
    opened,
    said_of,
)

#: File of the step and name of the output → what it is.
DESCRIBED = {
    'full': 'Magnitude of the image of every measured line, combined over coils',
    'zerofilled': ZEROFILLED.description.rstrip('.'),
}


class _ReadInput(ComputingInput):
    raw = File(exists=True, mandatory=True)
    number = traits.Int(mandatory=True, desc='of the image in its file')
    full = traits.Bool(mandatory=True, desc='every line was measured')
    undersample = traits.Float(0.0, usedefault=True, desc='R that is left; 0: all')
    seed = traits.Int(mandatory=True)


class _Images(TraitedSpec):
    full = File(desc='(X, Y, Z) of a full scan')
    zerofilled = File(desc='(X, Y, Z) of one with lines left out')
    quality = traits.Dict()
    warnings = traits.List(traits.Str)


class ReadScan(Step):
    """Slices of raw data turned, placed, averaged, whitened; coils combined."""

    input_spec = _ReadInput
    output_spec = _Images

    def step(self, folder: Path) -> dict[str, Any]:
        """One slice at a time. Raises BadData for samples that cannot be read or mapped."""
        given = self.inputs
        afterwards = Afterwards(given.undersample, given.seed) if given.undersample else None
        found: dict[str, Any] = {}
        steps: dict[str, Any] = {}
        warnings: dict[str, None] = {}
        with opened(Path(given.raw), given.number, afterwards) as samples:
            for kind in ['full'] * given.full + ['zerofilled'] * (
                not given.full or bool(afterwards)
            ):
                planes = []
                for seen in planes_in(samples, whole=kind == 'full'):
                    planes.append(seen.plane.zero_filled)
                    steps = _steps(seen)
                    warnings |= dict.fromkeys(seen.measured.warnings)
                array = assembled(planes, samples.image)
                found[kind] = str(_saved(folder / f'{kind}.nii', array, samples.image))
            image = samples.image
            simulated = {'Simulated': True} if given.raw.endswith(IMAGES) else {}
            said = {
                **steps,
                **simulated,
                **said_of(acquisition_of_raw(image, samples.mask)),
                'GeometryKnown': image.geometry_known,
                NUMBER: given.number,
            }
        if not image.geometry_known:
            warnings['nobody knows left from right: the file does not say where slices lie'] = None
        return {**found, 'quality': said, 'warnings': list(warnings)}


def _steps(seen: Any) -> dict[str, Any]:
    before, after = seen.planes.coils
    return {
        **seen.measured.steps,
        'CoilCompression': f'{before} to {after}, {seen.planes.kept:.2%} of the calibration '
                           "lines' energy",
        'CoilMaps': seen.plane.method,
        'PhaseHeld': 'that of the symmetric middle, for partial Fourier' if seen.planes.held
                          else 'none',
    }  # fmt: skip


def _saved(path: Path, array: np.ndarray, image: Any) -> Path:
    """An intermediate image where the file says it lies, or about the origin."""
    code = 'scanner' if image.geometry_known else 'aligned'
    made = nib.Nifti1Image(np.asarray(array, np.float32), image.affine)
    made.set_sform(image.affine, code)
    made.set_qform(image.affine, code)
    made.header.set_xyzt_units('mm', 'sec')
    nib.save(made, path)
    return path


class _WriteInput(RecordingInput):
    full = File(exists=True)
    zerofilled = File(exists=True)
    quality = traits.Dict(mandatory=True)
    warnings = traits.List(traits.Str)
    out_root = traits.Str(mandatory=True)
    entities = traits.Dict(mandatory=True)
    sources = traits.List(traits.Str, mandatory=True, desc='BIDS URIs')
    notes = traits.List(traits.Str)
    scan = traits.Dict(desc='what the JSON beside the raw data says')
    undersample = traits.Float(0.0, usedefault=True)
    seed = traits.Int(mandatory=True)


class _Written(TraitedSpec):
    image = File()


class WriteScan(Step):
    """The zero-filled image, and of a full scan the reference, the one it is known by last."""

    input_spec = _WriteInput
    output_spec = _Written

    def step(self, folder: Path) -> dict[str, Any]:
        """Where the last is, all are."""
        given = self.inputs
        root, written = Path(given.out_root), ''
        own = {
            'Sources': list(given.sources), 'Units': 'arbitrary', 'SkullStripped': False,
            **given.scan, **given.quality, 'Warnings': list(given.warnings),
            'Notes': list(given.notes), **given.made_from(),
        }  # fmt: skip
        left = {AFTERWARDS: given.undersample, SEED: given.seed} if given.undersample else {}
        for kind, named, more in (
            ('zerofilled', ZEROFILLED.entities_from('zerofilled'), left), ('full', WHOLE, {}),
        ):  # fmt: skip
            image = getattr(given, kind)
            if not isinstance(image, str):
                continue
            entities = {**of_recording(given.entities), **named, 'extension': '.nii.gz'}
            target = root / build(entities)
            said = {'Description': DESCRIBED[kind] + '.', **own, **more}
            if kind == 'full':  # of which nothing is left out
                said |= {'Acceleration': 1.0, 'SamplingPattern': 'all lines'}
            write_json(sidecar_of(target), said)
            write_image(target, load_volume(Path(image)), Path(image), 'float32')
            written = str(target)
        return {'image': written}
