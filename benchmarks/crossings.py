"""How often are two crossing fibres found, and how often is what is found there?

    python benchmarks/crossings.py [--directions 64] [--b 1000] [--snr 30] [--voxels 1000]

Two fibres, each a tensor of 1.7 and 0.3 µm²/ms, cross at an angle with two volume fractions, in
random orientations; Rician noise. The response is learnt from voxels of one fibre of the same
noise. Recall: voxels in which both fibres have a peak within 20 degrees. Precision: peaks within
20 degrees of a fibre. Error: median angle of the matched peaks. Then the share of voxels without
any peak where there is no fibre, diffusivity 0.7 (grey matter) and 3 µm²/ms (water).
"""

from __future__ import annotations

import argparse

import numpy as np

from bidsapp.modalities.dwi.physics.csd import (
    constrained_deconvolution,
    deconvolution_order,
    fit_response,
    isotropic_floor,
)
from bidsapp.modalities.dwi.physics.gradients import GradientTable
from bidsapp.modalities.dwi.physics.harmonics import fibonacci_hemisphere
from bidsapp.modalities.dwi.physics.peaks import fibre_peaks

AXIAL, RADIAL = 1.7, 0.3
WITHIN = 20.0


def one_fibre(gtab: GradientTable, axes: np.ndarray) -> np.ndarray:
    """(N, V) attenuation of fibres along ``axes`` (V, 3)."""
    squares = np.square(gtab.bvecs @ axes.T)
    return np.asarray(np.exp(-gtab.bvals[:, None] * 1e-3 * (RADIAL + (AXIAL - RADIAL) * squares)))


def noisy(clean: np.ndarray, snr: float, rng: np.random.Generator) -> np.ndarray:
    """Rician magnitude."""
    real, imaginary = rng.normal(scale=1 / snr, size=(2, *clean.shape))
    return np.asarray(np.hypot(clean + real, imaginary))


def unit(rng: np.random.Generator, n: int) -> np.ndarray:
    """(n, 3) random directions."""
    vectors = rng.normal(size=(n, 3))
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def pairs(rng: np.random.Generator, n: int, degrees: float) -> tuple[np.ndarray, np.ndarray]:
    """Two (n, 3) directions that lie ``degrees`` apart."""
    first, other = unit(rng, n), unit(rng, n)
    across = np.cross(first, other)
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    angle = np.deg2rad(degrees)
    return first, np.cos(angle) * first + np.sin(angle) * np.cross(across, first)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--directions', type=int, default=64)
    parser.add_argument('--b', type=float, default=1000.0)
    parser.add_argument('--snr', type=float, default=30.0)
    parser.add_argument('--voxels', type=int, default=1000)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    n = options.directions
    gtab = GradientTable(fibonacci_hemisphere(n), np.full(n, options.b))
    along = unit(rng, 300)
    response = fit_response(noisy(one_fibre(gtab, along), options.snr, rng), gtab, along)
    order = deconvolution_order(n)
    floor = isotropic_floor(gtab, response, order, 1 / options.snr**2)

    def found(clean: np.ndarray) -> np.ndarray:
        signal = noisy(clean, options.snr, rng)
        density = constrained_deconvolution(signal, gtab, response, order)
        return fibre_peaks(density, order, absolute=floor)[0]

    print('fractions  angle  recall  precision  error')
    for share in (0.5, 0.6, 0.7):
        for degrees in (45, 60, 75, 90):
            truths = pairs(rng, options.voxels, degrees)
            clean = share * one_fibre(gtab, truths[0]) + (1 - share) * one_fibre(gtab, truths[1])
            peaks = found(clean)
            there = np.square(peaks).sum(-1) > 0
            cosines = np.abs(np.einsum('vpj,tvj->vpt', peaks, np.stack(truths))).clip(0, 1)
            angles = np.where(there[..., None], np.rad2deg(np.arccos(cosines)), 180)
            matched = angles.min(1)
            both = (matched < WITHIN).all(1)
            precision = (angles.min(2)[there] < WITHIN).mean()
            print(
                f'{100 * share:.0f} / {100 * (1 - share):.0f}    {degrees:4d}°  {both.mean():6.2f}'
                f'  {precision:9.2f}  {np.median(matched[both]) if both.any() else np.nan:4.1f}°'
            )
    for diffusivity in (0.7, 3.0):
        peaks = found(np.full((n, options.voxels), np.exp(-options.b * 1e-3 * diffusivity)))
        empty = (np.square(peaks).sum((1, 2)) == 0).mean()
        print(f'no fibre, {diffusivity:g} µm²/ms: no peak in {empty:.3f} of the voxels')


if __name__ == '__main__':
    main()
