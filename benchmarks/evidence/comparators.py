"""What a user has for nothing: tensor, blur, MP-PCA, deconvolution; one direction a voxel each.

All are given the same volumes, mask and S0 as the network. Axes in and out are world axes. Then
predictions without any knowledge, for the estimator that the network's goes into.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from scipy.ndimage import gaussian_filter

from bidsapp.modalities.dwi.physics.acquisition import acquisition
from bidsapp.modalities.dwi.physics.csd import (
    best_shell,
    constrained_deconvolution,
    deconvolution_order,
    relative_signal,
    single_fibre_response,
    supports_deconvolution,
)
from bidsapp.modalities.dwi.physics.diffusion import TensorMaps, fit_tensor
from bidsapp.modalities.dwi.physics.gradients import n_unique
from bidsapp.modalities.dwi.physics.peaks import fibre_peaks
from bidsapp.modalities.dwi.physics.restored import WIDTH, slots_of_volumes
from bidsapp.modalities.dwi.physics.unweighted import signal_at_zero
from bidsapp.physics.geometry import voxel_sizes
from bidsapp.problems import Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from realscans import Scan

    from bidsapp.modalities.dwi.physics.gradients import GradientTable

#: mm, full width at half maximum.
BLURS = (2.0, 3.0, 4.0, 5.0, 6.0)


def blurred(scan: Scan, fwhm: float) -> Scan:
    """Every volume smoothed by a Gaussian of ``fwhm`` mm that stops at the mask (weights)."""
    sigma = fwhm / WIDTH / voxel_sizes(scan.affine)
    inside = scan.mask.astype(np.float32)
    weight = np.maximum(gaussian_filter(inside, sigma), 1e-3)
    data = np.empty_like(scan.data)
    for v in range(data.shape[-1]):
        data[..., v] = gaussian_filter(scan.data[..., v] * inside, sigma) / weight * inside
    return replace(scan, data=data)


def tensor(scan: Scan, where: np.ndarray) -> TensorMaps:
    """Tensors in ``where``."""
    return fit_tensor(scan.data, scan.gtab, where)


def deconvolved(scan: Scan, where: np.ndarray) -> tuple[np.ndarray, int]:
    """Fibre densities (K, V) in ``where`` and their order. Raises Unavailable."""
    if not supports_deconvolution(acquisition(scan.gtab)):
        raise Unavailable('too few directions for deconvolution')
    _, volumes = best_shell(scan.gtab)
    table = scan.gtab[volumes]
    maps = tensor(scan, scan.mask)
    response = single_fibre_response(scan.data, scan.gtab, scan.mask, maps)
    order = deconvolution_order(n_unique(table.bvecs))
    signal = relative_signal(scan.data[where], scan.gtab, volumes)
    return constrained_deconvolution(signal, table, response, order), order


def directions(
    scan: Scan, denoised: np.ndarray | None, where: np.ndarray, blurs: Iterable[float] = BLURS
) -> dict[str, np.ndarray]:
    """Comparator → (V, 3) unit vectors in ``where``, zero where it has no answer."""
    found = {'tensor': tensor(scan, where).direction[where]}
    if denoised is not None:
        found['MP-PCA + tensor'] = tensor(replace(scan, data=denoised), where).direction[where]
    for fwhm in blurs:
        maps = tensor(blurred(scan, fwhm), where)
        found[f'blur {fwhm:g} mm + tensor'] = maps.direction[where]
    try:
        density, order = deconvolved(scan, where)
    except Unavailable:
        return found
    found['CSD'] = fibre_peaks(density, order, n=1)[0][:, 0]
    return found


def used(scan: Scan) -> np.ndarray:
    """(N', V) volumes in the mask that a prediction is for: those that have a slot."""
    return np.asarray(scan.data[scan.mask].T[slots_of_volumes(scan.gtab) >= 0])


def isotropic(scan: Scan, table: GradientTable | None = None) -> np.ndarray:
    """(N', V) every volume of ``table``, the scan's if None, the mean of its shell."""
    own, signal = slots_of_volumes(scan.gtab), scan.data[scan.mask].T
    wanted = own if table is None else slots_of_volumes(table)
    means = {slot: signal[own == slot].mean(0) for slot in np.unique(own[own >= 0])}
    return np.stack([means[slot] for slot in wanted[wanted >= 0]])


def of_tensor(scan: Scan, table: GradientTable, bright: Scan | None = None) -> np.ndarray:
    """(N', V) the volumes of ``table`` (world axes) that the tensor says, in the mask.

    By the scan's S0, or that of another scan.
    """
    maps = tensor(scan, scan.mask)
    evals, evecs = maps.evals[scan.mask], maps.evecs[scan.mask]
    table = table[slots_of_volumes(table) >= 0]
    bright = bright or scan
    s0 = signal_at_zero(bright.data[scan.mask], bright.gtab)
    along = np.square(np.einsum('ng,vgk->nvk', table.bvecs, evecs))
    return s0 * np.exp(-table.bvals[:, None] * np.einsum('nvk,vk->nv', along, evals))
