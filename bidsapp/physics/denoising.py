"""Thermal noise taken out of a diffusion run by what random matrices cannot hide.

The voxels of a small patch hold few different signals, so their matrix (voxels by volumes) is one
of low rank plus noise, and the eigenvalues of pure noise keep to the range that Marchenko and
Pastur derived. The largest set of smallest eigenvalues whose spread is no wider than its mean
allows is noise (Veraart et al., NeuroImage 142, 2016); its degrees of freedom are counted as by
Cordero-Grande et al. (NeuroImage 200, 2019, 'Exp2'). The patch is projected onto the rest.

Patches lie half a window apart. A voxel's value is the mean over all patches that cover it, with
weights 1 / (1 + rank): the fewer signals a patch holds, the less noise is left in it (Manjón et
al., PLoS One 8, 2013). That is nearer to the truth than the patch around each voxel, for an eighth
of the decompositions. Components are kept whole: shrinking them comes nearer still in mean square,
but shrinks anisotropy.

The noise must be as the scanner measured it, without correlation between voxels: this comes before
anything that interpolates. What magnitude images add to low signals (Rician bias) stays.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from bidsapp.physics.eigen import eigh
from bidsapp.problems import Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future

    from numpy.typing import NDArray

    from bidsapp.core import FloatArray

#: Fewer volumes, or voxels with signal in a patch, give no spectrum to tell noise by.
MIN_VOLUMES = 15
#: Numbers in the patches that are worked on together.
_CHUNK = 2**20


@dataclass(frozen=True, slots=True, eq=False)
class Denoised:
    """A run without most of its noise, and how much noise there was."""

    data: FloatArray  #: (X, Y, Z, N) float32, units of the input
    sigma: FloatArray  #: (X, Y, Z) float32, standard deviation of the noise; 0 where unknown
    left: FloatArray  #: (X, Y, Z) float32, of what is left of it in ``data``; 0 where unknown
    window: tuple[int, ...]  #: voxels of a patch along each axis


@dataclass(frozen=True, slots=True, eq=False)
class _Filtered:
    """Some patches after the noise was taken out."""

    voxels: Tensor  #: (B, n) where they lie, indices into the list of all voxels
    signals: Tensor  #: (B, n, N) float32
    variance: Tensor  #: (B, 2) float32, of the noise, and of what the projection leaves of it
    weight: Tensor  #: (B,) float32


def denoise(
    data: FloatArray,
    mask: NDArray[Any] | None = None,
    device: str = 'cpu',
    progress: Callable[[int, int], Any] | None = None,
) -> Denoised:
    """``data`` (X, Y, Z, N), as it came from the scanner, with its thermal noise removed.

    Voxels outside ``mask`` (X, Y, Z; everywhere if None) stay as they were, and so do those that
    hold no signal or a value that is not finite. ``progress`` is called with (patches done, all
    patches). Raises Unavailable for fewer than MIN_VOLUMES volumes.
    """
    *grid, n_volumes = data.shape
    if n_volumes < MIN_VOLUMES:
        raise Unavailable(
            f'the run has {n_volumes} volumes; at least {MIN_VOLUMES} are needed to tell noise '
            'from signal by what the volumes have in common'
        )
    values = np.array(data, np.float32, order='C')
    values[~np.isfinite(values).all(-1)] = 0
    filled = np.asarray(values.any(-1))
    treated = filled if mask is None else filled & np.asarray(mask, bool)
    window = _window(grid, n_volumes)
    patches = _patches(treated, window)
    flat = torch.from_numpy(values).to(device).flatten(0, 2)
    total, variance = torch.zeros_like(flat), flat.new_zeros(len(flat), 2)
    weight = flat.new_zeros(len(flat))
    done = 0
    for part in _worked_through(flat, torch.from_numpy(filled).to(device).flatten(), *patches):
        where, share = part.voxels.flatten(), part.weight[:, None].expand(part.voxels.shape)
        total.index_add_(0, where, part.signals.flatten(0, 1))
        weighted = share[..., None] * part.variance[:, None]
        variance.index_add_(0, where, weighted.flatten(0, 1))
        weight.index_add_(0, where, share.flatten())
        done += len(part.voxels)
        if progress:
            progress(done, len(patches[0]))
    return _averaged(data, treated, (total, variance, weight), window)


def _averaged(
    data: FloatArray,
    treated: NDArray[np.bool_],
    sums: tuple[Tensor, Tensor, Tensor],
    window: tuple[int, ...],
) -> Denoised:
    """Weighted sums over patches (V, …) made means, in the voxels that are ``treated``."""
    total, variance, weight = sums
    covered = weight.clamp_min(torch.finfo(weight.dtype).tiny)
    result = total.div_(covered[:, None]).cpu().numpy().reshape(data.shape)
    deviation = (variance / covered[:, None]).sqrt().cpu().numpy().reshape(*treated.shape, 2)
    left = ~(treated & (weight > 0).cpu().numpy().reshape(treated.shape))
    np.copyto(result, data, where=left[..., None], casting='unsafe')
    deviation[left] = 0
    return Denoised(result, deviation[..., 0], deviation[..., 1], window)


def _window(grid: list[int], n_volumes: int) -> tuple[int, ...]:
    """Sides of the smallest odd cube, cut to the grid, that holds as many voxels as volumes."""
    side = 1
    while np.prod(np.minimum(side, grid)) < n_volumes and side < max(grid):
        side += 2
    return tuple(min(side, length) for length in grid)


def _patches(treated: NDArray[np.bool_], window: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """First voxels of the patches that hold a ``treated`` voxel, and offsets of their others.

    Both are indices into the flattened grid.
    """
    inside = torch.from_numpy(treated).float()[None, None]
    touched = functional.max_pool3d(inside, window, stride=1)[0, 0].numpy()
    along = [_starts(treated.shape[axis], side) for axis, side in enumerate(window)]
    starts = np.stack(np.meshgrid(*along, indexing='ij'), axis=-1).reshape(-1, 3)
    chosen = starts[touched[tuple(starts.T)] > 0]
    corners = np.ravel_multi_index(tuple(chosen.T), treated.shape)
    offsets = np.ravel_multi_index(tuple(np.indices(window).reshape(3, -1)), treated.shape)
    return torch.from_numpy(corners), torch.from_numpy(offsets)


def _starts(length: int, side: int) -> NDArray[np.int_]:
    """Where patches of ``side`` begin, about half a side apart, from one end of the axis to the
    other; counted from either end they are the same, or a mirrored run would differ.
    """
    last = length - side
    intervals = -(-last // max(1, side // 2))
    if not intervals:
        return np.zeros(1, int)
    even = np.arange(intervals + 1)
    first_half = even[2 * even <= intervals] * last // intervals
    return np.union1d(first_half, last - first_half)


def _worked_through(
    flat: Tensor, filled: Tensor, corners: Tensor, offsets: Tensor
) -> Iterator[_Filtered]:
    """The patches without noise, chunk after chunk; few results ever wait to be taken.

    ``flat`` (V, N) and ``filled`` (V,) as in `_filtered`; ``corners`` and ``offsets`` as from
    `_patches`. LAPACK takes one small matrix after the other on one core, so it is called from as
    many threads as there are cores.
    """
    corners, offsets = corners.to(flat.device), offsets.to(flat.device)
    chunks = corners.split(max(1, _CHUNK // (len(offsets) * flat.shape[1])))
    workers = torch.get_num_threads() if flat.device.type == 'cpu' else 1
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[_Filtered]] = deque()
        for chunk in chunks if len(corners) else ():
            waiting.append(pool.submit(_filtered, flat, filled, chunk[:, None] + offsets))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _filtered(flat: Tensor, filled: Tensor, voxels: Tensor) -> _Filtered:
    """The patches at ``voxels`` (B, n) of the signals ``flat`` (V, N), without noise, weighted.

    ``filled`` (V,) bool says which voxels hold a signal; the others are zero.
    """
    patches = flat[voxels]
    # The Gram matrix squares the ratio of signal to noise: above about 300, float32 would lose the
    # noise under rounding. A window smaller than N exists in tiny grids only: N × N always serves.
    double = patches.double()
    values, vectors = eigh(double.mT @ double)
    n_filled = filled[voxels].sum(1)
    rank, variance = _signal_rank(values.flip(-1).clamp_min(0), n_filled)
    weight = (n_filled >= MIN_VOLUMES) / (1 + rank)
    kept = torch.arange(values.shape[-1], device=rank.device).flip(0) < rank[:, None]
    projection = (vectors * (kept * weight[:, None])[:, None]) @ vectors.mT
    # Of the noise in m × n numbers as many parts stay as a matrix of that rank has.
    size = n_filled * values.shape[-1]
    share = rank * (n_filled + values.shape[-1] - rank) / size.clamp_min(1)
    both = torch.stack([variance, variance * share.clamp(0, 1)], 1).float()
    return _Filtered(voxels, patches @ projection.float(), both, weight)


def _signal_rank(values: Tensor, n_filled: Tensor) -> tuple[Tensor, Tensor]:
    """How many of the eigenvalues (B, N), largest first, are signal, and the noise variance (B,).

    Noise of variance s² in a matrix of m × n, m ≤ n, has m eigenvalues between s² (√n - √m)² and
    s² (√n + √m)², with mean s² n. With p components of signal, (m - p) × (n - p) are left to it.
    ``n_filled`` (B,) voxels hold a signal: empty ones are no measurement. Where not even the
    smallest eigenvalue looks like noise, all is signal and the variance 0.
    """
    n_volumes = values.shape[-1]
    counts = n_filled[:, None].to(values)
    rank = torch.arange(n_volumes, device=values.device)
    shorter = counts.clamp(max=n_volumes) - rank
    freedom = shorter.clamp_min(1) * (counts.clamp(min=n_volumes) - rank)
    by_mean = values.flip(-1).cumsum(-1).flip(-1) / freedom
    smallest = values.gather(-1, n_filled[:, None].clamp(1, n_volumes) - 1)
    by_spread = (values - smallest) / (4 * freedom.sqrt())
    noise = (by_spread < by_mean) & (shorter > 0)
    first = noise.int().argmax(-1)
    found = noise.any(-1)
    variance = by_mean.gather(-1, first[:, None])[:, 0]
    return torch.where(found, first, n_volumes), torch.where(found, variance, 0)
