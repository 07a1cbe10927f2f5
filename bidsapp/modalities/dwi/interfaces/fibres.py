"""Step: fibre directions by constrained deconvolution or the tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nipype.interfaces.base import File, TraitedSpec, isdefined, traits

from bidsapp.bids.images import load_volume
from bidsapp.interfaces.base import CaseInput, CaseStep
from bidsapp.interfaces.files import load_mask, save_like
from bidsapp.modalities.dwi.bids.tables import load_table
from bidsapp.problems import Unavailable

if TYPE_CHECKING:
    from pathlib import Path


class _FibresInput(CaseInput):
    quality = traits.Dict(desc='what is to be said of the tissue probabilities')


class _Fibres(TraitedSpec):
    fibres = File(exists=True)
    quality = traits.Dict(desc='the same, and how fibres were found if not as the table allows')


class FindFibres(CaseStep):
    """Fibre directions in white matter, by T1w where it shows the brain, else by anisotropy."""

    version = 2
    input_spec = _FibresInput
    output_spec = _Fibres

    def step(self, folder: Path) -> dict[str, Any]:
        """(X, Y, Z, 3 or 9 + K) world axes, found once for all labels that rest on them.

        Three fibres by deconvolution are followed by the harmonics of its density. One by the
        tensor where no single fibre is there to learn deconvolution from, as in newborns.
        """
        from bidsapp.modalities.dwi.physics.csd import fibre_directions

        case = self.case()
        brain = load_mask(case.files['mask'])
        white = unseen = None
        if 'tissue_posteriors' in case.files:
            posteriors = load_volume(case.files['tissue_posteriors'])
            unseen = posteriors.sum(-1) == 0
            white = (posteriors.argmax(-1) == 1) & ~unseen
        scan = (load_volume(case.files['dwi']), load_table(case), brain, white, unseen)
        said = dict(self.inputs.quality) if isdefined(self.inputs.quality) else {}
        try:
            fibres = fibre_directions(*scan, self.inputs.device, with_density=True)
        except Unavailable as reason:
            fibres = fibre_directions(*scan, self.inputs.device, deconvolve=False)
            words = f'fibres are by the tensor, not by deconvolution: {reason}'
            said |= {'DerivedBy': 'tensor', 'Warnings': [*said.get('Warnings', []), words]}
        path = save_like(folder / 'fibres.nii', fibres, case.files['dwi'])
        return {'fibres': str(path), 'quality': said}
