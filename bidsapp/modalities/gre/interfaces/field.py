"""Steps: the field from phase or as it was given, its quality, its background, decay, sign."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from nipype.interfaces.base import File, TraitedSpec, traits

from bidsapp.bids.images import load_volume, open_image
from bidsapp.interfaces.base import ComputingInput, Step, StepInput
from bidsapp.interfaces.files import load_mask, save_like
from bidsapp.modalities.gre.bids.fields import UNITS, hertz_of
from bidsapp.modalities.gre.interfaces.signal import load_echoes
from bidsapp.problems import BadData

#: A smaller share of the brain in which phase can be believed is warned of.
SHARE = 0.7


class _EchoesInput(StepInput):
    magnitude = File(exists=True, mandatory=True, desc='(X, Y, Z, E)')
    mask = File(exists=True, mandatory=True, desc='brain')
    echo_times = traits.List(traits.Float, mandatory=True, desc='s')


class _FitInput(_EchoesInput):
    phase = File(exists=True, mandatory=True, desc='(X, Y, Z, E) rad, NaN where unknown')


class _Field(TraitedSpec):
    field = File(desc='Hz')
    magnitude = File(desc='the noise of the field is inversely proportional to it')
    reliable = File(desc='where in the brain the field can be believed')
    noise = traits.Float(desc='of the field times the magnitude, Hz')
    sigma = traits.Float(desc='noise of the signal in each channel')
    quality = traits.Dict()
    warnings = traits.List(traits.Str)


class FitField(Step):
    """The total field of all echoes and where it can be believed."""

    input_spec = _FitInput
    output_spec = _Field

    def step(self, folder: Path) -> dict[str, Any]:
        """Raises BadData for phase without numbers in the brain, and where none can be believed."""
        from bidsapp.modalities.gre.physics import echoes, quality

        path, times = Path(self.inputs.phase), list(self.inputs.echo_times)
        affine, mask = open_image(path).affine, load_mask(Path(self.inputs.mask))
        phase, magnitude = load_echoes(path), load_echoes(Path(self.inputs.magnitude))
        _check_numbers(phase, mask)
        scan = (np.nan_to_num(phase), magnitude, times, mask, affine)
        bipolar = echoes.read_backwards(*scan)
        field = echoes.total_field(*scan, bipolar)
        reliable = quality.reliable_mask(field, mask, affine)
        if not reliable.any():
            raise BadData(
                'The phase can be believed in no voxel of the brain: it is noise, or does not '
                'belong to the magnitude. Check the two images, and their echo times.'
            )
        share = float(reliable.sum() / mask.sum())
        weight, factor = echoes.weighting(magnitude, times)
        warnings = ['even echoes were read backwards: their own offset was removed'] * bipolar
        if share < SHARE:
            warnings.append(f'the phase can be believed in {share:.0%} of the brain only')
        return {
            'field': str(save_like(folder / 'total.nii', field.hertz, path)),
            'magnitude': str(save_like(folder / 'weight.nii', np.where(mask, weight, 0), path)),
            'reliable': str(save_like(folder / 'reliable.nii', reliable, path, 'uint8')),
            'noise': factor * field.sigma,
            'sigma': field.sigma,
            'quality': {
                'Bipolar': bipolar,
                'PhaseResidues': echoes.residues(scan[0][0], mask),
                'NoiseMedian': _short(np.median(field.noise[reliable])),
                'ResidualOverNoise': _short(np.median(field.residual[reliable])),
                'ReliableShare': _short(share),
            },
            'warnings': warnings,
        }


def _check_numbers(phase: np.ndarray, mask: np.ndarray) -> None:
    """Raises BadData where the phase (E, X, Y, Z) holds no number within the mask (X, Y, Z)."""
    if lost := int((~np.isfinite(phase[:, mask])).any(0).sum()):
        raise BadData(
            f'{lost} voxels of the brain hold no number (NaN or infinite) in an echo; numbers were '
            'expected. Export the images again, or give a mask without them by -d masks.'
        )


def _short(value: Any) -> float:
    return float(f'{float(value):.4g}')


class _GivenInput(StepInput):
    field = File(exists=True, mandatory=True, desc='local or total, of the user')
    mask = File(exists=True, mandatory=True)
    unit = traits.Enum(*UNITS, mandatory=True)


class ReadField(Step):
    """A finished field in Hz; its noise is the same everywhere, for nothing says another."""

    input_spec = _GivenInput
    output_spec = _Field

    def step(self, folder: Path) -> dict[str, Any]:
        """Raises BadData for a field that is constant, wrapped or without numbers in its mask."""
        from bidsapp.modalities.gre.physics.echoes import noise_of, whole_turn

        path = Path(self.inputs.field)
        values, mask = load_volume(path), load_mask(Path(self.inputs.mask))
        inside = values[mask]
        if not np.isfinite(inside).all() or np.ptp(inside) == 0:
            raise BadData(
                f'{path.name}: numbers that differ were expected within the mask; NaN, infinite or '
                'constant values were found. Check the field and its mask.'
            )
        low, high = float(inside.min()), float(inside.max())
        if whole_turn(np.where(mask, values, np.nan), low, high):
            raise BadData(
                f'{path.name} jumps from {high:g} to {low:g} between neighbours, as wrapped phase '
                'does; an unwrapped field was expected. Unwrap it, or give the phase itself.'
            )
        hertz = np.where(mask, values * hertz_of(self.inputs.unit), 0)
        noise = noise_of(hertz[None], mask, np.zeros(mask.shape))
        return {
            'field': str(save_like(folder / 'field.nii', hertz, path)),
            'magnitude': str(save_like(folder / 'weight.nii', mask, path)),
            'reliable': str(save_like(folder / 'reliable.nii', mask, path, 'uint8')),
            'noise': noise,
            'sigma': noise,
            'quality': {
                'Given': path.name,
                'Units': self.inputs.unit,
                'NoiseMedian': _short(noise),
            },
            'warnings': [],
        }


class _DecayInput(_EchoesInput):
    sigma = traits.Float(mandatory=True)


class _Decay(TraitedSpec):
    r2star = File(desc='1/s')
    t2star = File(desc='s')


class FitDecay(Step):
    """R2* and T2* of two echoes or more."""

    input_spec = _DecayInput
    output_spec = _Decay

    def step(self, folder: Path) -> dict[str, Any]:
        """Both 0 outside the brain."""
        from bidsapp.modalities.gre.physics import relaxation

        path = Path(self.inputs.magnitude)
        mask = load_mask(Path(self.inputs.mask))
        rate = relaxation.r2star(
            load_echoes(path), self.inputs.echo_times, mask, self.inputs.sigma
        )  # fmt: skip
        return {
            'r2star': str(save_like(folder / 'r2star.nii', rate, path)),
            't2star': str(save_like(folder / 't2star.nii', relaxation.t2star(rate), path)),
        }


class _BackgroundInput(ComputingInput):
    field = File(exists=True, mandatory=True, desc='total, Hz')
    mask = File(exists=True, mandatory=True, desc='where it can be believed')


class _Local(TraitedSpec):
    field = File(desc='local, Hz, 0 where it is not known')
    quality = traits.Dict()


class RemoveBackground(Step):
    """The field of sources within the mask alone, by V-SHARP."""

    input_spec = _BackgroundInput
    output_spec = _Local

    def step(self, folder: Path) -> dict[str, Any]:
        """Raises BadData where the mask is too small to know any of it."""
        from bidsapp.modalities.gre.physics import background, maps

        path = Path(self.inputs.field)
        mask = load_mask(Path(self.inputs.mask))
        local, known = maps.local_field(load_volume(path), mask, open_image(path).affine)
        if not known.any():
            raise BadData(
                'The mask is too thin to tell the background field in it. Check the brain mask, or '
                'give one by -d masks=PATH.'
            )
        return {
            'field': str(save_like(folder / 'local.nii', np.where(known, local, 0), path)),
            'quality': {
                'Method': 'V-SHARP',
                'RadiiInMM': [background.LARGEST, background.SMALLEST],
                'KnownShare': _short(known.sum() / mask.sum()),
            },
        }


class _SignInput(StepInput):
    field = File(exists=True, mandatory=True, desc='local, Hz')
    mask = File(exists=True, mandatory=True)
    r2star = File(exists=True, mandatory=True, desc='1/s')
    imaging_mhz = traits.Float(mandatory=True)
    direction = traits.List(traits.Float, mandatory=True, desc='of B0 along the voxel axes')


class _Sign(TraitedSpec):
    quality = traits.Dict()
    warnings = traits.List(traits.Str)


class CheckSign(Step):
    """Whether iron and veins are paramagnetic, by the quickest of maps; nothing is turned."""

    input_spec = _SignInput
    output_spec = _Sign

    def step(self, folder: Path) -> dict[str, Any]:
        """'cannot tell' is an answer."""
        from bidsapp.modalities.gre.physics import maps, quality

        path = Path(self.inputs.field)
        hertz, affine = load_volume(path), open_image(path).affine
        known = load_mask(Path(self.inputs.mask)) & (hertz != 0)
        chi = maps.susceptibility(
            hertz / self.inputs.imaging_mhz, np.ones(hertz.shape), known, affine, 'tkd',
            b=self.inputs.direction,
        )  # fmt: skip
        rate = load_volume(Path(self.inputs.r2star))
        sign = quality.phase_sign(chi, rate, known, affine)
        words = (
            f'χ is {-sign.contrast:.3f} ppm lower where R2* is large, as if the phase had the '
            'other sign: --phase-sign turn turns it'
        )
        return {
            'quality': {
                'Verdict': sign.verdict,
                'Contrast': _short(sign.contrast),
                'StandardErrors': _short(sign.errors),
            },
            'warnings': [words] if sign.verdict == 'turned' else [],
        }
