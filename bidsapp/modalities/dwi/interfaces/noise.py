"""The noise of a run, led as an image through what is done to the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from nipype.interfaces.base import File, TraitedSpec, isdefined, traits

from bidsapp.bids.images import load_volume
from bidsapp.interfaces.base import Step, StepInput
from bidsapp.interfaces.files import save_like


class _NoiseInput(StepInput):
    noise = File(exists=True, desc='(X, Y, Z, 2) as Denoise has it; undefined where it is unknown')
    displacement = File(exists=True, desc='of susceptibility, in voxels')
    axis = traits.Int(desc='along which')
    field = File(exists=True, mandatory=True, desc='receive field that the run was divided by')


class _Noise(TraitedSpec):
    noise = File(desc='(X, Y, Z, 2) in the unit and on the grid of the corrected run')


class CarryNoise(Step):
    """Noise belongs to the scanner, not to the head: it is moved by the distortion alone.

    It is scaled as the signal is, by the volume factor and the receive field; means over
    neighbours, which an interpolation takes, are not counted as less of it.
    """

    input_spec = _NoiseInput
    output_spec = _Noise

    def step(self, folder: Path) -> dict[str, Any]:
        """Nothing where nothing is known."""
        from bidsapp.physics.distortion import jacobian
        from bidsapp.physics.resampling import resampled_cubic

        if not isdefined(self.inputs.noise):
            return {}
        path = Path(self.inputs.noise)
        noise = load_volume(path)
        if isdefined(self.inputs.displacement):
            shift, axis = load_volume(Path(self.inputs.displacement)), self.inputs.axis
            factor = jacobian(shift, axis)
            for kind in range(noise.shape[-1]):
                moved = resampled_cubic(noise[..., kind], np.eye(4), shift, axis)
                noise[..., kind] = np.maximum(moved * factor, 0)
        noise /= load_volume(Path(self.inputs.field))[..., None]
        return {'noise': str(save_like(folder / 'noise.nii', noise, path))}
