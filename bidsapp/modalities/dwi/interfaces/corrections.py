"""Steps of diffusion preprocessing that leave every voxel where it is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from nipype.interfaces.base import File, TraitedSpec, isdefined, traits

from bidsapp.bids.images import load_volume, open_image
from bidsapp.core import Case
from bidsapp.interfaces.base import ComputingInput, Step
from bidsapp.interfaces.files import load_mask, save_like
from bidsapp.modalities.dwi.bids.tables import (
    check_lengths,
    examine_table,
    examine_volumes,
    read_numbers,
)
from bidsapp.modalities.dwi.interfaces.files import (
    B0Input,
    CorrectedOutput,
    MaskedScanInput,
    ScanInput,
    mean_b0,
    read_table,
    save_table,
)
from bidsapp.modalities.dwi.physics import gradients
from bidsapp.problems import BadData, Unavailable

if TYPE_CHECKING:
    from bidsapp.modalities.dwi.physics.tables import Examined


class _ExamineInput(ScanInput):
    doubts = traits.List(traits.Str, desc='what the metadata gave to say')
    excluded = traits.List(traits.Int, desc='volumes that the user leaves out')


class _Examined(TraitedSpec):
    dwi = File(exists=True, desc='the run without volumes that cannot be used')
    bval = File(exists=True)
    bvec = File(exists=True)
    warnings = traits.List(traits.Str)
    b0_threshold = traits.Float(desc='s/mm2, the greatest b that counts as b = 0')
    kept = traits.List(traits.Int, desc='their numbers in the run as it came')
    left_out = traits.Dict(desc='number of each other volume, and why')
    gradient_check = traits.Dict(desc='does the table fit the data')


class ExamineScan(Step):
    """Look at header, table and voxels before anything is done with them."""

    input_spec = _ExamineInput
    output_spec = _Examined

    def step(self, folder: Path) -> dict[str, Any]:
        """Raises BadData for a scan that cannot be used.

        A table that does not fit the data is said, and used as it is.
        """
        from bidsapp.modalities.dwi.physics.gradient_check import check_table, finding

        path = Path(self.inputs.dwi)
        found = examine_table(
            path, *self.numbers(), self.inputs.b0_threshold, self.inputs.excluded or ()
        )
        _refuse(path, found)
        data = load_volume(path)
        if not data.any():
            raise BadData(f'{path} holds only zeros')
        found = examine_volumes(path, data, found)
        _refuse(path, found)
        check_lengths(data, found)
        if len(found.kept) < data.shape[3]:
            data = data[..., found.kept]
            path = save_like(folder / 'dwi.nii', data, path)
        affine = open_image(path).affine
        table = gradients.from_fsl(found.bvecs, found.bvals, affine, found.b0_threshold)
        test = check_table(data, table, affine)
        warnings = [f.message for f in (*found.findings, finding(test)) if f is not None]
        return {
            'dwi': str(path),
            **save_table(folder, table, affine),
            'kept': found.kept.tolist(),
            'left_out': {str(volume): why for volume, why in sorted(found.left_out.items())},
            'b0_threshold': found.b0_threshold,
            'warnings': [*(self.inputs.doubts or []), *warnings],
            'gradient_check': {
                'Passed': test.passed,
                'Decided': test.decided,
                'Margin': round(float(test.margin), 3),
                'Statement': test.statement,
            },
        }

    def numbers(self) -> tuple[np.ndarray, np.ndarray]:
        """bvecs and bvals as they are stored."""
        return read_numbers(Path(self.inputs.bvec)), read_numbers(Path(self.inputs.bval))


def _refuse(path: Path, found: Examined) -> None:
    if found.errors:
        raise BadData(f'{path}: ' + '; '.join(found.errors))


class _IngestedInput(_ExamineInput):
    b = File(exists=True, desc="the table in the world's axes, as MRtrix has it")


class ExamineIngested(ExamineScan):
    """The same look at a run that another pipeline has preprocessed, with its own conventions."""

    input_spec = _IngestedInput

    def numbers(self) -> tuple[np.ndarray, np.ndarray]:
        """bvecs and bvals as BIDS would store them."""
        from bidsapp.modalities.dwi.bids.ingest import ingested_table

        kinds = [k for k in ('dwi', 'bval', 'bvec', 'b') if isdefined(getattr(self.inputs, k))]
        case = Case({}, {kind: Path(getattr(self.inputs, kind)) for kind in kinds})
        table = ingested_table(case)
        return gradients.to_fsl(table, open_image(case.files['dwi']).affine), table.bvals


class _CleanedInput(ComputingInput):
    dwi = File(exists=True, mandatory=True)


class _DenoiseInput(_CleanedInput):
    interpolated = traits.Str(
        desc='where the metadata say that the image was; then nothing is done'
    )


class _Denoised(CorrectedOutput):
    noise = File(desc='(X, Y, Z, 2) its level before, and what is left of it; if it is known')


class Denoise(Step):
    """Marchenko-Pastur PCA: first, while the noise of neighbours is still independent."""

    input_spec = _DenoiseInput
    output_spec = _Denoised

    def step(self, folder: Path) -> dict[str, Any]:
        """A run of too few volumes, or that was interpolated, goes on as it is, which is said."""
        from bidsapp.modalities.dwi.physics.noise_floor import noise_floor
        from bidsapp.physics.denoising import denoise

        path = Path(self.inputs.dwi)
        try:
            if isdefined(self.inputs.interpolated):
                raise Unavailable(
                    f'{self.inputs.interpolated}: the noise of neighbours is not independent'
                )
            result = denoise(load_volume(path), device=self.inputs.device)
        except Unavailable as reason:
            return {'dwi': str(path), 'quality': {'Method': 'none', 'Reason': str(reason)}}
        floor = noise_floor(result.sigma, result.data, result.window)
        noise = np.stack([floor, result.left], -1)
        return {
            'dwi': str(save_like(folder / 'dwi.nii', result.data, path)),
            'noise': str(save_like(folder / 'noise.nii', noise, path)),
            'quality': {'Method': 'Marchenko-Pastur principal component analysis'},
        }


class _UnringInput(_CleanedInput):
    axes = traits.Tuple(traits.Int, traits.Int, mandatory=True, desc='of a slice')


class Unring(Step):
    """Gibbs ringing: local subvoxel shifts in each slice."""

    input_spec = _UnringInput
    output_spec = CorrectedOutput

    def step(self, folder: Path) -> dict[str, Any]:
        """Only for a scan whose k-space was sampled in full; the workflow sees to that."""
        from bidsapp.physics.ringing import unring

        path = Path(self.inputs.dwi)
        result = unring(load_volume(path), tuple(self.inputs.axes), device=self.inputs.device)
        written = save_like(folder / 'dwi.nii', result, path)
        return {'dwi': str(written), 'quality': {'Method': 'local subvoxel shifts'}}


class _BiasInput(B0Input):
    dwi = File(exists=True, mandatory=True)
    bval = File(exists=True, mandatory=True)
    mask = File(exists=True, mandatory=True)


class _Unbiased(CorrectedOutput):
    field = File(exists=True, desc='(X, Y, Z) that the run was divided by')


class CorrectBias(Step):
    """One smooth receive field, taken from the mean b=0 and divided out of every volume."""

    input_spec = _BiasInput
    output_spec = _Unbiased

    def step(self, folder: Path) -> dict[str, Any]:
        """The quality is the field's range in the brain."""
        from bidsapp.physics.brain import bias_field

        path = Path(self.inputs.dwi)
        mask = load_mask(Path(self.inputs.mask))
        b0 = mean_b0(path, Path(self.inputs.bval), self.inputs.b0_threshold)
        field = bias_field(b0, mask, open_image(path).affine)
        data = load_volume(path)
        data /= field[..., None].astype(data.dtype)
        quality = {
            'Method': 'N4 on the mean b=0 image',
            'FieldRange': [round(float(np.percentile(field[mask], q)), 3) for q in (1, 99)],
        }
        return {
            'dwi': str(save_like(folder / 'dwi.nii', data, path)),
            'field': str(save_like(folder / 'field.nii', field, path)),
            'quality': quality,
        }


class _Maps(TraitedSpec):
    fa = File(exists=True)
    md = File(exists=True)
    warnings = traits.List(traits.Str)


class TensorMaps(Step):
    """Fractional anisotropy and mean diffusivity in the brain."""

    input_spec = MaskedScanInput
    output_spec = _Maps

    def step(self, folder: Path) -> dict[str, Any]:
        """Weighted least squares on the volumes of low b."""
        from bidsapp.modalities.dwi.physics.diffusion import fit_tensor, implausible

        path = Path(self.inputs.dwi)
        table = read_table(
            path, Path(self.inputs.bval), Path(self.inputs.bvec), self.inputs.b0_threshold
        )
        mask = load_mask(Path(self.inputs.mask))
        tensor = fit_tensor(load_volume(path), table, mask)
        return {
            'warnings': implausible(tensor.fa[mask], tensor.md[mask]),
            'fa': str(save_like(folder / 'fa.nii', tensor.fa, path)),
            'md': str(save_like(folder / 'md.nii', tensor.md, path)),
        }
