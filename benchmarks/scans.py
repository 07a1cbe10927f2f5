"""Simulated scans as files, for the benchmarks: runs with their truth, and a BIDS dataset."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
import torch

from bidsapp.modalities.dwi.physics.gradients import GradientTable, from_fsl, to_fsl
from bidsapp.modalities.dwi.simulate.fibres import draw_bundles
from bidsapp.modalities.dwi.simulate.protocol import Protocol
from bidsapp.modalities.dwi.simulate.scan import simulate_dwi
from bidsapp.modalities.dwi.simulate.truth import named_maps
from bidsapp.physics.template import template_maps
from bidsapp.simulate.acquisition import rician
from bidsapp.simulate.anatomy import draw_head, head_template
from bidsapp.simulate.grids import Grid
from bidsapp.simulate.t1w import field_of_view, simulate_t1w

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from bidsapp.modalities.dwi.simulate.fibres import Bundles
    from bidsapp.simulate.anatomy import Head

#: b=0 signal of white matter over the noise.
SNR = 25.0
#: mm
T1W_VOXEL = 1.0
#: The sidecar of the run; all of k-space was sampled, so ringing is removed.
SIDECAR = {
    'Manufacturer': 'TransferMRI simulator',
    'PhaseEncodingDirection': 'j',
    'TotalReadoutTime': 0.05,
    'EffectiveEchoSpacing': 0.0005,
    'EchoTime': 0.085,
    'RepetitionTime': 6.0,
    'PartialFourier': 1,
}
NODDI_SHAPE = (40, 40, 8)


@dataclass(frozen=True, slots=True)
class Person:
    """Whom all scans of one benchmark are of."""

    head: Head
    bundles: Bundles


def draw_person(seed: int) -> Person:
    """The same seed gives the same person."""
    _, gm, wm, csf, affine = template_maps(1.5)
    template = head_template(*(torch.from_numpy(array) for array in (gm, wm, csf, affine)))
    generator = torch.Generator().manual_seed(seed)
    return Person(draw_head(template, generator), draw_bundles(template, generator))


def centred_grid(head: Head, shape: Sequence[int], voxel: float) -> Grid:
    """The grid (X, Y, Z) of ``voxel`` mm, axes RAS, about the middle of the head."""
    whole = field_of_view(head, torch.eye(3), voxel)
    affine = whole.affine.clone()
    spare = torch.tensor(whole.shape) - torch.tensor(list(shape))
    affine[:3, 3] += voxel * spare / 2
    x, y, z = shape
    return Grid((x, y, z), affine)


def write_scan(folder: Path, person: Person, grid: Grid, protocol: Protocol, seed: int) -> None:
    """dwi.nii (int16), clean.nii (float32, the same without noise), bval, bvec, mask.nii, truth.

    ``folder/truth_<name>.nii`` are the maps of `simulate.truth`; sigma.txt is the noise's standard
    deviation in each channel.
    """
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    run = simulate_dwi(person.head, person.bundles, grid, protocol, generator)
    pure = run.truth.tissue[1] >= 0.9 * run.truth.tissue[1].max()
    sigma = float(run.signal[0][pure].mean()) / SNR
    clean = run.signal.movedim(0, -1).contiguous()
    affine = grid.affine.double().numpy()
    table = GradientTable(run.bvecs.double().numpy(), run.bvals.double().numpy())
    save(folder / 'clean.nii', clean.numpy(), affine)
    save(folder / 'dwi.nii', _counts(rician(clean, sigma, generator).numpy()), affine)
    np.savetxt(folder / 'sigma.txt', [sigma])
    np.savetxt(folder / 'dwi.bvec', to_fsl(table, affine), fmt='%.7f')
    np.savetxt(folder / 'dwi.bval', table.bvals[None], fmt='%g')
    save(folder / 'mask.nii', np.asarray(run.truth.mask.numpy(), np.uint8), affine)
    for name, (array, _) in named_maps(run.truth).items():
        save(folder / f'truth_{name}.nii', array, affine)


def write_scans(
    folder: Path, shape: Sequence[int], voxel: float, directions: int, seed: int = 7
) -> None:
    """``folder/scan``, of one shell, with a patient's motion and eddy currents; ``folder/t1w.nii``.

    Also ``folder/shells``, small, of two shells, of a head that lies still.
    """
    person = draw_person(seed)
    noiseless: dict[str, Any] = {'snr': float('inf'), 'fine': 1}
    one = Protocol(shells=((1000.0, directions),), n_b0=1, **noiseless)
    write_scan(folder / 'scan', person, centred_grid(person.head, shape, voxel), one, seed)
    still: dict[str, Any] = {'motion_mm': 0.0, 'motion_deg': 0.0, 'eddy_hz': 0.0}
    two = Protocol(shells=((1000.0, 30), (2000.0, 60)), n_b0=6, **still, **noiseless)
    small = [min(pair) for pair in zip(shape, NODDI_SHAPE, strict=True)]
    write_scan(folder / 'shells', person, centred_grid(person.head, small, voxel), two, seed)
    upright = field_of_view(person.head, torch.eye(3), T1W_VOXEL, below=20)
    generator = torch.Generator().manual_seed(seed)
    image = simulate_t1w(person.head, upright, torch.eye(4), generator)
    save(folder / 't1w.nii', _counts(image.numpy()), upright.affine.double().numpy())


def write_dataset(folder: Path, scans: Path, t1w: bool) -> None:
    """A BIDS dataset of ``scans/scan``, with its T1w image or without."""
    dwi = folder / 'sub-01' / 'dwi'
    dwi.mkdir(parents=True)
    description = {'Name': 'Benchmark', 'BIDSVersion': '1.10.0', 'DatasetType': 'raw'}
    (folder / 'dataset_description.json').write_text(json.dumps(description))
    (folder / 'README.md').write_text('A simulated head; no person was scanned.\n')
    nib.save(nib.load(scans / 'scan' / 'dwi.nii'), dwi / 'sub-01_dwi.nii.gz')
    for kind in ('bval', 'bvec'):
        shutil.copy(scans / 'scan' / f'dwi.{kind}', dwi / f'sub-01_dwi.{kind}')
    (dwi / 'sub-01_dwi.json').write_text(json.dumps(SIDECAR))
    if t1w:
        (folder / 'sub-01' / 'anat').mkdir()
        nib.save(nib.load(scans / 't1w.nii'), folder / 'sub-01' / 'anat' / 'sub-01_T1w.nii.gz')


def load(path: Path) -> np.ndarray:
    """The voxels of an image as float32."""
    return np.asarray(nib.load(path).dataobj, np.float32)


def save(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    """Write an image, distances in mm."""
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units('mm', 'sec')
    nib.save(image, path)


def load_table(folder: Path) -> GradientTable:
    """The gradient table of a scan, world axes."""
    affine = nib.load(folder / 'dwi.nii').affine
    bvecs, bvals = np.loadtxt(folder / 'dwi.bvec'), np.loadtxt(folder / 'dwi.bval')
    return from_fsl(bvecs, bvals, affine)


def _counts(image: np.ndarray) -> np.ndarray:
    """Scanner units as whole numbers."""
    return np.asarray(np.clip(np.rint(image), 0, np.iinfo(np.int16).max), np.int16)
