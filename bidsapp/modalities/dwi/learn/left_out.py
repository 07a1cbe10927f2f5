"""Volumes that a network was not shown, as its target: what it says of them, and how wrong it is.

A target holds for each of LEFT_OUT volumes its direction, the b of the bin that describes it (0:
none does), what the input's own harmonics say of S/S0 there, and the measured signal; then S0 and
the standard deviation of the noise. Directions, b and noise are the same at every voxel.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from bidsapp.modalities.dwi.physics import qspace
from bidsapp.modalities.dwi.physics.harmonics import harmonics_at
from bidsapp.modalities.dwi.physics.spherical_mean import mean_magnitude

if TYPE_CHECKING:
    from torch import Tensor

    from bidsapp.core import Head, Sample, Turn
    from bidsapp.modalities.dwi.physics.gradients import GradientTable

#: Volumes of a scan that are left out at a time; channels of each, and of a whole target.
LEFT_OUT, EACH = 4, 6
CHANNELS = LEFT_OUT * EACH + 2
#: A volume is described by a bin if its b is that of the bin within this share.
B_TOLERANCE = 0.02
#: Of the noise in units of S0, for scans without any.
LEAST_SIGMA = 1e-6
#: Squared error of S over S0² that counts as none.
LEAST_ERROR = 1e-5


def encoded(
    image: Tensor, seen: GradientTable, signals: Tensor, hidden: GradientTable, s0: Tensor,
    sigma: float,
) -> Tensor:  # fmt: skip
    """(CHANNELS, X, Y, Z) the target of an input ``image`` (C, X, Y, Z) made of the table ``seen``.

    ``signals`` (LEFT_OUT, X, Y, Z) are the volumes of the table ``hidden``, ``s0`` (X, Y, Z) the
    signal at b = 0 and ``sigma`` its noise, all in one unit; tables in the axes of the grid.
    """
    target = s0.new_zeros(CHANNELS, *s0.shape)
    bins = qspace.filled_slots(seen)
    harmonics = qspace.input_harmonics(image)
    for k in range(LEFT_OUT):
        part, b = target[EACH * k : EACH * (k + 1)], float(hidden.bvals[k])
        own = bins.get(qspace.slot_of(b))
        direction = torch.from_numpy(hidden.bvecs[k]).to(s0)
        part[:3] = direction[:, None, None, None]
        part[5] = signals[k]
        if own is not None and abs(b - own) <= B_TOLERANCE * own:
            part[3] = own
            part[4] = qspace.standard(own)[0] + _at(harmonics, direction, own)
    target[-2], target[-1] = s0, sigma
    return target


def explained(correction: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(M,) pairs of one sample: magnitudes expected by ``correction``, by none, and measured.

    ``correction`` (84, X, Y, Z); each (M, X, Y, Z), M the volumes that a bin describes.
    """
    s0, sigma = target[-2], target[-1]
    said, before, seen = [], [], []
    for part in target[:-2].split(EACH):
        b = float(part[3].amax())
        if b:
            change = _at(correction, part[:3, 0, 0, 0], b)
            said.append(magnitude(s0 * (part[4] + change), sigma))
            before.append(magnitude(s0 * part[4], sigma))
            seen.append(part[5])
    if not seen:
        nothing = correction.new_zeros(0, *correction.shape[1:])
        return nothing, nothing, nothing
    return torch.stack(said), torch.stack(before), torch.stack(seen)


def magnitude(signal: Tensor, sigma: Tensor) -> Tensor:
    """The mean magnitude of ``signal``, which is none below zero, in noise of ``sigma``."""
    return mean_magnitude(signal.clamp_min(0), sigma.clamp_min(LEAST_SIGMA))[0]


def errors(correction: Tensor, target: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """(B,) mean squared errors of volumes left out, with the correction and with none.

    In units of the median S0. ``correction`` (B, 84, …), ``target`` (B, CHANNELS, …), ``mask``
    (B, 1, …). Both are zero where no volume is described.
    """
    found = []
    for one, wanted, inside in zip(correction.float(), target, mask, strict=True):
        said, before, seen = explained(one, wanted)
        count = (inside.sum() * max(len(seen), 1)).clamp_min(1)
        found.append([((m - seen) * inside).square().sum() / count for m in (said, before)])
    left, plain = (torch.stack([pair[k] for pair in found]) for k in range(2))
    return left, plain


def is_given(target: Tensor) -> Tensor:
    """(B,) bool: which samples of ``target`` (B, CHANNELS, …) come with volumes left out."""
    return target[:, -1].flatten(1).any(1)


def with_left_out(head: Head) -> Head:
    """The head of `restore`, taught by the truth of simulated scans and by volumes left out.

    Its target goes on with `encoded`; a sample that comes with volumes left out is judged by
    those alone, in units of the median S0. Either way a network that changes nothing has a loss
    of 1.
    """
    n = head.targets

    def loss(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        real = is_given(target[:, n:])
        total = prediction.sum() * 0
        if not real.all():
            own = ~real
            total = total + head.loss(prediction[own], target[own, :n], mask[own]) * own.sum()
        if real.any():
            left, plain = errors(prediction[real], target[real, n:], mask[real])
            total = total + ((left + LEAST_ERROR) / (plain + LEAST_ERROR)).sum()
        return total / len(real)

    def metrics(output: Tensor, sample: Sample) -> list[tuple[str, str, float]]:
        if sample.target is None:
            raise ValueError('metrics need a labelled sample')
        if not is_given(sample.target[None, n:]).any():
            return head.metrics(output, replace(sample, target=sample.target[:n]))
        pair = errors(output[None], sample.target[None, n:], sample.mask[None])
        names = ('rmse', 'rmse_uncorrected')
        return [(k, 'left out', float(e.sqrt())) for k, e in zip(names, pair, strict=True)]

    def turn_target(target: Tensor, turn: Turn) -> Tensor:
        own = head.turn_target(target[:, :n], turn)
        return torch.cat([own, turned_target(target[:, n:], turn)], 1)

    return replace(head, targets=n + CHANNELS, loss=loss, metrics=metrics, turn_target=turn_target)


def turned_target(target: Tensor, turn: Turn) -> Tensor:
    """The target (B, CHANNELS, …) of a head that is turned: directions turn, all else stays."""
    found = target.clone()
    matrix = target.new_tensor(turn)
    for first in range(0, LEFT_OUT * EACH, EACH):
        vectors = target[:, first : first + 3]
        found[:, first : first + 3] = torch.einsum('dc,bcxyz->bdxyz', matrix, vectors)
    return found


def _at(harmonics: Tensor, direction: Tensor, b: float) -> Tensor:
    """(X, Y, Z) what harmonics (84, X, Y, Z) of an input add to S/S0 at a ``direction``."""
    first = qspace.slot_of(b) * qspace.N_SH
    _, spread = qspace.standard(round(b, 3))
    values = harmonics_at(direction[:, None], qspace.ORDER)[:, 0]
    weights = values * torch.tensor(spread).to(direction)
    return torch.tensordot(weights, harmonics[first : first + qspace.N_SH], dims=1)
