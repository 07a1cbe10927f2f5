"""Constrained spherical deconvolution (CSD): response, fibre orientation densities, peaks.

A voxel's attenuation is the convolution on the sphere of a fibre orientation density (FOD) with
the attenuation of one fibre. Densities are even real harmonics (physics/harmonics) in the axes of
the gradient table, and the density of one single fibre integrates to 1 over the sphere.

Over 300 lines, for response, deconvolution and what its masks rest on are one derivation.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import pi, sqrt
from typing import TYPE_CHECKING, Any

import numpy as np

from bidsapp.modalities.dwi.physics.acquisition import Acquisition, acquisition
from bidsapp.modalities.dwi.physics.diffusion import TensorMaps, fit_tensor
from bidsapp.modalities.dwi.physics.gradients import GradientTable, n_unique
from bidsapp.modalities.dwi.physics.harmonics import (
    basis,
    degrees,
    largest_order,
    n_coefficients,
    zonal_coefficients,
)
from bidsapp.modalities.dwi.physics.noise import noise_variance
from bidsapp.modalities.dwi.physics.peaks import fibre_peaks, sphere
from bidsapp.modalities.dwi.physics.unweighted import signal_at_zero
from bidsapp.problems import Unavailable

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from bidsapp.core import BoolArray, FloatArray

#: A shell supports deconvolution with at least so many directions and such a b (s/mm²): order 6 has
#: 28 coefficients, and the non-negativity constraint makes up for three.
MIN_DIRECTIONS, MIN_B = 25, 700.0
#: µm²/ms; the smallest diffusivity of isotropic tissue, which looks most like fibres.
GREY_DIFFUSIVITY = 0.7
#: Without a tissue map, white matter is where the fractional anisotropy exceeds this.
WHITE_MATTER_FA = 0.25


#: Densities below this share of their mean are pushed to zero, with this weight (Tournier 2007).
_TAU, _LAMBDA = 0.1, 0.4
_MAX_ITERATIONS = 30
#: Conjugate gradients between two looks at which directions are below, and when they are enough:
#: residual over right-hand side.
_STEPS, _TOLERANCE = 8, 1e-3
#: Directions in which a density is held positive, 9 degrees apart; order 8 has 45 coefficients.
_LOOKED_AT = 240
#: Share of them that are below the threshold in a voxel with fibres.
_USUALLY_BELOW = 0.6
#: Voxels solved together.
_CHUNK = 1000
#: Voxels that the response is sought among, those that it is made of, and the fewest that do.
_POOL, _BEST, _FEWEST = 1000, 300, 20
#: A voxel counts as one fibre while its second peak is below this share of the first.
_SECOND_PEAK = 0.15


@dataclass(frozen=True, slots=True, eq=False)
class Response:
    """Attenuation of one fibre on one shell, Σ a_l P_l(cos), cos to the fibre."""

    b: float  #: s/mm²
    zonal: FloatArray  #: (5,) a_l, l = 0, 2, …, 8
    n_voxels: int = 0  #: how many voxels it was estimated from

    def kernel(self, order: int) -> np.ndarray:
        """(K,) what convolution multiplies each harmonic with: 4π a_l / (2l + 1)."""
        degree = degrees(order)
        return np.asarray(4 * pi * self.zonal[degree // 2] / (2 * degree + 1))


def best_shell(gtab: GradientTable) -> tuple[float, NDArray[np.intp]]:
    """(b, volume indices) of ``Acquisition.best_shell``."""
    chosen, _ = acquisition(gtab).best_shell
    return next((b, members) for b, members in gtab.shells() if b == chosen)


def supports_deconvolution(facts: Acquisition) -> bool:
    """Whether the best shell has the directions for order 6 and enough b to tell crossings."""
    b, directions = facts.best_shell
    return directions >= MIN_DIRECTIONS and b >= MIN_B


def deconvolution_order(directions: int) -> int:
    """Order of the harmonics for a shell with so many different directions: 8 from 45, else 6.

    Order 4 is never used: it does not tell a crossing of 60 degrees from one fibre.
    """
    return max(largest_order(directions), 6)


def fit_response(attenuation: FloatArray, gtab: GradientTable, axes: FloatArray) -> Response:
    """The response of voxels (N, V), one shell, that hold one fibre each along ``axes`` (V, 3).

    Fitted as Σ w exp(-k cos²) with w, k ≥ 0, a mixture of axially symmetric Gaussians: positive,
    falling from equator to pole, and the signs of its a_l alternate; a free fit leaves the small
    a_6 and a_8, which decide about angular resolution, to noise.
    """
    from scipy.optimize import nnls

    b = float(gtab.bvals.mean())
    exponents = b * 1e-3 * np.linspace(0, 3, 25)
    squares = np.square(gtab.bvecs @ axes.T).ravel()
    # The triangular factor holds all that least squares needs to know of the long system.
    system = np.column_stack([np.exp(-squares[:, None] * exponents), attenuation.ravel()])
    triangle = np.asarray(np.linalg.qr(system, mode='r'))
    weights, _ = nnls(triangle[:, :-1], triangle[:, -1])
    nodes, quadrature = np.polynomial.legendre.leggauss(64)
    profile = np.exp(-np.square(nodes)[:, None] * exponents) @ weights
    return Response(b, zonal_coefficients(profile, nodes, quadrature), attenuation.shape[1])


def single_fibre_response(
    data: FloatArray,
    gtab: GradientTable,
    mask: NDArray[Any],
    tensor: TensorMaps,
    device: str = 'cpu',
) -> Response:
    """The response of the scan's own single fibres, on its best shell.

    ``data`` (X, Y, Z, N) signals, ``mask`` (X, Y, Z) white matter or brain (its rim is left out).
    The voxels of highest anisotropy give a first response; two rounds of deconvolution then drop
    those with a second peak and take each fibre's axis from its density (after Tax 2014 and
    Tournier 2013). Raises Unavailable where too few voxels qualify.
    """
    _, volumes = best_shell(gtab)
    table = gtab[volumes]
    order = deconvolution_order(n_unique(table.bvecs))
    pool = _anisotropic_voxels(mask, tensor)
    observed = relative_signal(data[pool], gtab, volumes)
    axes, chosen = tensor.direction[pool], np.arange(min(_BEST, len(pool[0])))
    for _ in range(2):
        response = fit_response(observed[:, chosen], table, axes[chosen])
        density = constrained_deconvolution(observed, table, response, order, device)
        directions, amplitudes = fibre_peaks(density, order, relative=0.01, n=2)
        single = np.flatnonzero(amplitudes[:, 1] <= _SECOND_PEAK * amplitudes[:, 0])
        if len(single) < _FEWEST:
            break
        axes, chosen = directions[:, 0], single[:_BEST]
    return fit_response(observed[:, chosen], table, axes[chosen])


def _anisotropic_voxels(mask: NDArray[Any], tensor: TensorMaps) -> tuple[NDArray[np.intp], ...]:
    """Indices of up to _POOL voxels that may hold one fibre, highest anisotropy first."""
    from scipy.ndimage import binary_erosion

    fa, md = tensor.fa, tensor.md
    # Anisotropy near 1 is an edge or an artefact, and free water is not white matter.
    plausible = (fa > 0.35) & (fa < 0.98) & (md > 0.3e-3) & (md < 1.5e-3)
    inner = plausible & binary_erosion(np.asarray(mask, bool))
    candidates = inner if inner.sum() >= _BEST else plausible & np.asarray(mask, bool)
    if candidates.sum() < _FEWEST:
        raise Unavailable(
            f'{int(candidates.sum())} voxels look like a single fibre bundle (anisotropy above '
            f'0.35); at least {_FEWEST} are needed to learn how one fibre attenuates the signal'
        )
    voxels = np.flatnonzero(candidates)
    best = voxels[np.argsort(-fa.ravel()[voxels], kind='stable')[:_POOL]]
    return np.unravel_index(best, fa.shape)


def relative_signal(
    signals: FloatArray, gtab: GradientTable, volumes: NDArray[np.intp]
) -> np.ndarray:
    """S/S0 (n, …) float32 of the n ``volumes`` of signals (…, N); S0 by `signal_at_zero`.

    Zero where S0 is not positive or the signal is not a number.
    """
    s0 = signal_at_zero(signals, gtab, np.float64)
    scale = np.divide(1.0, s0, out=np.zeros_like(s0), where=s0 > 0)
    relative = signals[..., volumes] * scale[..., None].astype(np.float32)
    relative = np.moveaxis(relative, -1, 0).astype(np.float32, copy=False)
    return np.clip(np.nan_to_num(relative), 0, 2)


def constrained_deconvolution(
    attenuation: FloatArray,
    gtab: GradientTable,
    response: Response,
    order: int,
    device: str = 'cpu',
) -> np.ndarray:
    """Fibre orientation densities (K, V) of attenuation (N, V) on one shell, ``gtab`` its volumes.

    Constrained spherical deconvolution (Tournier 2007): least squares with a penalty on the
    directions where the density is below 0.1 of the mean of a first estimate of order 4; solved
    again until the set of those directions stays the same.
    """
    import torch

    constraint = torch.from_numpy(sphere(order, _LOOKED_AT)[1]).to(device)
    forward = torch.from_numpy(basis(gtab.bvecs, order) * response.kernel(order)).to(device)
    densities = np.zeros((n_coefficients(order), attenuation.shape[1]))

    def solve(first: int) -> None:
        part = np.ascontiguousarray(attenuation[:, first : first + _CHUNK].T, np.float64)
        solved = _solve(torch.from_numpy(part).to(device), forward, constraint)
        densities[:, first : first + _CHUNK] = solved.cpu().numpy().T

    # A thread a batch: matrices this small are not worth sharing out.
    threads = torch.get_num_threads()
    workers = threads if device == 'cpu' else 1
    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            list(pool.map(solve, range(0, attenuation.shape[1], _CHUNK)))
    finally:
        torch.set_num_threads(threads)
    return densities


def _solve(observed: torch.Tensor, forward: torch.Tensor, constraint: torch.Tensor) -> torch.Tensor:
    """Densities (V, K) of ``observed`` (V, N), non-negative where ``constraint`` (M, K) looks.

    For a given set of directions below the threshold the normal equations are solved by conjugate
    gradients, warm from the set before, so no voxel's matrix is ever formed; the set is looked at
    anew every few steps. All voxels share one preconditioner, that of the mean set.
    """
    import torch

    n, k = forward.shape
    low = min(k, n_coefficients(4))
    first = torch.zeros(len(observed), k, dtype=observed.dtype, device=observed.device)
    first[:, :low] = observed @ torch.linalg.pinv(forward[:, :low]).T
    # In units of the data term: all sphere directions together weigh as much as the mean signal.
    scale = _LAMBDA * forward[:, 0].mean() * sqrt(n / len(constraint))
    gram = forward.T @ forward
    # Directions that lack a harmonic still give a solution; far below what order 8 adds by itself.
    gram = gram + 1e-7 * gram[0, 0] * torch.eye(k, dtype=gram.dtype, device=gram.device)
    usual = gram + _USUALLY_BELOW * scale**2 * constraint.T @ constraint
    change = torch.linalg.inv(torch.linalg.cholesky(usual)).T  # density = change · unknown
    single = torch.float32
    look = (scale * constraint @ change).to(single)
    data = (change.T @ gram @ change).to(single)
    wanted = (observed @ forward @ change).to(single)
    limit = (scale * _TAU * first[:, :1] / sqrt(4 * pi)).to(single)
    unknown = torch.linalg.solve(change, first.T).T.to(single)
    below = (unknown @ look.T < limit).to(single)
    running = torch.arange(len(observed), device=observed.device)
    solved = unknown.clone()
    for _ in range(_MAX_ITERATIONS):
        unknown, exact = _descend(unknown, wanted, below, data, look)
        solved[running] = unknown
        now = (unknown @ look.T < limit).to(single)
        kept = ((now != below).any(1) | ~exact).nonzero()[:, 0]
        if not len(kept):
            break
        running, unknown, below = running[kept], unknown[kept], now[kept]
        wanted, limit = wanted[kept], limit[kept]
    return solved.to(observed.dtype) @ change.T


def _descend(
    unknown: torch.Tensor,
    wanted: torch.Tensor,
    below: torch.Tensor,
    data: torch.Tensor,
    look: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A few conjugate gradients of (data + lookᵀ diag(below) look) unknown = wanted, (V, K) each.

    Returns the unknowns and, (V,), whether they are good to ``_TOLERANCE``.
    """

    def system(x: torch.Tensor) -> torch.Tensor:
        return x @ data + ((x @ look.T) * below) @ look

    residual = wanted - system(unknown)
    way, power = residual, residual.square().sum(1, keepdim=True)
    goal = _TOLERANCE**2 * wanted.square().sum(1, keepdim=True)
    for _ in range(_STEPS):
        image = system(way)
        step = power / (way * image).sum(1, keepdim=True).clamp_min(1e-30)
        unknown = unknown + step * way
        residual = residual - step * image
        last, power = power, residual.square().sum(1, keepdim=True)
        way = residual + power / last.clamp_min(1e-30) * way
    return unknown, (power < goal)[:, 0]


def isotropic_floor(
    gtab: GradientTable, response: Response, order: int, variance: float, device: str = 'cpu'
) -> float:
    """What the highest peak of a density must exceed to be no accident of isotropic tissue.

    The 99th percentile of the highest peak in simulated voxels without fibres, diffusivity that
    of grey matter, with noise of ``variance`` (of the attenuation); the draw is fixed. ``gtab``
    holds the volumes of the shell.
    """
    rng = np.random.default_rng(0)
    attenuation = np.exp(-response.b * 1e-3 * GREY_DIFFUSIVITY)
    observed = attenuation + rng.normal(scale=sqrt(variance), size=(len(gtab), 600))
    density = constrained_deconvolution(observed, gtab, response, order, device)
    return float(np.quantile(fibre_peaks(density, order, n=1)[1], 0.99))


def white_matter(
    fa: FloatArray,
    brain: BoolArray,
    white: NDArray[Any] | None = None,
    unseen: NDArray[Any] | None = None,
) -> BoolArray:
    """(X, Y, Z) where fibres are looked for: ``white`` matter, without it where ``fa`` is high.

    So too where the T1w that says ``white`` does not show the brain (``unseen``), but not in the
    outermost voxels: there distortion and partial volume look anisotropic.
    """
    from scipy.ndimage import binary_erosion

    anisotropic = fa > WHITE_MATTER_FA
    if white is None:
        return np.asarray(brain & anisotropic)
    found = np.asarray(white, bool)
    if unseen is not None:  # the edge of the image is no surface
        inner = binary_erosion(brain, border_value=True)
        found = found | (np.asarray(unseen, bool) & anisotropic & inner)
    return np.asarray(brain & (fa > 0) & found)


def fibre_directions(
    data: FloatArray,
    gtab: GradientTable,
    brain: NDArray[Any],
    white: NDArray[Any] | None = None,
    unseen: NDArray[Any] | None = None,
    device: str = 'cpu',
    deconvolve: bool = True,
    with_density: bool = False,
) -> np.ndarray:
    """Unit vectors along fibres in the axes of ``gtab``, (X, Y, Z, 3n) float32, strongest first.

    Up to three fibres by deconvolution where the table supports it, else, or if that is not to be,
    one by the tensor; in white matter (`white_matter`); zero where there is none.
    ``data`` (X, Y, Z, N) signals. Raises Unavailable where no single fibre is found to learn from.
    ``with_density``: where they are by deconvolution, its harmonics follow, (X, Y, Z, 9 + K).
    """
    tensor = fit_tensor(data, gtab, brain, device)
    inside = white_matter(tensor.fa, np.asarray(brain, bool), white, unseen)
    if not (deconvolve and supports_deconvolution(acquisition(gtab))):
        return np.where(inside[..., None], tensor.direction, 0).astype(np.float32)
    response = single_fibre_response(data, gtab, inside, tensor, device)
    _, volumes = best_shell(gtab)
    table = gtab[volumes]
    order = deconvolution_order(n_unique(table.bvecs))
    attenuation = relative_signal(data, gtab, volumes)
    variance = noise_variance(attenuation, np.asarray(brain, bool), table)
    density = constrained_deconvolution(attenuation[:, inside], table, response, order, device)
    floor = isotropic_floor(table, response, order, variance, device)
    directions, _ = fibre_peaks(density, order, absolute=floor)
    found = [directions.reshape(-1, 9), *([density.T] if with_density else [])]
    world = np.zeros((*inside.shape, sum(part.shape[1] for part in found)), np.float32)
    world[inside] = np.concatenate(found, axis=1)
    return world
