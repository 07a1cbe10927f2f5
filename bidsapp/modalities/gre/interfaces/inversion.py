"""Step: the classical susceptibility maps of a prepared run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from nipype.interfaces.base import File, TraitedSpec, traits

from bidsapp.bids.images import load_volume, open_image
from bidsapp.bids.scans import number, said_beside
from bidsapp.interfaces.base import CaseStep
from bidsapp.interfaces.files import load_mask, save_like
from bidsapp.modalities.gre.bids.direction import direction_of
from bidsapp.modalities.gre.bids.prepared import NOISE_FIELD, total_of
from bidsapp.problems import MissingInput

if TYPE_CHECKING:
    from pathlib import Path

#: The maps, in the order of the step's image of them: the one that networks are measured by first.
MAPS = ('reference', 'tkd', 'tikhonov')


class _Maps(TraitedSpec):
    chimaps = File(desc='(X, Y, Z, 3) ppm, mean 0 in the mask')
    quality = traits.Dict()


class Invert(CaseStep):
    """Weighted total variation, truncated division and Tikhonov's map, found once for all labels.

    Total variation is the single step from the total field where that is beside the local one.
    """

    output_spec = _Maps

    def step(self, folder: Path) -> dict[str, Any]:
        """Raises MissingInput where the sidecar of the field does not say what it was made with."""
        from bidsapp.modalities.gre.physics import maps

        case = self.case()
        path = case.files['field']
        said, affine = said_beside(path), open_image(path).affine
        mhz, factor = number(said, 'ImagingFrequency'), number(said, NOISE_FIELD)
        if mhz is None or factor is None:
            raise MissingInput(
                f'The sidecar of {path.name} lacks ImagingFrequency or {NOISE_FIELD}. Prepare the '
                'run again: --redo preprocessing.'
            )
        direction, _ = direction_of(path, said)
        local, mask = load_volume(path) / mhz, load_mask(case.files['mask'])
        weight = load_volume(case.files['magnitude'])
        noise = factor / mhz / np.maximum(weight, 1e-3 * np.median(weight[mask]))
        known, total = mask & (local != 0), total_of(case)
        fields = {'tkd': (local, known), 'tikhonov': (local, known)}
        if total is None:
            fields = {'tv': (local, known), **fields}
        else:
            fields = {'single-step': (load_volume(total) / mhz, mask), **fields}
        found = [
            maps.susceptibility(field, noise, inside, affine, method, b=direction)
            for method, (field, inside) in fields.items()
        ]
        strengths = {
            method: float(f'{maps.usual_strength(noise, inside, affine, method):.4g}')
            for method, (_, inside) in fields.items()
        }
        stack = np.stack(found, axis=-1)
        return {
            'chimaps': str(save_like(folder / 'chimaps.nii', stack, path)),
            'quality': {
                'ReferenceMethod': next(iter(fields)),
                'Regularization': strengths,
                'SusceptibilityReference': 'mean of the mask',
            },
        }
