"""NODDI: neurite density, orientation dispersion and free water, many voxels at once.

The model of Zhang et al. (NeuroImage 2012), with S0 = α + β and isovf = β / (α + β):

    S(b, g) = α [v E_ic + (1 - v) E_ec] + β exp(-b d_iso)

    E_ic = ∫ W(n; µ, κ) exp(-b d (g·n)²) dn              sticks, a Watson distribution about µ
    E_ec = exp(-b gᵀDg),  D = ∫ W(n; µ, κ) D(n) dn       tensors are averaged, not their signals
    D(n): d along n and d (1 - v) across (tortuosity),   OD = 2/π arctan(1/κ)

Both are functions of x = g·µ. With τ the mean of (n·µ)², the tensor D has the diffusivity
d (1 - v (1 + τ)/2) across µ, and d v (3τ - 1)/2 more along it. The sticks are a Legendre series:
the coefficients of a single stick, which depend on b alone and are tabulated once, each times the
Watson mean of its P_l.

The fit is least squares by damped Gauss-Newton steps on v, OD, α, β and µ within their bounds;
one start serves all voxels, with µ from the tensor. First the signal is fitted, then the mean of
a Rician magnitude with the noise level that the first fit left over: the noise's floor would
otherwise pass for neurites. Where fibres disperse most, OD is known least and its best fit lies
too low; what is reported is its mean under its own likelihood.
Within this module diffusivities are in µm²/ms and b in ms/µm² (1 = 1000 s/mm²).

Over 300 lines, for tables, model, likelihood and search share their constants and are one method.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from bidsapp.modalities.dwi.physics.acquisition import acquisition, determines_tensor
from bidsapp.modalities.dwi.physics.diffusion import fit_tensor
from bidsapp.modalities.dwi.physics.harmonics import legendre
from bidsapp.modalities.dwi.physics.spherical_mean import mean_magnitude, supports_smt
from bidsapp.problems import Unavailable

if TYPE_CHECKING:
    from bidsapp.core import BoolArray, FloatArray
    from bidsapp.modalities.dwi.physics.acquisition import Acquisition
    from bidsapp.modalities.dwi.physics.gradients import GradientTable

#: µm²/ms; along neurites, and of free water.
AXIAL, FREE_WATER = 1.7, 3.0
#: Smallest dispersion that is told from none (κ is then 32).
LEAST_OD = 0.02
#: With a smaller share of tissue nothing is known of its density and dispersion.
LEAST_TISSUE = 0.01


#: Highest degree of the Legendre series of the sticks.
_ORDER = 12
#: Parameters of a voxel: v, OD, α, β, and two turns of µ.
_N_PARAMETERS = 6
#: v, OD, α, β that every fit starts from: 99 % end within 1 % of the best of eight starts.
_START = (0.5, 0.3, 0.8, 0.2)
#: A fit ends when a step promises to lower the squared residuals by less than this share (and
#: this much for each volume, the square of float32's last digits), or after so many steps.
_GAIN, _LEAST_GAIN, _STEPS = 1e-4, 1e-12, 25
#: Of S0; less noise than this is none.
_LEAST_SIGMA = 1e-5
#: Voxels fitted together: what a processor's cache holds, and what fills a GPU.
_CHUNK, _CHUNK_GPU = 1000, 50_000


@dataclass(frozen=True, slots=True, eq=False)
class Noddi:
    """NODDI maps on a grid, all zero outside the mask.

    Where less than 1 % of S0 is tissue (cerebrospinal fluid), ``icvf`` and ``od`` are 0: they
    are properties of tissue. With little tissue they are mostly noise; weigh them by 1 - isovf.
    """

    icvf: FloatArray  #: (X, Y, Z) float32, neurites' share of tissue, 0 to 1
    od: FloatArray  #: (X, Y, Z) float32, 0 parallel to 1 in all directions
    isovf: FloatArray  #: (X, Y, Z) float32, free water's share of S0, 0 to 1
    direction: FloatArray  #: (X, Y, Z, 3) float32 unit vectors; axes of the table, sign free


def supports_noddi(facts: Acquisition) -> str | None:
    """Why an acquisition cannot yield NODDI; None if it can."""
    if (reason := supports_smt(facts)) is not None:
        return reason
    if not determines_tensor(facts):
        return f'the {facts.directions} directions do not determine a tensor'
    return None


def fit_noddi(
    data: FloatArray,
    gtab: GradientTable,
    mask: BoolArray,
    device: str = 'cpu',
    sigma: FloatArray | float | None = None,
    spread: FloatArray | float | None = None,
) -> Noddi:
    """NODDI in ``mask`` (X, Y, Z) from signals (X, Y, Z, N) of any unit, all shells together.

    ``direction`` is in the axes of ``gtab``. ``sigma``, a number or (X, Y, Z) in the unit of
    ``data``, is the noise that the magnitude was taken of: give it where ``data`` was denoised
    since; without it each voxel's own residuals tell. ``spread`` is the noise that is left in
    ``data``, by which the likelihood of the dispersion is judged; without it ``sigma`` is. Voxels
    whose signal is not finite or whose S0 is not positive stay zero. Raises Unavailable where
    ``supports_noddi`` gives a reason.
    """
    if (reason := supports_noddi(acquisition(gtab))) is not None:
        raise Unavailable(reason)
    scale = data[..., gtab.b0].mean(-1) if gtab.b0.any() else data.max(-1)
    inside = np.asarray(mask, bool) & np.isfinite(data).all(-1) & (scale > 0)
    model = _Model.of(gtab.bvals / 1000, gtab.bvecs, device)
    axes = fit_tensor(data, gtab, inside, device).direction
    levels = [sigma, sigma if spread is None else spread]
    noise = [] if sigma is None else [np.broadcast_to(np.asarray(s), inside.shape) for s in levels]
    maps = np.zeros((*inside.shape, 6), np.float32)
    voxels, chunk = np.flatnonzero(inside), _CHUNK if device == 'cpu' else _CHUNK_GPU
    for first in range(0, len(voxels), chunk):
        at = np.unravel_index(voxels[first : first + chunk], inside.shape)
        of = [data[at] / scale[at][:, None], axes[at]]
        of += [(level[at] / scale[at])[:, None] for level in noise]
        part = (torch.from_numpy(np.ascontiguousarray(a, np.float32)).to(device) for a in of)
        maps[at] = _fit(model, *part).cpu().numpy()
    return Noddi(maps[..., 0], maps[..., 1], maps[..., 2], maps[..., 3:])


def _fit(
    model: _Model,
    observed: Tensor,
    axis: Tensor,
    sigma: Tensor | None = None,
    spread: Tensor | None = None,
) -> Tensor:
    """(V, 6) icvf, od, isovf, axis of S/S0 (V, N); ``sigma``, ``spread`` (V, 1), relative to S0."""
    start = observed.new_tensor(_START).repeat(len(observed), 1)
    fit = _refine(model, observed, _look(model, observed, start, axis))
    if sigma is None:
        sigma = (fit.cost / max(len(model.b) - _N_PARAMETERS, 1)).sqrt()[:, None]
    sigma = sigma.clamp(min=_LEAST_SIGMA)
    spread = sigma if spread is None else spread.clamp(min=_LEAST_SIGMA)
    again = _look(model, observed, fit.parameters, fit.axis, sigma)
    fit = _refine(model, observed, again, sigma)
    v, _, tissue, water = fit.parameters.unbind(1)
    isovf = water / (tissue + water).clamp(min=1e-6)
    known = isovf <= 1 - LEAST_TISSUE
    maps = torch.stack([v * known, _mean_od(fit, spread) * known, isovf], 1)
    return torch.cat([maps, fit.axis], 1)


@cache
def _quadrature() -> tuple[np.ndarray, np.ndarray]:
    """x (Q,) of [0, 1] and P_l(x) · weight (Q, L), by which even functions are averaged."""
    nodes, weights = np.polynomial.legendre.leggauss(48)
    x = (nodes + 1) / 2
    return x, legendre(_ORDER, x) * (weights / 2)[:, None]


def _watson(od: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of each P_l(n·µ) over a Watson distribution of dispersion ``od`` (V,), and d/dOD."""
    x, table = (torch.from_numpy(a).to(od) for a in _quadrature())
    kappa = 1 / torch.tan(od * (torch.pi / 2))
    density = torch.exp(kappa[:, None] * (x**2 - 1))
    moments, rising = density @ table, (density * x**2) @ table
    mean, slope = moments / moments[:, :1], rising / moments[:, :1]
    slope = slope - mean * slope[:, :1]
    return mean, slope * (-(torch.pi / 2) * (1 + kappa**2))[:, None]


@dataclass(frozen=True, slots=True, eq=False)
class _Model:
    """The volumes of a scan, as the model sees them."""

    b: Tensor  #: (N,)
    bvecs: Tensor  #: (N, 3)
    sticks: Tensor  #: (L, K N) Watson means → coefficients of 1, x², x⁴, … in each volume
    water: Tensor  #: (N,) attenuation of free water
    unknown: Tensor  #: (N,) 1/3, the mean x², where the direction is not known, else 0

    @classmethod
    def of(cls, b: FloatArray, bvecs: FloatArray, device: str) -> _Model:
        """The model for ``b`` (N,) in ms/µm² and unit vectors (N, 3), zero where not known."""
        x, table = _quadrature()
        degree = np.arange(0, _ORDER + 1, 2)
        stick = (2 * degree + 1) * (np.exp(-b[:, None] * AXIAL * x**2) @ table)
        powers = np.zeros((len(degree), len(degree)))
        for row, deg in enumerate(degree):
            powers[row, : row + 1] = np.polynomial.legendre.leg2poly(np.eye(_ORDER + 1)[deg])[
                : deg + 1 : 2
            ]
        sticks = np.einsum('nl,lk->lkn', stick, powers).reshape(len(degree), -1)
        unknown = np.where(bvecs.any(1), 0, 1 / 3)
        arrays = (b, bvecs, sticks, np.exp(-b * FREE_WATER), unknown)
        return cls(*(torch.from_numpy(np.asarray(a, np.float32)).to(device) for a in arrays))

    def tissue(self, v: Tensor, od: Tensor, squares: Tensor) -> tuple[Tensor, ...]:
        """Attenuation of tissue (V, N) at x² = ``squares``; its slopes by v, OD and x²."""
        mean, slope = _watson(od)
        even = (len(mean), -1, len(self.b))
        rows = (mean @ self.sticks).view(even).unbind(1)
        slopes = (slope @ self.sticks).view(even).unbind(1)
        ic, ic_od, ic_x = rows[-1], slopes[-1], torch.zeros_like(squares)
        for row, row_od in zip(rows[-2::-1], slopes[-2::-1], strict=True):  # Horner's rule
            ic_x = torch.addcmul(ic, ic_x, squares)
            ic = torch.addcmul(row, ic, squares)
            ic_od = torch.addcmul(row_od, ic_od, squares)
        v, p2, p2_od = v[:, None], mean[:, 1:2], slope[:, 1:2]
        # What v takes from d: (1 + τ)/2 across µ, less (3τ - 1)/2 = <P_2> for each x².
        taken = (2 + p2) / 3 - p2 * squares
        ec = torch.exp(-self.b * AXIAL * (1 - v * taken))
        slower = (1 - v) * self.b * AXIAL * ec
        by_v = ic - ec + slower * taken
        by_od = v * (ic_od + slower * p2_od * (1 / 3 - squares))
        by_x = v * (ic_x - slower * p2)
        return ec + v * (ic - ec), by_v, by_od, by_x


@dataclass(frozen=True, slots=True, eq=False)
class _Fit:
    """A guess for each voxel and what Gauss and Newton need to better it."""

    parameters: Tensor  #: (V, 4) v, OD, α, β
    axis: Tensor  #: (V, 3) µ
    across: Tensor  #: (V, 2, 3) two unit vectors across µ, about which it turns
    cost: Tensor  #: (V,) sum of squared residuals
    gradient: Tensor  #: (V, 6) Jᵀ (observed - predicted)
    normal: Tensor  #: (V, 6, 6) JᵀJ

    def __getitem__(self, index: Tensor) -> _Fit:
        return _Fit(*(getattr(self, name)[index] for name in self.__slots__))

    def __setitem__(self, index: Tensor, other: _Fit) -> None:
        for name in self.__slots__:
            getattr(self, name)[index] = getattr(other, name)

    def step(self, damping: Tensor) -> Tensor:
        """(V, 6) damped step; a parameter at a bound that the slope points beyond stays."""
        low, high = self.bounds()
        gradient, normal = self.gradient.double(), self.normal.double()
        beyond = (self.parameters <= low) & (gradient[:, :4] < 0)
        beyond |= (self.parameters >= high) & (gradient[:, :4] > 0)
        free = torch.ones_like(gradient)
        free[:, :4] = (~beyond).double()
        diagonal = normal.diagonal(dim1=1, dim2=2) * damping[:, None] + 1e-9 + (1 - free)
        held = normal * free[:, :, None] * free[:, None] + torch.diag_embed(diagonal)
        step: Tensor = torch.linalg.solve(held, gradient * free)
        return step.to(self.parameters)

    def bounds(self) -> tuple[Tensor, Tensor]:
        """(4,) least and greatest v, OD, α, β."""
        low = self.parameters.new_tensor([0.0, LEAST_OD, 0.0, 0.0])
        return low, self.parameters.new_tensor([1.0, 1.0, torch.inf, torch.inf])

    def moved(self, step: Tensor) -> tuple[Tensor, Tensor]:
        """Parameters and axis after a ``step`` (V, 6), within their bounds."""
        parameters = (self.parameters + step[:, :4]).clamp(*self.bounds())
        turn = (step[:, 4:, None].clamp(-0.5, 0.5) * self.across).sum(1)
        return parameters, normalize(self.axis + turn, dim=1)


def _look(
    model: _Model, observed: Tensor, parameters: Tensor, axis: Tensor, sigma: Tensor | None = None
) -> _Fit:
    """Compare with S/S0 (V, N): the signal, or with ``sigma`` (V, 1) its mean magnitude."""
    helper = torch.zeros_like(axis).scatter_(1, axis.abs().argmin(1, keepdim=True), 1.0)
    first = normalize(torch.linalg.cross(axis, helper), dim=1)
    across = torch.stack([first, torch.linalg.cross(axis, first)], 1)
    x = axis @ model.bvecs.T
    v, od, tissue, water = parameters.unbind(1)
    tissue, water = tissue[:, None], water[:, None]
    attenuation, by_v, by_od, by_x = model.tissue(v, od, x * x + model.unknown)
    rows = [tissue * by_v, tissue * by_od, attenuation, model.water.expand_as(x)]
    turns = (2 * tissue * by_x * x)[:, None] * (across @ model.bvecs.T)
    jacobian = torch.cat([torch.stack(rows, 1), turns], 1)
    predicted = tissue * attenuation + water * model.water
    if sigma is not None:
        predicted, slope = mean_magnitude(predicted, sigma)
        jacobian = jacobian * slope[:, None]
    residual = observed - predicted
    gradient = (jacobian @ residual[..., None])[..., 0]
    cost, normal = residual.square().sum(1), jacobian @ jacobian.mT
    return _Fit(parameters, axis, across, cost, gradient, normal)


def _refine(model: _Model, observed: Tensor, fit: _Fit, sigma: Tensor | None = None) -> _Fit:
    """Damped Gauss-Newton steps (Levenberg and Marquardt), in place, each voxel until it rests."""
    running = torch.arange(len(observed), device=observed.device)
    damping = torch.full_like(fit.cost, 1e-3, dtype=torch.float64)
    for _ in range(_STEPS):
        here = fit[running]
        step = here.step(damping[running])
        promise = (step * here.gradient).sum(1)
        going = promise > _GAIN * here.cost + _LEAST_GAIN * len(model.b)
        running, here, step = running[going], here[going], step[going]
        if not len(running):
            break
        noise = None if sigma is None else sigma[running]
        trial = _look(model, observed[running], *here.moved(step), noise)
        lower = trial.cost < here.cost
        fit[running[lower]] = trial[lower]
        damping[running] *= torch.where(lower, 0.2, 8.0)
    return fit


def _mean_od(fit: _Fit, sigma: Tensor) -> Tensor:
    """(V,) mean OD under its likelihood, every OD as likely beforehand.

    The signal is nearly linear in the Watson mean of P_2, so the likelihood is taken as Gaussian
    in that, about the best fit; where all directions are nearly alike it is broad in OD, and the
    best fit, whose axis follows the noise, lies at its lower end.
    """
    normal = fit.normal.double()
    ridge = torch.diag_embed(1e-6 * normal.diagonal(dim1=1, dim2=2) + 1e-9)
    variance = torch.linalg.inv(normal + ridge)[:, 1, 1].to(sigma) * sigma[:, 0] ** 2
    grid = torch.linspace(LEAST_OD, 1, 500, device=sigma.device)
    mean, slope = (a[:, 1] for a in _watson(fit.parameters[:, 1]))
    # Never narrower than the grid is fine: noise-free signals keep their OD.
    width = (variance + (grid[1] - grid[0]) ** 2).sqrt() * slope.abs()
    deviation = (_watson(grid)[0][:, 1] - mean[:, None]) / width[:, None]
    likelihood = torch.exp(-0.5 * deviation**2)
    return (likelihood @ grid) / likelihood.sum(1)
