"""Diffusion MRI without what corrupts it; learnt by pretraining, where the clean scan is known."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bidsapp.core import Arrays, Case, Head, Output, Sample, Task
from bidsapp.modalities.dwi.learn.input import brain_signal, noise_variance_of, unmeasured
from bidsapp.modalities.dwi.learn.losses import correction, signal_errors
from bidsapp.modalities.dwi.physics.diffusion import fit_tensor
from bidsapp.modalities.dwi.physics.qspace import N_SH, SLOTS, input_harmonics
from bidsapp.modalities.dwi.physics.restored import (
    attenuation_at,
    expected_residual,
    residual,
    restored_scan,
    slots_of_volumes,
)
from bidsapp.modalities.dwi.physics.turns import turned_harmonics_of_slots
from bidsapp.modalities.dwi.physics.unweighted import signal_at_zero
from bidsapp.physics.geometry import ALL_TURNS, voxel_sizes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from bidsapp.core import Turn
    from bidsapp.modalities.dwi.physics.acquisition import Acquisition

#: Channels: harmonics, slot after slot.
CHANNELS = len(SLOTS) * N_SH
#: Digits of figures in sidecars.
_DIGITS = 4


RESTORED = Output(
    'restored',
    {'suffix': 'dwi', 'desc': 'restored'},
    'float32',
    description='Diffusion MRI as the network restores it: of each volume of a main shell the '
    'corrected harmonics (order 6) at its direction, times the mean b=0 image of the run; of what '
    'they leave of the data all that is smoother than 5 mm, and from finer scales as much as '
    'stands above the noise (ShareOfData, in the finest); with the mean and the strength of '
    'contrast that the data of the voxel have in that shell. Volumes '
    'of other shells and those without diffusion weighting are as they were (PassedThrough). Zero '
    'outside the brain.',
    beside=('.bval', '.bvec'),
)
FA = Output(
    'restored_fa', {'suffix': 'FA'}, 'float32',
    description='Fractional anisotropy of the restored volumes, 0 to 1.',
)  # fmt: skip
ADC = Output(
    'restored_adc', {'suffix': 'ADC'}, 'float32', units='mm^2/s',
    description='Mean diffusivity of the restored volumes.',
)  # fmt: skip
RESIDUAL = Output(
    'residual', {'suffix': 'dwimap', 'param': 'residual'}, 'float32', told_by='model',
    description='What the prediction leaves of the preprocessed volumes: root mean square over '
    'the restored volumes, in standard deviations of the noise. About 1: the prediction explains '
    'the data. High: it does not; look at the data there. Low: it follows the noise. Degrees of '
    'freedom are not corrected for: ExpectedLow is what harmonics with no correction would leave, '
    '1 what a prediction leaves that follows no noise.',
)  # fmt: skip


def load(sample: Sample, case: Case) -> Sample:
    """As it is: a scan has no clean twin, so no target."""
    return sample


def finish(outputs: Mapping[str, Tensor], sample: Sample, case: Case) -> Arrays:
    """(84, X, Y, Z) correction → restored volumes, their tensor maps and the residual.

    Slices that had lost their signal are what the network says, and have no part in the residual.

    Beside what is written: 'residual_by_volume' (N,), NaN for volumes that are passed through,
    'noise': standard deviation of S/S0, then the residual expected without any correction, and
    'share_of_data' (V,) in the finest detail; the residual is the prediction's own.
    """
    output, inside = outputs['restore'], sample.mask[0].numpy()
    signal, gtab = brain_signal(case, sample)
    variance = noise_variance_of(sample)
    noise, s0 = float(np.sqrt(variance)), signal_at_zero(signal.T, gtab)
    harmonics = input_harmonics(sample.image)[:, sample.mask[0]] + output[:, sample.mask[0]]
    predicted = s0 * attenuation_at(harmonics.numpy(), gtab)
    use = slots_of_volumes(gtab) >= 0
    seen = signal[use]
    if (lost := unmeasured(case, sample)) is not None:  # it is no witness for the prediction
        gaps = lost[:, inside][use]
        seen = np.where(gaps, np.nan, seen)
        signal[use] = np.where(gaps, predicted, signal[use])
    left = residual(seen, predicted, noise * float(np.median(s0)))
    size = voxel_sizes(sample.affine)
    restored, share, _ = restored_scan(signal, predicted, gtab, inside, size, noise)
    by_volume = np.full(len(gtab), np.nan)
    by_volume[use] = left.volumes
    tensor = fit_tensor(restored, gtab)
    return {
        'restored': _on_grid(restored.T, inside),
        'restored_fa': _on_grid(tensor.fa, inside),
        'restored_adc': _on_grid(tensor.md, inside),
        'residual': _on_grid(left.voxels, inside),
        'residual_by_volume': by_volume,
        'noise': np.array([noise, expected_residual(gtab, variance)]),
        'share_of_data': share,
    }


def _on_grid(values: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """(V[, N]) of the voxels ``inside`` (X, Y, Z) → (X, Y, Z[, N]), zero outside."""
    full = np.zeros((*inside.shape, *values.shape[1:]), np.float32)
    full[inside] = values
    return full


def details(arrays: Arrays) -> Mapping[str, Mapping[str, Any]]:
    """Which volumes were restored, and the residual in numbers."""
    by_volume = arrays['residual_by_volume']
    deviation, expected = (float(value) for value in arrays['noise'])
    done = np.isfinite(by_volume)
    volumes = {
        'RestoredVolumes': np.flatnonzero(done).tolist(),
        'PassedThrough': np.flatnonzero(~done).tolist(),
        'ShareOfData': round(float(np.mean(arrays['share_of_data'])), _DIGITS),
    }
    values = arrays['residual'][arrays['residual'] > 0]
    return {
        'restored': volumes,
        'restored_fa': volumes,
        'restored_adc': volumes,
        'residual': {
            **volumes,
            'NoiseDeviation': round(deviation, 6),
            'Median': round(float(np.median(values)), _DIGITS) if values.size else None,
            'ExpectedLow': round(expected, _DIGITS),
            'ByVolume': [round(float(v), _DIGITS) if np.isfinite(v) else None for v in by_volume],
        },
    }


def turn_target(target: Tensor, turn: Turn) -> Tensor:
    """Harmonics (B, 84 or 87, X, Y, Z) of a head that is turned; flags behind them stay."""
    return turned_harmonics_of_slots(target.clone(), turn)


def metrics(output: Tensor, sample: Sample) -> list[tuple[str, str, float]]:
    """Root mean square error of the signal, over the prior's deviation; that of no correction."""
    if sample.target is None:
        raise ValueError('metrics need a labelled sample')
    one = (tensor[None] for tensor in (output, sample.target, sample.mask))
    left, before = (float(error.sqrt()) for error in signal_errors(*one))
    return [('rmse', 'all', left), ('rmse_uncorrected', 'all', before)]


def truth(known: Mapping[str, Tensor]) -> Tensor:
    """(87, X, Y, Z) the clean harmonics less those of the input, then which slots are filled."""
    return known['correction']


task: Task[Acquisition] = Task(
    head=Head(
        channels=CHANNELS,
        targets=CHANNELS + len(SLOTS),
        loss=correction,
        metrics=metrics,
        score='rmse',
        higher_is_better=False,
        turns=ALL_TURNS,
        turn_target=turn_target,
        turn_output=turn_target,
        weight=0.5,
        from_nothing=True,
    ),
    writes=(RESTORED, FA, ADC, RESIDUAL),
    load=load,
    finish=finish,
    truth=truth,
    details=details,
)
