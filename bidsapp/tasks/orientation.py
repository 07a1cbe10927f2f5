"""Fibre directions from diffusion MRI; the label comes from constrained deconvolution."""

from __future__ import annotations

from math import pi, sqrt
from typing import TYPE_CHECKING

import numpy as np
import torch

from bidsapp.bids.samples import load_directions, load_sample, load_volume
from bidsapp.core import MAX_FIBRES, Acquisition, Arrays, Case, Output, Sample, Task
from bidsapp.learn.losses import (
    DENSITY_ORDER,
    N_DENSITY,
    fibres,
    principal_axis,
    six,
    symmetric,
)
from bidsapp.learn.metrics import angular_errors
from bidsapp.learn.uncertainty import axis_and_spread
from bidsapp.physics.deconvolution import supports_deconvolution
from bidsapp.physics.gradients import grid_axes
from bidsapp.physics.peaks import fibre_peaks
from bidsapp.physics.qspace import LAYOUT
from bidsapp.physics.turns import ALL_TURNS, turned_harmonics

if TYPE_CHECKING:
    from torch import Tensor

    from bidsapp.core import FloatArray, Turn

#: Numbers of a dyad, which come before the harmonics of the density.
N_DYAD = 6
#: A further fibre is a peak of at least this share of the highest, where at least this many fibres
#: are expected. (Under squared loss a density is blurred by what is not known of its directions, so
#: no absolute height says how likely a fibre is.)
SECOND_PEAK, LEAST_MASS = 0.35, 0.8
#: Degrees; peaks nearer to a stronger fibre than this are that fibre.
SEPARATION = 25.0

DIRECTION = Output(
    'direction',
    {'suffix': 'dwimap', 'param': 'direction'},
    'float32',
    description='Unit vectors along fibres, x y z in world axes (RAS+), three volumes a fibre, '
    'strongest first; zero where there is none.',
    references=('csd', 'tensor'),
)
UNCERTAINTY = Output(
    'direction_uncertainty',
    {'suffix': 'dwimap', 'param': 'direction', 'desc': 'uncertainty'},
    'float32',
    units='degree',
    description='Root mean square angle at which the network expects the true first fibre from the '
    'direction that it predicts. 54.7: it does not know. It was taught where there are fibres; '
    'elsewhere it means little. Zero outside the brain.',
)


def load(case: Case) -> Sample:
    """Canonical input; target (9, X, Y, Z): unit vectors in the axes of the sample's grid."""
    return load_directions(load_sample(case), case.files.get('direction'))


def finish(output: Tensor, sample: Sample, case: Case) -> Arrays:
    """(51, X, Y, Z) dyads and densities → fibres in world axes and degrees, in the brain.

    The first fibre (X, Y, Z, 3 of 9) is the dyad's axis, in every voxel of the brain; the others
    are peaks of the density where it has further ones.
    """
    inside = sample.mask[0].numpy()
    values = output[:, sample.mask[0]]
    first, degrees = axis_and_spread(values[:N_DYAD].T)
    axes = first.numpy()
    vectors = np.concatenate([axes[:, None], further_fibres(values[N_DYAD:].numpy(), axes)], axis=1)
    world = np.zeros((*inside.shape, 3 * MAX_FIBRES), np.float32)
    world[inside] = (vectors @ grid_axes(sample.affine).T).reshape(len(vectors), -1)
    uncertainty = np.zeros(inside.shape, np.float32)
    uncertainty[inside] = degrees.numpy()
    return {'direction': world, 'direction_uncertainty': uncertainty}


def further_fibres(density: FloatArray, first: FloatArray) -> np.ndarray:
    """(V, MAX_FIBRES - 1, 3) fibres beside ``first`` (V, 3) of densities (N_DENSITY, V); else 0."""
    found = np.zeros((len(first), MAX_FIBRES - 1, 3))
    voxels = np.flatnonzero(density[0] * sqrt(4 * pi) > LEAST_MASS)
    if not len(voxels):
        return found
    peaks, heights = fibre_peaks(
        density[:, voxels].astype(float), DENSITY_ORDER, SECOND_PEAK, SEPARATION
    )
    apart = np.abs(np.einsum('vnj,vj->vn', peaks, first[voxels])) < np.cos(np.deg2rad(SEPARATION))
    good = apart & (heights > 0)
    place = np.cumsum(good, 1) - 1
    voxel, peak = np.nonzero(good & (place < MAX_FIBRES - 1))
    found[voxels[voxel], place[voxel, peak]] = peaks[voxel, peak]
    return found


def turn_target(target: Tensor, turn: Turn) -> Tensor:
    """Vectors (B, 9, X, Y, Z) of a head that is turned."""
    vectors = target.unflatten(1, (-1, 3))
    return torch.einsum('dc,bncxyz->bndxyz', target.new_tensor(turn), vectors).flatten(1, 2)


def turn_output(output: Tensor, turn: Turn) -> Tensor:
    """Dyads and densities (B, 51, X, Y, Z) of a head that is turned."""
    turned = torch.tensor(turn).to(output)
    dyads = symmetric(output[:, :N_DYAD].movedim(1, -1))
    density = torch.from_numpy(turned_harmonics(turn, DENSITY_ORDER)).to(output)
    return torch.cat([
        six(turned @ dyads @ turned.T).movedim(-1, 1),
        torch.einsum('dc,bcxyz->bdxyz', density, output[:, N_DYAD:]),
    ], 1)  # fmt: skip


def metrics(output: Tensor, sample: Sample) -> list[tuple[str, str, float]]:
    """Median and mean angle (degrees) of the first fibre to the label where that has one."""
    if sample.target is None:
        raise ValueError('metrics need a labelled sample')
    truth = sample.target[:3]
    where = sample.mask[0] & (truth.square().sum(0) > 0.5)
    axes = principal_axis(output[:N_DYAD].movedim(0, -1)[where])
    errors = angular_errors(axes, truth.movedim(0, -1)[where])
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
    writes=(DIRECTION, UNCERTAINTY),
    channels=N_DYAD + N_DENSITY,
    targets=3 * MAX_FIBRES,
    load=load,
    loss=fibres,
    finish=finish,
    metrics=metrics,
    score='angular_error_median',
    higher_is_better=False,
    reference=reference,
    derive=derive,
    reads=('fibres',),
    options=LAYOUT,
    turns=ALL_TURNS,
    turn_target=turn_target,
    turn_output=turn_output,
)
