"""Susceptibility: trying the ways to know the displacement, the best first."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from nipype.interfaces.base import File, TraitedSpec, isdefined, traits

from bidsapp.bids.images import load_volume, open_image
from bidsapp.interfaces.anat import why_not_used
from bidsapp.interfaces.base import ComputingInput, Step
from bidsapp.interfaces.files import load_mask, save_like
from bidsapp.modalities.dwi.bids.tables import read_numbers
from bidsapp.modalities.dwi.physics.gradients import B0_THRESHOLD
from bidsapp.problems import BadData, Unavailable

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Of many volumes of the opposite polarity without weighting, so many are enough.
FEW = 5


class _DistortionInput(ComputingInput):
    b0 = File(exists=True, mandatory=True, desc='mean b=0 of the run, motion corrected')
    mask = File(exists=True, mandatory=True)
    t1w = File(exists=True, desc='bias-corrected T1w image')
    t1w_quality = traits.Dict(desc='why it cannot be used, where it is not defined')
    candidates = traits.List(traits.Dict, mandatory=True, desc='as bids.fieldmaps has them')
    reasons = traits.List(traits.Str, desc='why better ways are not among them')
    seed = traits.Int(0, usedefault=True)


class _DistortionOutput(TraitedSpec):
    displacement = File(desc='voxels along the axis; undefined where nothing is corrected')
    axis = traits.Int(desc='array axis of phase encoding')
    quality = traits.Dict()


class EstimateDistortion(Step):
    """The displacement of a run by the first way that works; what did not work is said."""

    version = 2
    input_spec = _DistortionInput
    output_spec = _DistortionOutput

    def step(self, folder: Path) -> dict[str, Any]:
        """A way that fails on these data gives place to the next; the last is to correct nothing.

        The sidecar gets the method, and why better ones were not used.
        """
        reasons = list(self.inputs.reasons or [])
        ways = {'pair': self.by_pair, 'gre': self.by_field, 't1w': self.by_t1w}
        for candidate in self.inputs.candidates:
            if candidate['method'] not in ways:
                continue
            try:
                shift, quality = ways[candidate['method']](candidate)
            except (Unavailable, BadData) as reason:
                reasons.append(f'{candidate["words"]}: {reason}')
                continue
            path = save_like(folder / 'displacement.nii', shift, Path(self.inputs.b0))
            inside = np.abs(shift[load_mask(Path(self.inputs.mask))])
            edge = np.linalg.norm(open_image(path).affine[:3, candidate['axis']])
            moved = {
                'DisplacementMedianMillimetres': round(float(np.median(inside) * edge), 2),
                'DisplacementMaxMillimetres': round(float(inside.max() * edge), 2),
            }
            said = {'Method': candidate['words'], **quality, **moved, 'Jacobian': 'modulated'}
            return {
                'displacement': str(path),
                'axis': candidate['axis'],
                'quality': said | ({'NotUsed': reasons} if reasons else {}),
            }
        return {'quality': {'Method': 'none', 'NotUsed': reasons}}

    def run_b0(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mean b=0 (X, Y, Z), its affine, the brain."""
        path = Path(self.inputs.b0)
        return load_volume(path), open_image(path).affine, load_mask(Path(self.inputs.mask))

    def by_pair(self, candidate: Mapping[str, Any]) -> tuple[np.ndarray, dict[str, Any]]:
        """From an image of the opposite polarity."""
        from bidsapp.physics.reversed_pair import displacement_from_pair

        image, affine, mask = self.run_b0()
        opposite = Path(candidate['files']['opposite'])
        second = opposite_b0(
            opposite,
            candidate['files'].get('opposite_bval'),
            candidate['metadata']['opposite'].get('B0Threshold', B0_THRESHOLD),
        )
        found = displacement_from_pair(
            image, affine, mask, second, open_image(opposite).affine,
            candidate['readout_ratio'], candidate['axis'], device=self.inputs.device,
        )  # fmt: skip
        return found.displacement, {
            'Similarity': 'normalised cross-correlation of the two polarities in the brain',
            'SimilarityBefore': round(float(found.similarity_before), 4),
            'SimilarityAfter': round(float(found.similarity_after), 4),
        }

    def by_field(self, candidate: Mapping[str, Any]) -> tuple[np.ndarray, dict[str, Any]]:
        """From a gradient-echo field map."""
        from bidsapp.physics import fieldmap

        files = {kind: Path(path) for kind, path in candidate['files'].items()}
        field_facts, run_facts = candidate['metadata']['field'], candidate['metadata']['run']
        magnitude, grid = volume(files['magnitude']), open_image(files['magnitude']).affine
        if 'fieldmap' in files:
            values, units = volume(files['fieldmap']), field_facts.get('Units', 'Hz')
            field = fieldmap.field_from_map(values, magnitude, grid, units)
        else:
            phase = (
                volume(files['phasediff']) if 'phasediff' in files
                else (volume(files['phase1']), volume(files['phase2']))
            )  # fmt: skip
            times = (float(field_facts['EchoTime1']), float(field_facts['EchoTime2']))
            field = fieldmap.field_from_phase(phase, magnitude, grid, times)
        image, affine, mask = self.run_b0()
        found = fieldmap.displacement_from_field(
            field, image, affine, mask, run_facts['PhaseEncodingDirection'],
            float(run_facts['TotalReadoutTime']), np.random.default_rng(self.inputs.seed),
        )  # fmt: skip
        return found.displacement, {
            'FieldMap': found.method,
            'Similarity': 'normalised mutual information of b=0 and magnitude',
            'SimilarityBefore': round(float(found.similarity_before), 4),
            'SimilarityAfter': round(float(found.similarity_after), 4),
        }

    def by_t1w(self, candidate: Mapping[str, Any]) -> tuple[np.ndarray, dict[str, Any]]:
        """From a registration to the T1w along the phase-encoding axis."""
        from bidsapp.physics.t1w_guided import displacement_from_t1w
        from bidsapp.physics.template import template_maps

        if not isdefined(self.inputs.t1w):
            said = self.inputs.t1w_quality if isdefined(self.inputs.t1w_quality) else {}
            raise Unavailable(said.get('NotUsed', 'there is no T1w image'))
        image, affine, mask = self.run_b0()
        t1w = Path(self.inputs.t1w)
        try:
            found = displacement_from_t1w(
                image, affine, mask, load_volume(t1w), open_image(t1w).affine, None,
                candidate['axis'], template_maps(2.0), np.random.default_rng(self.inputs.seed),
            )  # fmt: skip
        except Exception as error:  # whatever a strange image leads to, the run needs none
            raise Unavailable(why_not_used(error)) from error
        return found.displacement, {
            'Similarity': 'normalised mutual information of b=0 and T1w in the brain',
            'SimilarityBefore': round(float(found.similarity_before), 4),
            'SimilarityAfter': round(float(found.similarity_after), 4),
        }


def volume(path: Path) -> np.ndarray:
    """(X, Y, Z) of an image that holds one volume. Raises BadData if it holds more."""
    data = load_volume(path)
    if data.ndim < 3 or data.size != np.prod(data.shape[:3]):
        raise BadData(f'{path} has shape {data.shape}; one volume was expected')
    return data.reshape(data.shape[:3])


def opposite_b0(path: Path, bval: str | None, b0_threshold: float = B0_THRESHOLD) -> np.ndarray:
    """(X, Y, Z) mean of up to FEW volumes without diffusion weighting."""
    data = load_volume(path)
    if data.ndim == 3:
        return data
    chosen = np.arange(data.shape[3])
    if bval is not None:
        chosen = np.flatnonzero(read_numbers(Path(bval)).ravel() <= b0_threshold)
    return np.asarray(data[..., chosen[:FEW]].mean(-1))
