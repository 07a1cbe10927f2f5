"""Steps of diffusion preprocessing: files in, files out, arrays in between."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    TraitedSpec,
    Undefined,
    isdefined,
    traits,
)

from bidsapp.bids.samples import load_volume, open_image, read_numbers
from bidsapp.core import B0_THRESHOLD, BadData, GradientTable
from bidsapp.interfaces.base import Step
from bidsapp.physics import gradients


def save_like(path: Path, array: np.ndarray, like: Path, dtype: str = 'float32') -> Path:
    """Write an intermediate image on the grid of ``like``."""
    import nibabel as nib

    nib.save(nib.Nifti1Image(np.asarray(array, dtype), open_image(like).affine), path)
    return path


def save_table(folder: Path, gtab: GradientTable, affine: np.ndarray) -> dict[str, str]:
    """Write bval and bvec files; (bval, bvec) outputs."""
    np.savetxt(folder / 'dwi.bval', gtab.bvals[None], fmt='%.6g')
    np.savetxt(folder / 'dwi.bvec', gradients.to_fsl(gtab, affine), fmt='%.8f')
    return {'bval': str(folder / 'dwi.bval'), 'bvec': str(folder / 'dwi.bvec')}


def read_table(dwi: Path, bval: Path, bvec: Path) -> GradientTable:
    """World-axes table of an examined run."""
    affine = open_image(dwi).affine
    return gradients.from_fsl(read_numbers(bvec), read_numbers(bval).ravel(), affine)


class _Scan(BaseInterfaceInputSpec):
    dwi = File(exists=True, mandatory=True)
    bval = File(exists=True, mandatory=True)
    bvec = File(exists=True, mandatory=True)


class _Corrected(TraitedSpec):
    dwi = File(exists=True)
    quality = traits.Dict(desc='what shall be said of it in the sidecar')


class _Examined(TraitedSpec):
    bval = File(exists=True)
    bvec = File(exists=True)
    warnings = traits.List(traits.Str)


class ExamineScan(Step):
    """Look at header, table and voxels before anything is done with them."""

    input_spec = _Scan
    output_spec = _Examined

    def step(self, folder: Path) -> dict[str, Any]:
        """Raises BadData for a scan that cannot be used."""
        path = Path(self.inputs.dwi)
        image = open_image(path)
        if len(image.shape) != 4:
            raise BadData(f'{path} has {len(image.shape)} dimensions; expected 4 (x, y, z, volume)')
        bvecs, bvals, findings = gradients.examine(
            read_numbers(Path(self.inputs.bvec)),
            read_numbers(Path(self.inputs.bval)),
            image.shape[3],
        )
        if errors := [f.message for f in findings if f.severity == 'error']:
            raise BadData(f'{path}: ' + '; '.join(errors))
        data = load_volume(path)
        if bad := int((~np.isfinite(data)).sum()):
            raise BadData(
                f'{path} holds {bad} voxels that are not numbers (NaN or infinite). '
                'Convert it again from the scanner files.'
            )
        if not data.any():
            raise BadData(f'{path} holds only zeros')
        table = gradients.from_fsl(bvecs, bvals, image.affine)
        warnings = [f.message for f in findings]
        return {**save_table(folder, table, image.affine), 'warnings': warnings}


class _Masked(TraitedSpec):
    mask = File(exists=True)
    warnings = traits.List(traits.Str)


class BrainMask(Step):
    """Which voxels are brain, from the mean b=0 and the mean weighted image."""

    input_spec = _Scan
    output_spec = _Masked

    def step(self, folder: Path) -> dict[str, Any]:
        """Raises BadData if no brain is found."""
        from bidsapp.physics import brain

        path = Path(self.inputs.dwi)
        data, affine = load_volume(path), open_image(path).affine
        b0 = read_numbers(Path(self.inputs.bval)).ravel() < B0_THRESHOLD
        mask = brain.brain_mask(data[..., b0].mean(-1), data[..., ~b0].mean(-1), affine)
        if not mask.any():
            raise BadData(f'{path}: no brain was found in it')
        doubt = brain.plausible(mask, affine)
        return {
            'mask': str(save_like(folder / 'mask.nii.gz', mask, path, 'uint8')),
            'warnings': [doubt] if doubt else [],
        }


class _MotionInput(_Scan):
    mask = File(exists=True, mandatory=True)
    phase_encoding = traits.Str(desc="'i', 'j-', …; undefined where it is not known")
    device = traits.Str('cpu', usedefault=True, nohash=True)


class _MotionOutput(_Corrected):
    bval = File(exists=True)
    bvec = File(exists=True)


class CorrectMotion(Step):
    """Head motion and eddy currents, with the gradients turned along."""

    input_spec = _MotionInput
    output_spec = _MotionOutput

    def step(self, folder: Path) -> dict[str, Any]:
        """Every volume registered to its prediction from the others."""
        from bidsapp.physics.motion import correct_motion

        path = Path(self.inputs.dwi)
        affine = open_image(path).affine
        axis = self.inputs.phase_encoding if isdefined(self.inputs.phase_encoding) else None
        result = correct_motion(
            load_volume(path),
            affine,
            read_table(path, Path(self.inputs.bval), Path(self.inputs.bvec)),
            load_volume(Path(self.inputs.mask)) > 0,
            axis,
            device=self.inputs.device,
        )
        moved = np.asarray(result.framewise_displacement)
        quality = {
            'Method': 'each volume registered to its prediction from the others',
            'EddyCurrentModel': f'affine along {axis}' if axis else 'affine, no axis assumed',
            'FramewiseDisplacementMean': round(float(moved.mean()), 3),
            'FramewiseDisplacementMax': round(float(moved.max()), 3),
            'FramewiseDisplacement': [round(float(x), 3) for x in moved],
            'ResidualBefore': round(float(np.mean(result.residual_before)), 4),
            'ResidualAfter': round(float(np.mean(result.residual_after)), 4),
            'Units': 'mm; residuals are relative to the signal',
        }
        return {
            'dwi': str(save_like(folder / 'dwi.nii.gz', result.data, path)),
            **save_table(folder, result.gtab, affine),
            'quality': quality,
        }


class _BiasInput(BaseInterfaceInputSpec):
    dwi = File(exists=True, mandatory=True)
    bval = File(exists=True, mandatory=True)
    mask = File(exists=True, mandatory=True)


class CorrectBias(Step):
    """One smooth receive field, taken from the mean b=0 and divided out of every volume."""

    input_spec = _BiasInput
    output_spec = _Corrected

    def step(self, folder: Path) -> dict[str, Any]:
        """The quality is the field's range in the brain."""
        from bidsapp.physics.brain import bias_field

        path = Path(self.inputs.dwi)
        data, mask = load_volume(path), load_volume(Path(self.inputs.mask)) > 0
        b0 = read_numbers(Path(self.inputs.bval)).ravel() < B0_THRESHOLD
        field = bias_field(data[..., b0].mean(-1), mask, open_image(path).affine)
        inside = field[mask]
        quality = {
            'Method': 'N4 on the mean b=0 image',
            'FieldRange': [round(float(np.percentile(inside, q)), 3) for q in (1, 99)],
        }
        return {
            'dwi': str(save_like(folder / 'dwi.nii.gz', data / field[..., None], path)),
            'quality': quality,
        }


class _MapsInput(_Scan):
    mask = File(exists=True, mandatory=True)


class _Maps(TraitedSpec):
    fa = File(exists=True)
    md = File(exists=True)


class TensorMaps(Step):
    """Fractional anisotropy and mean diffusivity in the brain."""

    input_spec = _MapsInput
    output_spec = _Maps

    def step(self, folder: Path) -> dict[str, Any]:
        """Weighted least squares on the volumes of low b."""
        from bidsapp.physics.diffusion import fit_tensor

        path = Path(self.inputs.dwi)
        table = read_table(path, Path(self.inputs.bval), Path(self.inputs.bvec))
        mask = load_volume(Path(self.inputs.mask)) > 0
        tensor = fit_tensor(load_volume(path), table, mask)
        return {
            'fa': str(save_like(folder / 'fa.nii.gz', tensor.fa, path)),
            'md': str(save_like(folder / 'md.nii.gz', tensor.md, path)),
        }


class _WriteInput(_Scan):
    mask = File(exists=True, mandatory=True)
    fa = File(exists=True, mandatory=True)
    md = File(exists=True, mandatory=True)
    raw = File(exists=True, mandatory=True, desc='the raw image whose grid and header are kept')
    raw_root = traits.Str(mandatory=True)
    out_root = traits.Str(mandatory=True)
    entities = traits.Dict(mandatory=True)
    metadata = traits.Dict(desc='of the raw sidecar, kept')
    notes = traits.List(traits.Str)
    scan_warnings = traits.List(traits.Str)
    mask_warnings = traits.List(traits.Str)
    motion = traits.Dict()
    bias = traits.Dict()


class _Written(TraitedSpec):
    dwi = File(exists=True)
    bval = File(exists=True)
    bvec = File(exists=True)
    mask = File(exists=True)


#: Fields of the raw sidecar that still hold after preprocessing.
KEPT = (
    'Manufacturer', 'ManufacturersModelName', 'MagneticFieldStrength', 'EchoTime',
    'RepetitionTime', 'FlipAngle', 'PhaseEncodingDirection', 'PhaseEncodingAxis',
    'TotalReadoutTime', 'EffectiveEchoSpacing',
)  # fmt: skip


class WritePreprocessed(Step):
    """The preprocessed run, its mask and its tensor maps, as BIDS derivatives."""

    input_spec = _WriteInput
    output_spec = _Written

    def step(self, folder: Path) -> dict[str, Any]:
        """The dMRI comes last: where it is, the rest is."""
        from bidsapp.interfaces.outputs import write_preprocessed

        get = self.inputs.get
        settings = {k: v for k, v in get().items() if v is not Undefined}
        metadata = {k: v for k, v in settings.get('metadata', {}).items() if k in KEPT}
        sidecar = {
            **json.loads(json.dumps(metadata)),
            'Warnings': settings.get('scan_warnings', []) + settings.get('mask_warnings', []),
            'Notes': settings.get('notes', []),
            'MotionCorrection': settings.get('motion', {}),
            'BiasFieldCorrection': settings.get('bias', {}),
        }
        return write_preprocessed(settings, sidecar)
