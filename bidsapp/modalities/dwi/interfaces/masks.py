"""Steps: which voxels of a dMRI run are brain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from nipype.interfaces.base import File, TraitedSpec, isdefined, traits

from bidsapp.bids.images import load_volume, open_image
from bidsapp.interfaces.base import Step, StepInput
from bidsapp.interfaces.files import load_mask, save_like
from bidsapp.modalities.dwi.bids.tables import read_numbers
from bidsapp.modalities.dwi.interfaces.files import ScanInput
from bidsapp.problems import BadData


class _Masked(TraitedSpec):
    mask = File(exists=True)
    warnings = traits.List(traits.Str)


class BrainMask(Step):
    """Which voxels are brain, from the mean b=0 and the mean weighted image."""

    input_spec = ScanInput
    output_spec = _Masked

    def step(self, folder: Path) -> dict[str, Any]:
        """Raises BadData if no brain is found."""
        from bidsapp.physics import brain

        path = Path(self.inputs.dwi)
        data, affine = load_volume(path), open_image(path).affine
        b0 = read_numbers(Path(self.inputs.bval)).ravel() <= self.inputs.b0_threshold
        weighted = data.sum(-1) - data[..., b0].sum(-1)
        mask = brain.brain_mask(data[..., b0].mean(-1), weighted / (~b0).sum(), affine)
        if not mask.any():
            raise BadData(f'{path}: no brain was found in it')
        doubt = brain.plausible(mask, affine)
        return {
            'mask': str(save_like(folder / 'mask.nii', mask, path, 'uint8')),
            'warnings': [doubt] if doubt else [],
        }


class _GivenMaskInput(StepInput):
    mask = File(exists=True, mandatory=True, desc='brain, on the grid of the raw run')
    displacement = File(exists=True, desc='of susceptibility, in voxels')
    axis = traits.Int(desc='along which')


class GivenMask(Step):
    """The brain as the user has drawn it on the raw run; susceptibility moves it as the run."""

    input_spec = _GivenMaskInput
    output_spec = _Masked

    def step(self, folder: Path) -> dict[str, Any]:
        """Raises BadData if nothing of it is left in the image."""
        from bidsapp.physics.resampling import resampled_cubic

        path = Path(self.inputs.mask)
        mask = load_mask(path)
        if isdefined(self.inputs.displacement):
            shift, axis = load_volume(Path(self.inputs.displacement)), self.inputs.axis
            mask = resampled_cubic(mask.astype('float32'), np.eye(4), shift, axis) > 0.5
        if not mask.any():
            raise BadData(f'{path}: nothing of it is left where the run is corrected')
        return {'mask': str(save_like(folder / 'mask.nii', mask, path, 'uint8')), 'warnings': []}
