"""Fibre directions from diffusion MRI; the label comes from constrained deconvolution.

Over 300 lines, for what a network says of a direction, what is written of it and what it is judged
by are to be read together.
"""

from __future__ import annotations

from math import pi, sqrt
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bidsapp.bids.images import load_volume
from bidsapp.core import (
    Arrays,
    Case,
    Classical,
    Head,
    Label,
    LongerVoxels,
    Output,
    Sample,
    Task,
)
from bidsapp.learn.metrics import angular_errors
from bidsapp.modalities.dwi.learn.classical import first_direction
from bidsapp.modalities.dwi.learn.input import (
    brain_signal,
    noise_variance_of,
    with_directions,
)
from bidsapp.modalities.dwi.learn.losses import (
    DENSITY_ORDER,
    N_DENSITY,
    dyad,
    fibres,
    principal_axis,
    six,
    spread_about,
    symmetric,
)
from bidsapp.modalities.dwi.physics.axis_error import axis_error
from bidsapp.modalities.dwi.physics.csd import supports_deconvolution
from bidsapp.modalities.dwi.physics.diffusion import fit_tensor
from bidsapp.modalities.dwi.physics.gradients import n_unique
from bidsapp.modalities.dwi.physics.harmonics import largest_order
from bidsapp.modalities.dwi.physics.likeness import mean_fibres
from bidsapp.modalities.dwi.physics.mrtrix_basis import mrtrix_coefficients
from bidsapp.modalities.dwi.physics.peaks import MAX_FIBRES, at_directions, fibre_peaks, sphere
from bidsapp.modalities.dwi.physics.qspace import DENSITY_CHANNELS, input_harmonics
from bidsapp.modalities.dwi.physics.restored import (
    attenuation_at,
    restored_scan,
    single_fibre,
    slots_of_volumes,
)
from bidsapp.modalities.dwi.physics.turns import turned_harmonics
from bidsapp.modalities.dwi.physics.unweighted import signal_at_zero
from bidsapp.physics.geometry import ALL_TURNS, grid_axes, voxel_sizes
from bidsapp.problems import Unavailable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from bidsapp.core import FloatArray, Turn
    from bidsapp.modalities.dwi.physics.acquisition import Acquisition
    from bidsapp.modalities.dwi.physics.gradients import GradientTable

#: Numbers of a dyad, which come before the harmonics of the density.
N_DYAD = 6
#: Fibres cross where the network expects at least this many, and two or more peaks of the input's
#: deconvolved density, of at least this share of its highest, are confirmed: the network's own
#: density there is at least this share of its highest. (Under squared loss it is blurred by what is
#: not known of directions: it says where fibres may be, and deconvolution where they are.)
LEAST_MASS, PEAK, CONFIRMED = 0.8, 0.3, 0.2
#: Different directions of a shell from which crossings are named. On simulated scans of 6 and 12
#: they were named in single fibres as often as where fibres cross, off the main fibre.
MIN_CROSSING = 20
#: Degrees; peaks nearer to a stronger fibre than this are that fibre.
SEPARATION = 25.0
#: Root mean square degrees by which an axis errs that no noise tilts: fibres bend within a voxel,
#: and few of another bundle do not count as a second fibre. With it the stated root mean square
#: agrees with the errors in single fibres of a simulated head (2.25 for 2.20; 2.02 without).
NOT_NOISE = 1.0
#: Directions among which the highest value of a density is looked for.
_POINTS = 150


def _encoded(**more: Any) -> Mapping[str, Any]:
    """Fields of a sidecar on how volumes hold directions, by BEP016: in world axes, ± the same."""
    axes = {'EncodingAxis': 3, 'Reference': 'xyz'}
    return {'OrientationEncoding': {**more, **axes, 'AntipodalSymmetry': True}, **axes}


DIRECTION = Output(
    'direction',
    {'suffix': 'dwimap', 'param': 'direction'},
    'float32',
    description='Unit vectors along fibres, x y z in world axes (RAS+), three volumes a fibre, '
    'strongest first; zero where there is none. Of a network, where fibres do not cross: the main '
    'axis of the volumes as it restores them.',
    references=('csd', 'tensor'),
    told_by='model',
    sidecar=_encoded(Type='unit3vector', FillValue=0),
)
FOD = Output(
    'fod',
    {'suffix': 'dwimap', 'param': 'fod'},
    'float32',
    description='Density of fibre directions as spherical harmonics in the basis of MRtrix3 and '
    'world axes (RAS+); that of one fibre alone integrates to 1 over the sphere. By deconvolution '
    'in white matter; of a network, what it expects, in the brain. Elsewhere zero.',
    references=('csd',),
    told_by='model',
    sidecar=_encoded(Type='sh', SphericalHarmonicBasis='MRtrix3'),
)
UNCERTAINTY = Output(
    'direction_uncertainty',
    {'suffix': 'dwimap', 'param': 'direction', 'desc': 'uncertainty'},
    'float32',
    units='degree',
    description='Expected root mean square angle of the true first fibre from the first direction '
    'in the file: what the network expects of the strongest fibre about that direction, and at '
    'least what the noise that is left in the restored volumes does to their main axis (to first '
    'order, and 1 degree that is no noise). In single fibres of simulated heads it is too large by '
    '2 to 5 times. 54.7: nothing is known; 45: one of two axes. That the axes of the scan are '
    'swapped, nothing here tells. It means little where there are no fibres. Zero outside the '
    'brain.',
    told_by='model',
)


def load(sample: Sample, case: Case) -> Sample:
    """With the target (9, X, Y, Z): unit vectors in the axes of the sample's grid."""
    return with_directions(sample, case.files.get('direction'))


def finish(outputs: Mapping[str, Tensor], sample: Sample, case: Case) -> Arrays:
    """(51, X, Y, Z) dyads and densities → fibres, densities (world axes), degrees, in the brain.

    What they are is said by `named_fibres`.
    """
    inside, grid = sample.mask[0].numpy(), grid_axes(sample.affine)
    scan = brain_signal(case, sample) if 'dwi' in case.files else None
    vectors, degrees = named_fibres(outputs, sample, scan)
    density = outputs['orientation'][N_DYAD:, sample.mask[0]].numpy()
    world = np.zeros((*inside.shape, 3 * MAX_FIBRES), np.float32)
    world[inside] = (vectors @ grid.T).reshape(len(vectors), -1)
    fod = np.zeros((*inside.shape, N_DENSITY), np.float32)
    fod[inside] = mrtrix_coefficients(density.T, grid)
    uncertainty = np.zeros(inside.shape, np.float32)
    uncertainty[inside] = degrees
    return {'direction': world, 'direction_uncertainty': uncertainty, 'fod': fod}


def named_fibres(
    outputs: Mapping[str, Tensor],
    sample: Sample,
    scan: tuple[FloatArray, GradientTable] | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Fibres (V, MAX_FIBRES, 3) in the brain, grid axes, and degrees (V,) of the first of them.

    The first is the dyad's axis, refitted to the volumes (N, V) of the ``scan`` where there are
    any (`refit_principal_direction`), in every voxel but those where fibres cross (`fibres_of`),
    which is named from MIN_CROSSING directions in a shell. The degrees are those of the direction
    that is written (`expected_angles`).
    """
    output, correction = outputs['orientation'], outputs.get('restore')
    values = output[:, sample.mask[0]]
    dyads, density = values[:N_DYAD].T, values[N_DYAD:].numpy()
    seen = sample.image[DENSITY_CHANNELS][:, sample.mask[0]].numpy()
    first = principal_axis(dyads).numpy()
    errors = np.full(len(first), np.nan)
    if scan is not None:
        first, errors = refit_principal_direction(first, *scan, sample, correction)
        density = density if shows_crossings(scan[1]) else np.zeros_like(density)
    vectors = fibres_of(density, first, seen)
    return vectors, expected_angles(dyads, vectors, errors)


def expected_angles(dyads: Tensor, vectors: FloatArray, errors: FloatArray) -> np.ndarray:
    """(V,) degrees, root mean square, of the true first fibre from the first of ``vectors``.

    By the network's ``dyads`` (V, N_DYAD) about the direction that is written; where one fibre is
    named (V, MAX_FIBRES, 3) at least its expected sin² of this angle by noise, ``errors`` (V,), NaN
    where that is not known. Noise alone is too little where fibres cross unnamed: there its 68 %
    held 25 % of errors on a simulated head, the network's 80 %.
    """
    said = spread_about(dyads, torch.from_numpy(np.asarray(vectors[:, 0], np.float32))).numpy()
    alone = np.isfinite(errors) & ~vectors[:, 1].any(1)
    square = np.clip(np.where(alone, np.fmax(errors, said), said), 0, 1)
    return np.asarray(np.rad2deg(np.arcsin(np.sqrt(square))), np.float32)


def details(arrays: Arrays) -> Mapping[str, Mapping[str, Any]]:
    """The degree of the density, which of deconvolution follows from the directions of the scan."""
    if 'fod' not in arrays:
        return {}
    degree = largest_order(arrays['fod'].shape[-1])
    encoding = {**FOD.sidecar['OrientationEncoding'], 'SphericalHarmonicDegree': degree}
    return {'fod': {'OrientationEncoding': encoding}}


def shows_crossings(gtab: GradientTable) -> bool:
    """Whether some shell has directions enough for crossings to be named."""
    slots = slots_of_volumes(gtab)
    found = (n_unique(gtab.bvecs[slots == slot]) for slot in np.unique(slots[slots >= 0]))
    return max(found, default=0) >= MIN_CROSSING


def refit_principal_direction(
    axes: FloatArray,
    signal: FloatArray,
    gtab: GradientTable,
    sample: Sample,
    correction: Tensor | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Principal directions (V, 3) of the volumes (N, V) that a prediction restores, grid axes.

    And the expected sin² (V,) of their angle to the truth; NaN where ``axes`` had to do.

    The prediction is that of the same network's `restore` head if there is its ``correction``,
    else one fibre along ``axes`` (V, 3) a voxel. What it leaves of the data above the noise comes
    back (`physics.restored`): on a scanner whose like it has not met, a network names axes that
    the scan itself contradicts.
    """
    inside, noise = sample.mask[0].numpy(), float(np.sqrt(noise_variance_of(sample)))
    s0 = signal_at_zero(signal.T, gtab)
    if correction is not None:
        harmonics = input_harmonics(sample.image).numpy()[:, inside]
        harmonics = harmonics + correction.numpy()[:, inside]
        predicted = s0 * attenuation_at(harmonics, gtab)
    else:
        predicted = s0 * single_fibre(axes, gtab)
    size = voxel_sizes(sample.affine)
    restored, _, deviation = restored_scan(signal, predicted, gtab, inside, size, noise)
    tensor = fit_tensor(restored, gtab)
    errors = axis_error(tensor, restored, signal - restored, s0, gtab, inside, deviation)
    errors += (1 - 1.5 * errors) * np.sin(np.deg2rad(NOT_NOISE)) ** 2
    found = np.linalg.norm(tensor.direction, axis=1) > 0.5
    return np.where(found[:, None], tensor.direction, axes), np.where(found, errors, np.nan)


def fibres_of(density: FloatArray, first: FloatArray, seen: FloatArray) -> np.ndarray:
    """(V, MAX_FIBRES, 3) unit vectors or zeros, of V voxels.

    Fibres cross where at least two peaks of ``seen`` (N_DENSITY, V), what deconvolution says, are
    confirmed by what the network expects, ``density`` (N_DENSITY, V): then they are the fibres,
    those most expected first. Elsewhere there is one, along ``first`` (V, 3).
    """
    found = np.zeros((len(first), MAX_FIBRES, 3))
    found[:, 0] = first
    voxels = np.flatnonzero(density[0] * sqrt(4 * pi) > LEAST_MASS)
    if not len(voxels):
        return found
    peaks, heights = fibre_peaks(seen[:, voxels].astype(float), DENSITY_ORDER, PEAK, SEPARATION)
    expected = density[:, voxels].astype(float)
    highest = (sphere(DENSITY_ORDER, _POINTS)[1] @ expected).max(0)
    # A place without a peak has no direction; any will do where it does not count.
    somewhere = np.where(heights[..., None] > 0, peaks, (0.0, 0.0, 1.0))
    there = np.einsum('vnk,kv->vn', at_directions(somewhere, DENSITY_ORDER), expected)
    good = (heights > 0) & (there >= CONFIRMED * highest[:, None])
    order = np.argsort(-np.where(good, there, -np.inf), axis=1)[..., None]
    sorted_ = np.take_along_axis(np.where(good[..., None], peaks, 0), order, 1)
    crossing = good.sum(1) >= 2
    found[voxels[crossing]] = sorted_[crossing]
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


def written(outputs: Mapping[str, Tensor], sample: Sample, case: Case) -> Tensor:
    """(51, X, Y, Z) as the network says it, but the dyad that of the direction that is written."""
    world = finish(outputs, sample, case)['direction'][..., :3]
    return torch.cat([_dyads(world @ grid_axes(sample.affine)), outputs['orientation'][N_DYAD:]])


def _dyads(directions: FloatArray) -> Tensor:
    """(X, Y, Z, 3) unit vectors in the axes of the grid → (6, X, Y, Z)."""
    return dyad(torch.from_numpy(np.asarray(directions, np.float32))).movedim(-1, 0)


def classical(case: Case, sample: Sample) -> Tensor:
    """(51, X, Y, Z) with the dyad of the strongest fibre of the input's own volumes."""
    assert sample.target is not None
    white = (sample.target[:3].square().sum(0) > 0.5).numpy()
    found = _dyads(first_direction(case, sample, white))
    return torch.cat([found, found.new_zeros(N_DENSITY, *found.shape[1:])])


def averaged(case: Case, grid: LongerVoxels) -> Arrays:
    """The fibres of longer voxels."""
    mask = load_volume(case.files['mask']) > 0
    return {'direction': mean_fibres(load_volume(case.files['direction']), mask, grid)}


def source(acquisition: Acquisition) -> str:
    """'csd' where directions and b carry it, else 'tensor'."""
    return 'csd' if supports_deconvolution(acquisition) else 'tensor'


def derive(case: Case) -> Arrays:
    """The fibres that the workflow has found in white matter, and the density if it made one.

    Raises Unavailable without any fibre.
    """
    found = load_volume(case.files['fibres'])
    fibres, density = np.split(found, [3 * MAX_FIBRES], axis=-1)
    if not fibres.any():
        raise Unavailable('no voxel is anisotropic enough to hold a fibre')
    fod = {'fod': mrtrix_coefficients(density)} if density.shape[-1] else {}
    return {'direction': fibres, **fod}


def truth(known: Mapping[str, Tensor]) -> Tensor:
    """(9, X, Y, Z) unit vectors of the fibres that count, strongest first."""
    return known['fibres']


task = Task(
    head=Head(
        channels=N_DYAD + N_DENSITY,
        targets=3 * MAX_FIBRES,
        loss=fibres,
        metrics=metrics,
        score='angular_error_median',
        higher_is_better=False,
        words={
            f'angular_error_{word}': f'{word} angle to the reference direction in white matter, '
            'degrees'
            for word in ('median', 'mean')
        },
        turns=ALL_TURNS,
        turn_target=turn_target,
        turn_output=turn_output,
    ),
    writes=(DIRECTION, UNCERTAINTY, FOD),
    load=load,
    finish=finish,
    label=Label(
        source, derive, reads=('fibres',), beside=((FOD, 'csd'),), averaged=averaged, version=2
    ),
    truth=truth,
    written=written,
    classical=Classical(
        'constrained deconvolution where the input carries it, else the tensor, in the white '
        'matter of the label',
        lambda taught: classical,
    ),
    uses=('restore',),
    details=details,
    version=3,
)
