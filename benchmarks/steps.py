"""One step of preprocessing as a program: files in, files out, as the peers work.

    python benchmarks/steps.py STEP FOLDER

Ours, and DIPY's on a piece of the data. Prints a line of JSON: wall and CPU seconds from the
first byte read to the last byte written, without the start of Python and its imports; for a piece
also ``scale``, by which a whole scan is larger. Threads are those of OMP_NUM_THREADS.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
import torch
from scans import load, load_table, save

from bidsapp.modalities.dwi.physics.csd import (
    Response,
    best_shell,
    constrained_deconvolution,
    deconvolution_order,
    isotropic_floor,
    relative_signal,
    single_fibre_response,
)
from bidsapp.modalities.dwi.physics.diffusion import fit_tensor
from bidsapp.modalities.dwi.physics.gradients import n_unique
from bidsapp.modalities.dwi.physics.noddi import fit_noddi
from bidsapp.modalities.dwi.physics.noise import noise_variance
from bidsapp.modalities.dwi.physics.peaks import fibre_peaks
from bidsapp.modalities.dwi.physics.spherical_mean import fit_smt
from bidsapp.physics.denoising import denoise
from bidsapp.physics.ringing import unring

if TYPE_CHECKING:
    from collections.abc import Callable

    from bidsapp.core import BoolArray
    from bidsapp.modalities.dwi.physics.gradients import GradientTable

THREADS = int(os.environ.get('OMP_NUM_THREADS', '1'))
#: Voxels along each axis, volumes, and voxels: what DIPY is given of a scan.
PIECE, VOLUMES, VOXELS = 12, 2, 500


def _mask(folder: Path) -> BoolArray:
    return np.asarray(load(folder / 'mask.nii') > 0)


def _affine(folder: Path) -> np.ndarray:
    return np.asarray(nib.load(folder / 'dwi.nii').affine)


def _shell(folder: Path) -> tuple[GradientTable, np.ndarray, GradientTable, int]:
    """The whole table; volumes of the best shell and their table; order of the harmonics."""
    table = load_table(folder)
    _, volumes = best_shell(table)
    shell = table[volumes]
    return table, volumes, shell, deconvolution_order(n_unique(shell.bvecs))


def _mrtrix_signs(order: int) -> np.ndarray:
    """(K,) between our harmonics and those of MRtrix3, whose odd m have the other sign."""
    m = np.concatenate([np.arange(-deg, deg + 1) for deg in range(0, order + 1, 2)])
    return np.where(m % 2, -1.0, 1.0)


def _response(folder: Path, shell: GradientTable) -> Response:
    return Response(float(shell.bvals.mean()), np.loadtxt(folder / 'ours_response.txt'))


def denoise_ours(folder: Path) -> None:
    """The whole image, as in the workflow."""
    result = denoise(load(folder / 'dwi.nii'))
    save(folder / 'ours_denoise.nii', result.data, _affine(folder))
    save(folder / 'ours_noise.nii', result.sigma, _affine(folder))


def denoise_dipy(folder: Path) -> float:
    """A piece from the middle; DIPY leaves its rim of two voxels alone."""
    from dipy.denoise.localpca import mppca

    data = load(folder / 'dwi.nii')
    sides = [min(PIECE, n) for n in data.shape[:3]]
    corner = [(n - s) // 2 for n, s in zip(data.shape[:3], sides, strict=True)]
    x, y, z = (slice(c, c + s) for c, s in zip(corner, sides, strict=True))
    mppca(np.ascontiguousarray(data[x, y, z]), patch_radius=2, suppress_warning=True)
    return float(np.prod(data.shape[:3]) / np.prod([s - 4 for s in sides]))


def unring_ours(folder: Path) -> None:
    """The whole image, as in the workflow."""
    save(folder / 'ours_unring.nii', unring(load(folder / 'ours_denoise.nii')), _affine(folder))


def unring_dipy(folder: Path) -> float:
    """A few volumes."""
    from dipy.denoise.gibbs import gibbs_removal

    data = load(folder / 'ours_denoise.nii')
    gibbs_removal(data[..., :VOLUMES].copy(), num_processes=THREADS)
    return data.shape[3] / VOLUMES


def response_ours(folder: Path) -> None:
    """With the tensors that it starts from."""
    data, mask, table = load(folder / 'ours_unring.nii'), _mask(folder), load_table(folder)
    response = single_fibre_response(data, table, mask, fit_tensor(data, table, mask))
    np.savetxt(folder / 'ours_response.txt', response.zonal)


def fod_ours(folder: Path) -> None:
    """In the mask; as MRtrix3 writes it, so that its sh2peaks can read it."""
    data, mask = load(folder / 'ours_unring.nii'), _mask(folder)
    table, volumes, shell, order = _shell(folder)
    attenuation = relative_signal(data[mask], table, volumes)
    response = _response(folder, shell)
    density = constrained_deconvolution(attenuation, shell, response, order)
    image = np.zeros((*mask.shape, len(density)), np.float32)
    image[mask] = density.T * _mrtrix_signs(order)
    save(folder / 'ours_fod.nii', image, _affine(folder))


def fod_dipy(folder: Path) -> float:
    """Some voxels of the mask."""
    from dipy.core.gradients import gradient_table
    from dipy.reconst.csdeconv import ConstrainedSphericalDeconvModel

    data, mask, table = load(folder / 'ours_unring.nii'), _mask(folder), load_table(folder)
    voxels = data[mask][:: max(1, int(mask.sum()) // VOXELS)]
    evals = np.array([1.5e-3, 0.4e-3, 0.4e-3])
    model = ConstrainedSphericalDeconvModel(
        gradient_table(table.bvals, bvecs=table.bvecs),
        (evals, float(voxels[:, table.b0].mean())),
        sh_order_max=8,
    )
    _ = model.fit(voxels).shm_coeff
    return float(mask.sum() / len(voxels))


def peaks_ours(folder: Path) -> None:
    """At most three, in the mask, with the floor that isotropic tissue sets."""
    mask, fod = _mask(folder), load(folder / 'ours_fod.nii')
    table, volumes, shell, order = _shell(folder)
    attenuation = relative_signal(load(folder / 'ours_unring.nii'), table, volumes)
    variance = noise_variance(attenuation, mask, shell)
    floor = isotropic_floor(shell, _response(folder, shell), order, variance)
    density = (fod[mask] * _mrtrix_signs(order)).T
    directions, amplitudes = fibre_peaks(density, order, absolute=floor)
    image = np.zeros((*mask.shape, 9), np.float32)
    image[mask] = (directions * amplitudes[..., None]).reshape(-1, 9)
    save(folder / 'ours_peaks.nii', image, _affine(folder))


def tensor_ours(folder: Path) -> None:
    """The tensor as MRtrix3 writes it: xx yy zz xy xz yz in mm²/s."""
    data, mask = load(folder / 'ours_unring.nii'), _mask(folder)
    maps = fit_tensor(data, load_table(folder), mask)
    _save_tensor(folder / 'ours_tensor.nii', maps.evals, maps.evecs, folder)


def tensor_dipy(folder: Path) -> float:
    """The whole mask."""
    from dipy.core.gradients import gradient_table
    from dipy.reconst.dti import TensorModel

    data, mask, table = load(folder / 'ours_unring.nii'), _mask(folder), load_table(folder)
    fit = TensorModel(gradient_table(table.bvals, bvecs=table.bvecs), fit_method='WLS').fit(
        data, mask=mask
    )
    _save_tensor(folder / 'dipy_tensor.nii', fit.evals, fit.evecs, folder)
    return 1.0


def _save_tensor(path: Path, evals: np.ndarray, evecs: np.ndarray, folder: Path) -> None:
    matrix = (evecs * evals[..., None, :]) @ np.swapaxes(evecs, -1, -2)
    rows, columns = (0, 1, 2, 0, 0, 1), (0, 1, 2, 1, 2, 2)
    save(path, matrix[..., rows, columns].astype(np.float32), _affine(folder))


def noddi_ours(folder: Path) -> None:
    """Neurite density, dispersion, free water."""
    found = fit_noddi(load(folder / 'dwi.nii'), load_table(folder), _mask(folder))
    maps = np.stack([found.icvf, found.od, found.isovf], -1)
    save(folder / 'ours_noddi.nii', maps, _affine(folder))


def smt_ours(folder: Path) -> None:
    """Neurite density."""
    found = fit_smt(load(folder / 'dwi.nii'), load_table(folder), _mask(folder))
    save(folder / 'ours_smt.nii', found.icvf, _affine(folder))


def main(step: str, folder: Path) -> None:
    """Run one step and print what it took."""
    torch.set_num_threads(THREADS)
    known: dict[str, Callable[[Path], Any]] = globals()
    wall, cpu = time.perf_counter(), _cpu()
    scale = known[step](folder)
    cost = {'wall': time.perf_counter() - wall, 'cpu': _cpu() - cpu, 'scale': scale or 1.0}
    print(json.dumps(cost))


def _cpu() -> float:
    """Seconds of this process and of those that it waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


if __name__ == '__main__':
    main(sys.argv[1], Path(sys.argv[2]))
