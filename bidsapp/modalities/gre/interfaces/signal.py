"""Steps: the complex signal as scanners write it, made one; and the brain in it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from nipype.interfaces.base import File, InputMultiObject, TraitedSpec, isdefined, traits

from bidsapp.bids.images import load_volume, open_image
from bidsapp.interfaces.base import Step, StepInput
from bidsapp.interfaces.files import save_like
from bidsapp.problems import BadData

if TYPE_CHECKING:
    from collections.abc import Sequence


def load_echoes(path: Path) -> np.ndarray:
    """(E, X, Y, Z) of an intermediate image (X, Y, Z, E)."""
    return np.moveaxis(load_volume(path), -1, 0)


def save_echoes(path: Path, array: np.ndarray, like: Path) -> str:
    """Write (E, X, Y, Z) as an intermediate image (X, Y, Z, E)."""
    return str(save_like(path, np.moveaxis(array, 0, -1), like))


def _stacked(paths: Sequence[str]) -> np.ndarray:
    return np.stack([load_volume(Path(path)) for path in paths])


class _SignalInput(StepInput):
    parts = InputMultiObject(
        File(exists=True), mandatory=True, desc='magnitude of each echo, or its real part'
    )
    others = InputMultiObject(
        File(exists=True), mandatory=True, desc='phase of each echo, or its imaginary part'
    )
    cartesian = traits.Bool(False, usedefault=True, desc='they are real and imaginary parts')
    turned = traits.Bool(False, usedefault=True, desc='the phase has the other sign')


class _Signal(TraitedSpec):
    magnitude = File(desc='(X, Y, Z, E), 0 where the images hold no numbers')
    phase = File(desc='(X, Y, Z, E) rad, NaN where the images hold no numbers')
    quality = traits.Dict()
    warnings = traits.List(traits.Str)


class ReadSignal(Step):
    """Magnitude, and phase in radians, of all echoes, whatever a scanner has made of them."""

    input_spec = _SignalInput
    output_spec = _Signal

    def step(self, folder: Path) -> dict[str, Any]:
        """Raises BadData for phase that is constant or on no known scale."""
        from bidsapp.modalities.gre.physics.echoes import phase_radians, slices_turned_back

        like = Path(self.inputs.parts[0])
        first, second = _stacked(self.inputs.parts), _stacked(self.inputs.others)
        finite = np.isfinite(first) & np.isfinite(second)
        first = np.where(finite, first, 0)
        if self.inputs.cartesian:
            signal = first + 1j * np.where(finite, second, 0)
            magnitude, phase, scale = np.abs(signal), np.angle(signal), 'real and imaginary parts'
        else:
            phase, scale = phase_radians(np.where(finite, second, np.nan))
            magnitude = np.abs(first)
        phase, alternating = slices_turned_back(phase, magnitude)
        if self.inputs.turned:
            phase = -phase
        lost = int((~finite).any(0).sum())
        warnings = ['every other slice had the opposite sign and was turned back'] * alternating
        if lost:
            warnings.append(f'{lost} voxels hold no number in an echo; none of them may be brain')
        return {
            'magnitude': save_echoes(folder / 'magnitude.nii', magnitude, like),
            'phase': save_echoes(folder / 'phase.nii', np.where(finite, phase, np.nan), like),
            'quality': {
                'Scale': scale,
                'AlternatingSlices': alternating,
                'Turned': bool(self.inputs.turned),
                'VoxelsWithoutNumber': lost,
            },
            'warnings': warnings,
        }


class _BrainInput(StepInput):
    magnitude = File(exists=True, desc='(X, Y, Z, E)')
    images = InputMultiObject(File(exists=True), desc='or of each echo, as scanned')


class _Brain(TraitedSpec):
    mask = File()
    warnings = traits.List(traits.Str)


class BrainMask(Step):
    """Which voxels are brain, by the first and the last echo: decay tells it from fat and bone."""

    input_spec = _BrainInput
    version = 2
    output_spec = _Brain

    def step(self, folder: Path) -> dict[str, Any]:
        """Raises BadData if no brain is found."""
        from bidsapp.modalities.gre.physics.quality import cut_from_a_brain
        from bidsapp.physics import brain

        if isdefined(self.inputs.images):
            path = Path(self.inputs.images[0])
            magnitude = np.nan_to_num(_stacked(self.inputs.images))
        else:
            path = Path(self.inputs.magnitude)
            magnitude = load_echoes(path)
        affine = open_image(path).affine
        if cut_from_a_brain(magnitude[0]):
            mask = np.ones(magnitude.shape[1:], bool)
            return {
                'mask': str(save_like(folder / 'mask.nii', mask, path, 'uint8')),
                'warnings': ['no air around the head: all of the field of view is taken for brain'],
            }
        mask = brain.brain_mask(magnitude[0], magnitude[-1], affine)
        if not mask.any():
            raise BadData(
                f'No brain was found in the magnitude of {len(magnitude)} echoes. Give a mask of '
                'your own by -d masks=PATH.'
            )
        doubt = brain.plausible(mask, affine)
        return {
            'mask': str(save_like(folder / 'mask.nii', mask, path, 'uint8')),
            'warnings': [doubt] if doubt else [],
        }
