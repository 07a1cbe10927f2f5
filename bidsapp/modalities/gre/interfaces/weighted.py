"""Step: the susceptibility-weighted image and its minimum projection."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nipype.interfaces.base import File, TraitedSpec, traits

from bidsapp.bids.images import load_volume, open_image
from bidsapp.interfaces.base import Step, StepInput
from bidsapp.interfaces.files import load_mask, save_like
from bidsapp.modalities.gre.interfaces.signal import load_echoes


class _WeightInput(StepInput):
    magnitude = File(exists=True, mandatory=True, desc='(X, Y, Z, E)')
    mask = File(exists=True, mandatory=True, desc='brain')
    echo_times = traits.List(traits.Float, mandatory=True, desc='s')
    field = File(exists=True, mandatory=True, desc='local, Hz, 0 where it is not known')


class _Weighted(TraitedSpec):
    swi = File()
    minip = File()


class WeightBySusceptibility(Step):
    """Magnitude darkened by the phase of paramagnetic matter, also of one echo."""

    input_spec = _WeightInput
    output_spec = _Weighted

    def step(self, folder: Path) -> dict[str, Any]:
        """Both 0 outside the brain."""
        from bidsapp.modalities.gre.physics import swi

        path = Path(self.inputs.magnitude)
        mask, local = load_mask(Path(self.inputs.mask)), load_volume(Path(self.inputs.field))
        image = swi.weighted(load_echoes(path), local, self.inputs.echo_times, mask)
        lowest = swi.projected(image, mask, open_image(path).affine)
        return {
            'swi': str(save_like(folder / 'swi.nii', image, path)),
            'minip': str(save_like(folder / 'minip.nii', lowest, path)),
        }
