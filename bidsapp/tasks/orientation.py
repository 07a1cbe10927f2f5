"""The main fibre direction from diffusion MRI; the label comes from constrained deconvolution."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from bidsapp.bids.samples import load_directions, load_sample, load_volume
from bidsapp.core import Acquisition, Arrays, Case, Output, Sample, Task
from bidsapp.learn.losses import dyadic, principal_axis
from bidsapp.learn.metrics import angular_errors
from bidsapp.physics.deconvolution import supports_deconvolution
from bidsapp.physics.gradients import grid_axes
from bidsapp.physics.qspace import SLOTS
from bidsapp.physics.turns import ALL_TURNS

if TYPE_CHECKING:
    from torch import Tensor

    from bidsapp.core import Turn

DIRECTION = Output(
    'direction',
    {'suffix': 'dwimap', 'param': 'direction'},
    'float32',
    description='Unit vectors along fibres, x y z in world axes (RAS+), three volumes a fibre, '
    'strongest first; zero where there is none.',
    references=('csd', 'tensor'),
)


def load(case: Case) -> Sample:
    """Canonical input; target (3, X, Y, Z): unit vectors in the axes of the sample's grid."""
    return load_directions(load_sample(case), case.files.get('direction'))


def finish(output: Tensor, sample: Sample) -> Arrays:
    """(6, X, Y, Z) dyads → (X, Y, Z, 3) principal axes in world axes, in the brain."""
    inside = sample.mask[0]
    axes = principal_axis(output.movedim(0, -1)[inside]).numpy()
    world = np.zeros((*inside.shape, 3), np.float32)
    world[inside.numpy()] = axes @ grid_axes(sample.affine).T
    return {'direction': world}


def turn_target(target: Tensor, turn: Turn) -> Tensor:
    """Vectors (B, 3, X, Y, Z) of a head that is turned."""
    return torch.einsum('dc,bcxyz->bdxyz', target.new_tensor(turn), target)


def metrics(output: Tensor, sample: Sample) -> list[tuple[str, str, float]]:
    """Median and mean angle (degrees) to the label where it has a direction, the white matter."""
    if sample.target is None:
        raise ValueError('metrics need a labelled sample')
    where = sample.mask[0] & (sample.target.square().sum(0) > 0.5)
    axes = principal_axis(output.movedim(0, -1)[where])
    errors = angular_errors(axes, sample.target.movedim(0, -1)[where])
    return [
        ('angular_error_median', 'WM', float(errors.median())),
        ('angular_error_mean', 'WM', float(errors.mean())),
    ]


def reference(acquisition: Acquisition) -> str:
    """'csd' where directions and b carry it, else 'tensor'."""
    return 'csd' if supports_deconvolution(acquisition) else 'tensor'


def derive(case: Case) -> Arrays:
    """The fibres that the workflow has found in white matter."""
    return {'direction': load_volume(case.files['fibres'])}


task = Task(
    name='orientation',
    modality='dwi',
    writes=(DIRECTION,),
    channels=6,
    load=load,
    loss=dyadic,
    finish=finish,
    metrics=metrics,
    score='angular_error_median',
    higher_is_better=False,
    reference=reference,
    derive=derive,
    reads=('fibres',),
    options={'slots': len(SLOTS)},
    turns=ALL_TURNS,
    turn_target=turn_target,
)
