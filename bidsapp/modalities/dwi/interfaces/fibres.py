"""Step: fibre directions by constrained deconvolution or the tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nipype.interfaces.base import File, TraitedSpec

from bidsapp.bids.images import load_volume
from bidsapp.interfaces.base import CaseStep
from bidsapp.interfaces.files import load_mask, save_like
from bidsapp.modalities.dwi.bids.tables import load_table

if TYPE_CHECKING:
    from pathlib import Path


class _Fibres(TraitedSpec):
    fibres = File(exists=True)


class FindFibres(CaseStep):
    """Fibre directions in white matter, by T1w where there is one, else by anisotropy."""

    version = 2
    output_spec = _Fibres

    def step(self, folder: Path) -> dict[str, Any]:
        """(X, Y, Z, 3 or 9 + K) world axes, found once for all labels that rest on them.

        Three fibres by deconvolution are followed by the harmonics of its density.
        """
        from bidsapp.modalities.dwi.physics.csd import fibre_directions

        case = self.case()
        brain = load_mask(case.files['mask'])
        white = None
        if 'tissue_posteriors' in case.files:
            posteriors = load_volume(case.files['tissue_posteriors'])
            white = (posteriors.argmax(-1) == 1) & (posteriors.sum(-1) > 0)
        fibres = fibre_directions(
            load_volume(case.files['dwi']), load_table(case), brain, white, self.inputs.device,
            with_density=True,
        )  # fmt: skip
        return {'fibres': str(save_like(folder / 'fibres.nii', fibres, case.files['dwi']))}
