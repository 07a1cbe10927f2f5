"""Kurtosis by our bounded fit and by DIPY's plain one, on simulated tissue: time and limits.

    python benchmarks/kurtosis.py [--voxels 20000]

Sticks and a tensor about axes at random with some free water, 6 volumes of b = 0, 30 of 1000 and 60
of 2000 s/mm², Rician noise. Prints a row a fit: seconds for 100,000 voxels on one thread, maps
included; voxels of which AK and RK are not known; voxels at DIPY's lower limit of -3/7 in a map or
more; the medians of MK, AK, RK.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from dipy.core.gradients import gradient_table
from dipy.reconst.dki import DiffusionKurtosisModel

from bidsapp.modalities.dwi.physics.gradients import GradientTable
from bidsapp.modalities.dwi.physics.harmonics import fibonacci_hemisphere
from bidsapp.modalities.dwi.physics.kurtosis import LEAST, fit_kurtosis

#: Voxels that DIPY is given: its time grows with them.
FOR_DIPY = 2000
SNR = (1e6, 30, 15)
AXIAL, WATER = 1.7e-3, 3e-3  # mm²/s


def table() -> GradientTable:
    """Two shells."""
    vectors = np.concatenate([np.zeros((6, 3)), *map(fibonacci_hemisphere, (30, 60))])
    return GradientTable(vectors, np.repeat([0.0, 1000.0, 2000.0], (6, 30, 60)))


def tissue(gtab: GradientTable, n: int, snr: float) -> np.ndarray:
    """(n, 1, 1, N) magnitudes."""
    rng = np.random.default_rng(0)
    axes = rng.normal(size=(n, 3))
    along = (axes / np.linalg.norm(axes, axis=1, keepdims=True) @ gtab.bvecs.T) ** 2
    share, water = rng.uniform(0.2, 0.8, (n, 1)), rng.beta(1, 5, (n, 1))
    bd = gtab.bvals * AXIAL
    inside = share * np.exp(-bd * along)
    outside = (1 - share) * np.exp(-bd * (along + (1 - share) * (1 - along)))
    signal = (1 - water) * (inside + outside) + water * np.exp(-gtab.bvals * WATER)
    real, imaginary = rng.normal(size=(2, *signal.shape)) / snr
    return np.asarray(np.hypot(signal + real, imaginary)[:, None, None])


def ours(signals: np.ndarray, gtab: GradientTable) -> np.ndarray:
    """(V, 3) MK, AK, RK."""
    found = fit_kurtosis(signals, gtab, np.ones(signals.shape[:3], bool))
    return np.stack([found.mk, found.ak, found.rk], -1).reshape(-1, 3)


def dipys(signals: np.ndarray, gtab: GradientTable) -> np.ndarray:
    """(V, 3) MK, AK, RK by weighted least squares."""
    given = gradient_table(gtab.bvals, bvecs=gtab.bvecs)
    fit = DiffusionKurtosisModel(given, fit_method='WLS').fit(signals[:, 0, 0])
    return np.stack([fit.mk(), fit.ak(), fit.rk()], -1)


def main() -> None:
    """Print a row a fit."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--voxels', type=int, default=20_000)
    given = parser.parse_args()
    torch.set_num_threads(1)
    gtab = table()
    print('snr      fit    s/100,000  unknown  at limit  median MK, AK, RK')
    for snr in SNR:
        for name, fit, n in (('ours', ours, given.voxels), ('dipy', dipys, FOR_DIPY)):
            signals = tissue(gtab, n, snr)
            start = time.perf_counter()
            maps = fit(signals, gtab)
            took = (time.perf_counter() - start) * 1e5 / n
            unknown, limit = (maps[:, 1] == 0).mean(), (maps <= LEAST + 1e-6).any(1).mean()
            middle = ' '.join(f'{x:.3f}' for x in np.median(maps, 0))
            print(f'{snr:<8g} {name}   {took:9.1f}  {unknown:7.4f}  {limit:8.4f}  {middle}')


if __name__ == '__main__':
    main()
