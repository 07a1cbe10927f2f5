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

#: Share of a normal distribution within one standard deviation.
ONE_DEVIATION = 0.6827


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
    words = 'One standard deviation of the predicted value, as the network expects its error.'
    entities = {**output.entities, 'desc': 'uncertainty'}
    return Output(
        f'{output.name}_uncertainty', entities, 'float32', output.units, description=words + more,
        told_by='model',
    )  # fmt: skip


def deviations(output: Tensor) -> Tensor:
    """What a network says of its error, as logarithms → standard deviations."""
    return output.clamp(*LOG_SD).exp()


def shift_of(error: Tensor, log_sd: Tensor) -> float:
    """What to add to log deviations (V,) so that 68 % of the errors (V,) lie within one; V > 0."""
    ratios = error.log() - log_sd.clamp(*LOG_SD)
    return float(np.quantile(ratios.numpy(), ONE_DEVIATION))


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
        """(2n,) shifts of the log deviations; 0 for a map that is known nowhere."""
        n = len(self.maps)
        shift = torch.zeros(2 * n)
        found = [self._errors(o, s) for o, s in zip(outputs, samples, strict=True)]
        for k, parts in enumerate(zip(*found, strict=True)):
            error, log_sd = (torch.cat(part) for part in zip(*parts, strict=True))
            if error.numel():
                shift[n + k] = shift_of(error, log_sd)
        return shift

    def _errors(self, output: Tensor, sample: Sample) -> list[tuple[Tensor, Tensor]]:
        """Of each map: absolute errors and log deviations (V,) in the voxels where it is known."""
        if sample.target is None:
            raise ValueError('metrics need a labelled sample')
        mean, log_sd = output.chunk(2)
        error = (mean.clamp(self.low, self.high) - sample.target).abs()
        known = (sample.target != 0) & sample.mask
        return [(e[at], sd[at]) for e, sd, at in zip(error, log_sd, known, strict=True)]
