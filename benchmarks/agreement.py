"""What the results of a step and of its peer have in common, and how far they are from the truth.

Each function reads the files of one scan, as benchmarks/preprocessing.py leaves them, and says it
in a line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scans import load

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def _inside(folder: Path, name: str = 'mask', label: int = 1) -> np.ndarray:
    return np.asarray(load(folder / f'{name}.nii') == label)


def _white(folder: Path) -> np.ndarray:
    return _inside(folder, 'truth_seg-tissue_desc-truth_dseg', 2)


def _spread(values: np.ndarray, q: float) -> str:
    return (
        f'median {np.median(values):.4f}, {100 * q:.0f}th percentile {np.quantile(values, q):.4f}'
    )


def denoising(folder: Path) -> str:
    """Distance from the scan without noise, in the brain, as a share of the noise put in."""
    mask, sigma = _inside(folder), float(np.loadtxt(folder / 'sigma.txt'))
    clean = load(folder / 'clean.nii')[mask]
    left = [
        np.sqrt(np.square(load(folder / f'{name}.nii')[mask] - clean).mean()) / sigma
        for name in ('dwi', 'ours_denoise', 'mrtrix_denoise')
    ]
    found = [np.median(load(folder / f'{w}_noise.nii')[mask]) / sigma for w in ('ours', 'mrtrix')]
    return (
        f'RMSE to noise-free {left[1]:.3f} / {left[2]:.3f} sigma (raw {left[0]:.3f}); '
        f'sigma found {found[0]:.3f} / {found[1]:.3f}'
    )


def unringing(folder: Path) -> str:
    """Of the corrections, in the brain."""
    mask = _inside(folder)
    before = load(folder / 'ours_denoise.nii')[mask]
    ours, theirs = (load(folder / f'{w}_unring.nii')[mask] - before for w in ('ours', 'mrtrix'))
    rms = [float(np.sqrt(np.square(a).mean())) for a in (ours, theirs, ours - theirs)]
    r = np.corrcoef(ours.ravel(), theirs.ravel())[0, 1]
    return f'corrections: RMS {rms[0]:.2f} / {rms[1]:.2f}, of difference {rms[2]:.2f}, r {r:.4f}'


def response(folder: Path) -> str:
    """Zonal harmonics over the one of degree 0, which decide about the sharpening."""
    zonal = np.loadtxt(folder / 'ours_response.txt')
    ours = zonal / np.sqrt((2 * np.arange(0, 2 * len(zonal), 2) + 1) / (4 * np.pi))
    theirs = np.loadtxt(folder / 'mrtrix_response.txt')
    pairs = [(2 * k, ours[k] / ours[0], theirs[k] / theirs[0]) for k in (1, 2)]
    return ', '.join(f'r{k}/r0 {a:.3f} / {b:.3f} ({a / b - 1:+.0%})' for k, a, b in pairs)


def densities(folder: Path) -> str:
    """Angular correlation (Anderson 2005), without degree 0, in true white matter."""
    white = _white(folder)
    ours, theirs = (load(folder / f'{w}_fod.nii')[white][:, 1:] for w in ('ours', 'mrtrix'))
    norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    r = (ours * theirs).sum(1) / np.maximum(norms, 1e-12)
    return f'angular correlation: {_spread(r, 0.05)}'


def _degrees(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Angles between lines (V, 3)."""
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    cosine = np.abs((a * b).sum(-1)) / np.maximum(lengths, 1e-12)
    return np.asarray(np.rad2deg(np.arccos(np.minimum(cosine, 1))))


def peaks(folder: Path) -> str:
    """First peaks where true white matter has one fibre and both found one."""
    single = _inside(folder, 'truth_seg-nfib_desc-truth_dseg', 1)
    truth = load(folder / 'truth_model-truth_param-direction_dwimap.nii')[single][:, :3]
    first = [
        np.nan_to_num(load(folder / f'{w}_peaks.nii')[single][:, :3]) for w in ('ours', 'mrtrix')
    ]
    both = np.logical_and(*(np.linalg.norm(p, axis=1) > 0 for p in first))
    apart, *errors = (
        np.median(_degrees(a[both], b[both]))
        for a, b in ((first[0], first[1]), (first[0], truth), (first[1], truth))
    )
    return (
        f'{apart:.2f}° apart; to truth {errors[0]:.2f}° / {errors[1]:.2f}°, in {both.mean():.0%} '
        'of single-fibre white matter'
    )


def _anisotropy(path: Path, mask: np.ndarray) -> np.ndarray:
    """FA of tensors as MRtrix3 writes them."""
    xx, yy, zz, xy, xz, yz = load(path)[mask].astype(float).T
    trace = (xx + yy + zz) / 3
    square = xx**2 + yy**2 + zz**2 + 2 * (xy**2 + xz**2 + yz**2)
    deviation = square - 3 * trace**2
    return np.sqrt(1.5 * deviation / np.maximum(square, 1e-20))


def _tensors(peer: str) -> Callable[[Path], str]:
    def compared(folder: Path) -> str:
        """In the brain."""
        mask = _inside(folder)
        ours, theirs = (_anisotropy(folder / f'{w}_tensor.nii', mask) for w in ('ours', peer))
        return f'|ΔFA|: {_spread(np.abs(ours - theirs), 0.99)}'

    return compared


def _parameters(folder: Path) -> tuple[np.ndarray, list[np.ndarray]]:
    """Where one fibre is and less than half is water; true density, dispersion and water there."""
    names = ('icvf', 'od', 'isovf')
    maps = [load(folder / f'truth_model-truth_param-{name}_dwimap.nii') for name in names]
    where = _inside(folder, 'truth_seg-nfib_desc-truth_dseg', 1) & (maps[2] < 0.5)
    return where, [values[where] for values in maps]


def noddi(folder: Path) -> str:
    """Mean absolute errors of neurite density, dispersion and free water."""
    return f'MAE of icvf, od, isovf: {_mean_errors(folder, "ours_noddi.nii")}'


def noddi_beside_amico(folder: Path) -> str:
    """The same, and AMICO's."""
    theirs = _mean_errors(folder, *(f'amico/fit_{n}.nii.gz' for n in ('NDI', 'ODI', 'FWF')))
    return f'{noddi(folder)} / {theirs}'


def _mean_errors(folder: Path, *files: str) -> str:
    where, truth = _parameters(folder)
    maps = np.column_stack([load(folder / name)[where] for name in files]).T
    return ' '.join(f'{np.abs(a - t).mean():.3f}' for a, t in zip(maps, truth, strict=True))


def spherical_mean(folder: Path) -> str:
    """Mean absolute error of the neurite density, where there is little free water."""
    where, truth = _parameters(folder)
    little = truth[2] < 0.1
    error = np.abs(load(folder / 'ours_smt.nii')[where] - truth[0])[little]
    return f'MAE of icvf {error.mean():.3f}'


#: (step, peer) → what to say of it; 'none' where the peer is missing.
AGREEMENT: dict[tuple[str, str], Callable[[Path], str]] = {
    ('denoise', 'mrtrix'): denoising,
    ('unring', 'mrtrix'): unringing,
    ('response', 'mrtrix'): response,
    ('fod', 'mrtrix'): densities,
    ('peaks', 'mrtrix'): peaks,
    ('tensor', 'mrtrix'): _tensors('mrtrix'),
    ('tensor', 'dipy'): _tensors('dipy'),
    ('noddi', 'amico'): noddi_beside_amico,
    ('noddi', 'none'): noddi,
    ('smt', 'none'): spherical_mean,
}
