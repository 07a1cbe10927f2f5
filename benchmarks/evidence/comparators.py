"""What a user has for nothing: tensor, blur, MP-PCA, deconvolution; one direction a voxel each.

All are given the same volumes, mask and S0 as the network. Axes in and out are world axes.
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
from bidsapp.modalities.dwi.physics.restored import WIDTH
from bidsapp.physics.geometry import voxel_sizes
from bidsapp.problems import Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from realscans import Scan

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
