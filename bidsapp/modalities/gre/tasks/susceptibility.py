"""Magnetic susceptibility; the label is weighted total variation, or a map of the user's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from bidsapp.bids.images import load_volume, onto_sample, with_label
from bidsapp.core import Arrays, Case, Classical, Head, Label, Output, Sample, Task
from bidsapp.learn.losses import deviations, weighted_nll
from bidsapp.modalities.gre.bids.prepared import load_fields
from bidsapp.modalities.gre.bids.regions import CHIMAP, DSEG, tables
from bidsapp.modalities.gre.physics import agreement

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from bidsapp.modalities.gre.physics.acquisition import Acquisition

#: ppm that are 1 in a network's output; its stated deviations lie between 0.001 and 0.1 ppm.
UNIT = 0.1
CHIMAPS = 'chimaps'
CHI = Output(
    'chi', {'suffix': 'Chimap'}, 'float32', units='ppm',
    description='Magnetic susceptibility. It is known up to a constant: SusceptibilityReference '
    'says where it is 0 on average. A reference is by weighted total variation.',
    heading='Magnetic susceptibility',
)  # fmt: skip
UNCERTAINTY = Output(
    'chi_uncertainty', {'suffix': 'Chimap', 'desc': 'uncertainty'}, 'float32', units='ppm',
    description='Standard deviation that the network states of its error: the truth is expected '
    'within it in 68 % of voxels.',
)  # fmt: skip
DIVISION = Output(
    'tkd', {'suffix': 'Chimap'}, 'float32', units='ppm',
    description='Magnetic susceptibility by truncated division in k-space, to compare with.',
)  # fmt: skip
TIKHONOV = Output(
    'tikhonov', {'suffix': 'Chimap'}, 'float32', units='ppm',
    description="Magnetic susceptibility by Tikhonov's regularisation, to compare with.",
)  # fmt: skip


def load(sample: Sample, case: Case) -> Sample:
    """With the target (1, X, Y, Z) in units of 0.1 ppm, mean 0 in the mask."""
    found = with_label(sample, case.files.get('chi'))
    if found.target is not None:
        inside = found.target[found.mask]
        found.target.sub_(inside.mean()).mul_(found.mask / UNIT)
    return found


def loss(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Negative log-likelihood; prediction (B, 2, …): value, log deviation; target (B, 1, …)."""
    mean, log_sd = prediction.chunk(2, 1)
    return weighted_nll(mean, log_sd, target, mask)


def metrics(output: Tensor, sample: Sample) -> list[tuple[str, str, float]]:
    """NRMSE in per cent, XSIM, and the slope of output on target; both less their means."""
    if sample.target is None:
        raise ValueError('metrics need a labelled sample')
    mask = sample.mask[0].numpy()
    found, truth = (UNIT * x[0].double().numpy() for x in (output, sample.target))
    return [
        (name, 'all', getattr(agreement, name)(found, truth, mask))
        for name in ('nrmse', 'xsim', 'slope')
    ]


def finish(outputs: Mapping[str, Tensor], sample: Sample, case: Case) -> Arrays:
    """(2, X, Y, Z) → ppm, mean 0 in the mask, and its deviation; zero outside."""
    value, log_sd = UNIT * outputs['susceptibility'][0], outputs['susceptibility'][1]
    mask = sample.mask[0]
    value = (value - value[mask].mean()) * mask
    spread = UNIT * deviations(log_sd) * mask
    return {'chi': value.numpy(), 'chi_uncertainty': spread.numpy()}


def source(acquisition: Acquisition) -> str:
    """Every run that has a field has its susceptibility."""
    return 'reference'


def derive(case: Case) -> Arrays:
    """The classical maps, which the modality's steps have found."""
    maps = load_volume(case.files[CHIMAPS])
    return {o.name: maps[..., k] for k, o in enumerate((CHI, DIVISION, TIKHONOV))}


def classical(case: Case, sample: Sample) -> Tensor:
    """(2, X, Y, Z) by total variation of the local field, from the input's own files."""
    from bidsapp.modalities.gre.physics import maps

    fields = load_fields(case)
    chi = maps.susceptibility(
        fields.local, fields.noise, fields.known, fields.affine, b=fields.direction
    )
    value = torch.from_numpy(onto_sample(chi, fields.affine, sample).copy()).float() / UNIT
    return torch.cat([value, torch.zeros_like(value)])


def truth(known: Mapping[str, Tensor]) -> Tensor:
    """(1, X, Y, Z) in units of 0.1 ppm."""
    return known['chi'] / UNIT


task: Task[Acquisition] = Task(
    head=Head(
        channels=2,
        targets=1,
        loss=loss,
        metrics=metrics,
        score='xsim',
        higher_is_better=True,
        words={
            'nrmse': 'error over the truth, both less their means in the mask, per cent',
            'xsim': 'structural similarity in ppm (XSIM), 1 where both are the same',
            'slope': 'of the map on the truth: 1 where contrast is kept',
        },
    ),
    writes=(CHI, UNCERTAINTY),
    load=load,
    finish=finish,
    label=Label(
        source,
        derive,
        reads=(CHIMAPS, DSEG),
        beside=((DIVISION, 'tkd'), (TIKHONOV, 'tikhonov')),
        tables=tables,
        given=CHIMAP,
    ),
    truth=truth,
    classical=Classical(
        'total variation of the local field, its strength by the noise', lambda taught: classical
    ),
)
