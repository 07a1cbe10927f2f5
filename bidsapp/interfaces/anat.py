"""Steps from a T1w image to tissue probabilities on the grid of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from nipype.interfaces.base import File, TraitedSpec, isdefined, traits

from bidsapp.bids.images import load_volume, open_image
from bidsapp.interfaces.base import Step, StepInput
from bidsapp.interfaces.files import save_like
from bidsapp.problems import BadData, InputOutputError, TryAgain, Unavailable, problem_of

#: Of the 15 starts of the registration, fewer than this agreeing is said as a warning.
FEW_AGREE = 8


def why_not_used(error: Exception) -> str:
    """What stopped a step on a T1w image. Raised again is what the same call may overcome."""
    if isinstance(error, Unavailable):
        return str(error)
    problem = problem_of(error, 'T1w image')
    if isinstance(problem, TryAgain | InputOutputError):
        raise error
    return str(problem)


class _T1w(StepInput):
    t1w = File(exists=True, desc='not defined where an earlier step could not use it')
    quality = traits.Dict(desc='what earlier steps have said')


class T1wStep(Step):
    """A step on a T1w image, without which a run goes on: in words, not by failing.

    Where the image cannot be used, ``quality`` says why as ``NotUsed``, and the other outputs of
    this step and of those after it are not defined.
    """

    def told(self, folder: Path) -> dict[str, Any]:
        """What the step gives, its ``quality`` after what earlier steps said."""
        before = dict(self.inputs.quality) if isdefined(self.inputs.quality) else {}
        if 'NotUsed' in before:
            return {'quality': before}
        try:
            given = super().told(folder)
        except Exception as error:
            reason = why_not_used(error)
            return {'quality': {'NotUsed': reason, 'Warnings': [f'T1w image not used: {reason}']}}
        return {**given, 'quality': {**before, **given.get('quality', {})}}


class _CorrectedT1w(TraitedSpec):
    t1w = File(exists=True)
    quality = traits.Dict()


class CorrectT1w(T1wStep):
    """N4 on the whole head."""

    input_spec = _T1w
    output_spec = _CorrectedT1w

    def step(self, folder: Path) -> dict[str, Any]:
        """What is not a number, as defacing leaves it around the head, is 0. Raises BadData."""
        from bidsapp.physics.anatomy import correct_t1w

        path = Path(self.inputs.t1w)
        data = np.squeeze(load_volume(path))
        if data.ndim != 3:
            raise BadData(
                f'{path.name} holds {data.ndim} dimensions, such as several echoes; a T1w image '
                'has 3. Keep one volume of it.'
            )
        data = np.nan_to_num(data, posinf=0, neginf=0)
        if not data.any():
            raise BadData(f'{path.name} holds only zeros')
        corrected = correct_t1w(data, open_image(path).affine)
        return {'t1w': str(save_like(folder / 't1w.nii', corrected, path))}


class _RegisterInput(_T1w):
    image = File(exists=True, mandatory=True, desc='(X, Y, Z) of the run that it is led to')
    mask = File(exists=True, mandatory=True)
    seed = traits.Int(0, usedefault=True)


class _Registered(TraitedSpec):
    matrix = File(exists=True)
    quality = traits.Dict()


class RegisterT1w(T1wStep):
    """The rigid step from a run's world to the T1w's, and how well many starts agree on it."""

    version = 2
    input_spec = _RegisterInput
    output_spec = _Registered

    def step(self, folder: Path) -> dict[str, Any]:
        """The matrix takes world mm of the run to world mm of the T1w."""
        from bidsapp.physics.alignment import register_t1w

        t1w, image = Path(self.inputs.t1w), Path(self.inputs.image)
        found = register_t1w(
            load_volume(t1w),
            open_image(t1w).affine,
            load_volume(image),
            open_image(image).affine,
            load_volume(Path(self.inputs.mask)) > 0,
            np.random.default_rng(self.inputs.seed),
        )
        np.savetxt(folder / 'run_to_t1w.txt', found.matrix, fmt='%.8f')
        quality = {
            'Method': 'rigid, mutual information of the T1w and the logarithm of the b=0 image',
            'Starts': int(found.n_starts),
            'StartsThatAgree': int(found.n_agreeing),
            'AgreementMillimetres': round(float(found.agreement_mm), 3),
            'AgreementDegrees': round(float(found.agreement_deg), 3),
        }
        few = found.n_agreeing < FEW_AGREE
        warning = (
            f'only {found.n_agreeing} of {found.n_starts} starts of the T1w registration agree: '
            'look at the tissue picture before these labels are used'
        )
        return {
            'matrix': str(folder / 'run_to_t1w.txt'),
            'quality': {'Registration': quality, 'Warnings': [warning] if few else []},
        }


class _SegmentInput(_T1w):
    matrix = File(exists=True)
    mask = File(exists=True, mandatory=True)
    seed = traits.Int(0, usedefault=True)


class _Segmented(TraitedSpec):
    posteriors = File(exists=True)
    quality = traits.Dict(desc='the same, and what is to be said of the segmentation')


class SegmentTissue(T1wStep):
    """GM, WM and CSF probabilities from the T1w, on the grid of the run, which is the mask's."""

    version = 2
    input_spec = _SegmentInput
    output_spec = _Segmented

    def step(self, folder: Path) -> dict[str, Any]:
        """(X, Y, Z, 3), zero outside the brain and where the T1w does not show it."""
        from bidsapp.physics import anatomy
        from bidsapp.physics.template import template_maps

        t1w, like = Path(self.inputs.t1w), Path(self.inputs.mask)
        mask = load_volume(like) > 0
        posteriors, covered = anatomy.tissue_on_run(
            load_volume(t1w),
            open_image(t1w).affine,
            np.loadtxt(self.inputs.matrix),
            mask,
            open_image(like).affine,
            template_maps(2.0),
            np.random.default_rng(self.inputs.seed),
        )
        array = np.moveaxis(posteriors, 0, -1)
        said = dict(self.inputs.quality) if isdefined(self.inputs.quality) else {}
        said['BrainOfT1wInBrainOfDwi'] = round(covered, 3)
        doubts = anatomy.doubts(posteriors, covered)
        look = [
            f'{doubt}: look at the tissue picture before these labels are used' for doubt in doubts
        ]
        said['Warnings'] = [*look, *said.get('Warnings', [])]  # first how much is labelled at all
        return {
            'posteriors': str(save_like(folder / 'posteriors.nii', array, like)),
            'quality': said,
        }
