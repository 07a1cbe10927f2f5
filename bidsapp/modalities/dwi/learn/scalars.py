"""Scalar maps that a network predicts with their uncertainty: what tasks with such maps share.

A task whose maps have a known range and no more to say of themselves takes all of it from
`Scalars`; one that knows more of its maps takes the functions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from bidsapp.bids.images import load_volume, with_maps
from bidsapp.core import Arrays, Case, Head, LongerVoxels, Output, Sample
from bidsapp.modalities.dwi.learn.losses import LOG_SD, weighted_nll
from bidsapp.modalities.dwi.physics.downsampling import MOSTLY
from bidsapp.physics.geometry import ALL_TURNS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

#: Shares of a normal distribution, and within how many standard deviations they lie.
INTERVALS = ((0.6827, 1.0), (0.95, 1.96))
#: Powers of a stated deviation among which the calibrated one is looked for, and the fewest errors
#: that tell it; of fewer it stays as it is.
POWERS, FEWEST = np.linspace(0.2, 2.0, 37), 300
#: Errors looked at: of more, every so many.
_ENOUGH = 200_000


def scalar_map(
    name: str, param: str, source: str, description: str, heading: str, white: float = 1.0
) -> Output:
    """A map without unit, ``model-<source>_param-<param>_dwimap``; ``white`` is drawn white."""
    return Output(
        name, {'suffix': 'dwimap', 'param': param}, 'float32', description=description,
        references=(source,), told_by='model', heading=heading, white=(white, 1.0, ''),
    )  # fmt: skip


def uncertainty_of(output: Output, more: str = '') -> Output:
    """One standard deviation of a parameter; ``more`` ends its description."""
    words = (
        'Standard deviation that the network states of its error: the truth is expected within it '
        'in 68 %, within 1.96 of it in 95 % of voxels, both as nearly as one number can say. '
        'Pretraining calibrates it on simulated scans, on others errors may be larger or smaller; '
        'after fine-tuning it is as it was learnt.'
    )
    entities = {**output.entities, 'desc': 'uncertainty'}
    return Output(
        f'{output.name}_uncertainty', entities, 'float32', output.units, description=words + more,
        told_by='model',
    )  # fmt: skip


def deviations(output: Tensor) -> Tensor:
    """What a network says of its error, as logarithms → standard deviations."""
    return output.clamp(*LOG_SD).exp()


def line_of(error: Tensor, log_sd: Tensor) -> tuple[float, float]:
    """Factor and shift of log deviations (V,) after which stated intervals hold the errors (V,).

    In each third of what was stated, what has to be added for 68 % of the errors to lie within one
    deviation, and for 95 % within 1.96, are to be the same number: the factor makes the six as
    alike as can be, the shift is their mean. Where errors have heavier tails than the normal
    distribution's, one deviation can satisfy one interval only; this stands in the middle.
    """
    step = max(1, len(error) // _ENOUGH)
    errors = error[::step].double().clamp_min(1e-6).log().numpy()
    stated = log_sd[::step].double().numpy()
    thirds = np.array_split(np.argsort(stated, kind='stable'), 3)
    shares, within = np.transpose(INTERVALS)

    def needed(power: float) -> np.ndarray:
        """What has to be added in each third, for each interval."""
        left = (errors[at] - power * stated[at] for at in thirds)
        return np.array([np.quantile(one, shares) - np.log(within) for one in left])

    powers = POWERS if len(errors) >= FEWEST and np.ptp(stated) > 0 else np.ones(1)
    found = [needed(power) for power in powers]
    best = int(np.argmin([one.std() for one in found]))
    return float(powers[best]), float(found[best].mean())


def unchanged_lines(channels: int) -> Tensor:
    """(2, K) factors 1 and shifts 0 of K channels."""
    return torch.stack([torch.ones(channels), torch.zeros(channels)])


@dataclass(frozen=True, slots=True)
class Scalars:
    """``maps`` that are learnt as they are, within a range; a label of exactly 0 is unknown.

    The head has a channel a map for its value, then one for the logarithm of its deviation.
    """

    maps: tuple[Output, ...]
    low: float
    high: float

    @property
    def writes(self) -> tuple[Output, ...]:
        """The maps, then their uncertainties."""
        return (*self.maps, *map(uncertainty_of, self.maps))

    def head(self, words: str) -> Head:
        """What is learnt; ``words`` say what the mean absolute error, its score, is of."""
        n = len(self.maps)
        return Head(
            2 * n, n, self.loss, self.metrics, score='mae', higher_is_better=False,
            words={'mae': words}, turns=ALL_TURNS, calibrate=self.calibrate, weight=0.3,
        )  # fmt: skip

    def load(self, sample: Sample, case: Case) -> Sample:
        """With the target (n, X, Y, Z)."""
        return with_maps(sample, [case.files.get(one.name) for one in self.maps])

    def averaged(self, case: Case, grid: LongerVoxels) -> Arrays:
        """Of longer voxels, the mean of what is known; 0 where that is less than half."""
        found = {}
        for one in self.maps:
            values = load_volume(case.files[one.name])
            mean, share = grid(values, (values != 0).astype(np.float32))
            found[one.name] = np.where(share >= MOSTLY, mean, 0)
        return found

    def loss(self, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """Negative log-likelihood of ``target`` (B, n, …) where it is known."""
        mean, log_sd = prediction.chunk(2, 1)
        return weighted_nll(mean, log_sd, target, (target != 0) & mask)

    def finish(self, outputs: Mapping[str, Tensor], sample: Sample, case: Case) -> Arrays:
        """(2n, X, Y, Z) of a task that uses no other → what is written; zero outside the brain."""
        (output,) = outputs.values()
        mean, log_sd = output.chunk(2)
        written = torch.cat([mean.clamp(self.low, self.high), deviations(log_sd)]) * sample.mask
        return {o.name: one for o, one in zip(self.writes, written.numpy(), strict=True)}

    def metrics(self, output: Tensor, sample: Sample) -> list[tuple[str, str, float]]:
        """Mean absolute error of each map where it is known; NaN where that is nowhere."""
        rows = [
            ('mae', one.name, float(error.mean()))
            for one, (error, _) in zip(self.maps, self._errors(output, sample), strict=True)
        ]
        return [('mae', 'all', sum(value for *_, value in rows) / len(rows)), *rows]

    def calibrate(self, outputs: Sequence[Tensor], samples: Sequence[Sample]) -> Tensor:
        """(2, 2n) factors and shifts, of the log deviations where a map is known; else none."""
        n = len(self.maps)
        lines = unchanged_lines(2 * n)
        found = [self._errors(o, s) for o, s in zip(outputs, samples, strict=True)]
        for k, parts in enumerate(zip(*found, strict=True)):
            error, log_sd = (torch.cat(part) for part in zip(*parts, strict=True))
            if error.numel():
                lines[:, n + k] = torch.tensor(line_of(error, log_sd))
        return lines

    def _errors(self, output: Tensor, sample: Sample) -> list[tuple[Tensor, Tensor]]:
        """Of each map: absolute errors and log deviations (V,) in the voxels where it is known."""
        if sample.target is None:
            raise ValueError('metrics need a labelled sample')
        mean, log_sd = output.chunk(2)
        error = (mean.clamp(self.low, self.high) - sample.target).abs()
        known = (sample.target != 0) & sample.mask
        return [(e[at], sd[at]) for e, sd, at in zip(error, log_sd, known, strict=True)]
