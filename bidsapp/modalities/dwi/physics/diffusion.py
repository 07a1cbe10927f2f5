"""The diffusion tensor: weighted least squares for all voxels at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bidsapp.modalities.dwi.physics.acquisition import MIN_DIRECTIONS, acquisition
from bidsapp.modalities.dwi.physics.gradients import GradientTable, tensor_design
from bidsapp.modalities.dwi.physics.log_tensor import GAUSSIAN_LIMIT, SIGNAL_FLOOR
from bidsapp.physics.eigen import eigh
from bidsapp.problems import BadData

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from bidsapp.core import FloatArray

#: mm²/s; diffusivity of free water at body temperature.
FREE_WATER = 3.0e-3
#: Design matrices with a larger condition number do not determine a tensor.
MAX_CONDITION = 1e3
#: mm²/s, FA, and the share of a brain beyond them that is said; fixed tissue diffuses at 2e-4.
_STILL, _RIGID, _TOO_MANY = 5e-5, 0.98, 0.2
#: Voxels solved together; bounds the memory for normal equations and weights.
_CHUNK = 50_000


@dataclass(frozen=True, slots=True, eq=False)
class TensorMaps:
    """Tensors on a grid, axes of the gradient table (world); all zero where none was fitted."""

    evals: FloatArray  #: (…, 3) diffusivities in mm²/s, descending, not negative
    evecs: FloatArray  #: (…, 3, 3); column j is the eigenvector of ``evals[…, j]``

    @property
    def md(self) -> np.ndarray:
        """(…) mean diffusivity in mm²/s."""
        return np.asarray(self.evals.mean(-1))

    @property
    def fa(self) -> np.ndarray:
        """(…) fractional anisotropy, from 0 to 1 (Basser and Pierpaoli 1996)."""
        deviation = np.square(self.evals - self.evals.mean(-1, keepdims=True)).sum(-1)
        square = np.square(self.evals).sum(-1)
        ratio = np.divide(deviation, square, out=np.zeros_like(square), where=square > 0)
        return np.asarray(np.sqrt(np.minimum(1.5 * ratio, 1)))

    @property
    def direction(self) -> np.ndarray:
        """(…, 3) unit vector along the largest diffusivity; its sign means nothing."""
        return np.asarray(self.evecs[..., 0])


def tensor_volumes(gtab: GradientTable) -> NDArray[np.bool_]:
    """(N,) which volumes a tensor is fitted to: not weighted, or b ≤ about 1500 s/mm².

    Where those do not determine a tensor, shells are added, lowest b first, until they do.
    Raises BadData where all volumes together do not.
    """
    use = gtab.b0 | (gtab.bvals <= GAUSSIAN_LIMIT)
    for b, _ in [(0.0, None), *gtab.shells()]:
        use = use | (gtab.bvals <= b + 1)
        facts = acquisition(gtab[use])
        if facts.directions >= MIN_DIRECTIONS and facts.condition <= MAX_CONDITION:
            return np.asarray(use)
    raise BadData(
        f'{facts.directions} different directions (up to sign) with condition number '
        f'{facts.condition:.3g} do not determine a tensor; at least {MIN_DIRECTIONS} '
        'that are not on one cone are needed'
    )


def fit_tensor(
    data: FloatArray,
    gtab: GradientTable,
    mask: NDArray[Any] | None = None,
    device: str = 'cpu',
) -> TensorMaps:
    """Tensors of signals (N, V) or (X, Y, Z, N), any unit, in the axes of ``gtab``; in ``mask``.

    Two-step weighted linear least squares of ln S: ordinary least squares first, then weights
    equal to the squared signal which that fit predicts (Salvador 2005), for var(ln S) = σ²/S².
    Only the volumes of ``tensor_volumes`` are used, to stay where diffusion looks Gaussian.
    ``mask`` is (V,) or (X, Y, Z). Raises BadData where the table does not determine a tensor.
    """
    import torch

    signals = np.moveaxis(data, 0, -1) if data.ndim == 2 else data
    grid = signals.shape[:-1]
    inside = np.ones(grid, bool) if mask is None else np.asarray(mask, bool)
    use = tensor_volumes(gtab)
    design = torch.from_numpy(tensor_design(gtab[use])).to(device)
    evals, evecs = np.zeros((*grid, 3)), np.zeros((*grid, 3, 3))
    voxels = np.flatnonzero(inside)
    for chunk in np.array_split(voxels, max(-(-len(voxels) // _CHUNK), 1)):
        at = np.unravel_index(chunk, grid)
        part = torch.from_numpy(np.asarray(signals[at][:, use], np.float64)).to(device)
        values, vectors = _fit(part, design, gtab.b0[use])
        evals[at], evecs[at] = values.cpu().numpy(), vectors.cpu().numpy()
    return TensorMaps(evals, evecs)


def implausible(fa: FloatArray, md: FloatArray) -> list[str]:
    """What is said of FA and MD (V,) in a brain where too many voxels hold what no tissue has."""
    shares = (
        (float(np.mean(md > 1.1 * FREE_WATER)), 'diffuse faster than free water'),
        (float(np.mean(md < _STILL)), 'hardly diffuse at all'),
        (float(np.mean(fa > _RIGID)), f'have a fractional anisotropy above {_RIGID}'),
    )
    return [
        f'{100 * share:.0f} % of the voxels of the brain {words}, which no tissue does: look at '
        'the volumes, the b-values and the directions'
        for share, words in shares
        if share > _TOO_MANY
    ]


def _fit(
    signals: torch.Tensor, design: torch.Tensor, b0: NDArray[np.bool_]
) -> tuple[torch.Tensor, torch.Tensor]:
    """(V, 3) eigenvalues in mm²/s and (V, 3, 3) eigenvectors of signals (V, N)."""
    import torch

    s0 = signals[:, b0].mean(1) if b0.any() else signals.amax(1)
    fitted = torch.isfinite(signals).all(1) & (s0 > 0)
    relative = torch.where(fitted[:, None], signals / s0[:, None], torch.ones_like(signals))
    observed = relative.clamp(min=SIGNAL_FLOOR).log()
    first = observed @ torch.linalg.pinv(design).T
    weights = (2 * first @ design.T).clamp(-14, 2).exp()
    columns = design.shape[1]
    products = (design[:, :, None] * design[:, None, :]).flatten(1)
    normal = (weights @ products).view(-1, columns, columns)
    second = torch.linalg.solve(normal, (weights * observed) @ design)
    xx, yy, zz, xy, xz, yz = second[:, :6].T
    tensor = torch.stack([xx, xy, xz, xy, yy, yz, xz, yz, zz], 1).view(-1, 3, 3)
    values, vectors = eigh(tensor * 1e-3)
    values, vectors = values.flip(-1).clamp(min=0), vectors.flip(-1)
    return values * fitted[:, None], vectors * fitted[:, None, None]
