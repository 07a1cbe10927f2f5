"""What tests do to a simulated run on disk: other names, fewer volumes, less that is known."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import nibabel as nib
import numpy as np

if TYPE_CHECKING:
    from pathlib import Path


def rename(source: Path, target: Path, old: str, new: str) -> None:
    """Copy the files of a folder under the names of another participant or session."""
    target.mkdir(parents=True)
    for path in source.iterdir():
        shutil.copy(path, target / path.name.replace(old, new))


def keep_volumes(folder: Path, stem: str, keep: np.ndarray) -> None:
    """Leave only the volumes ``keep`` of a run."""
    image = nib.load(folder / f'{stem}_dwi.nii.gz')
    data = np.asarray(image.dataobj)[..., keep]
    nib.save(nib.Nifti1Image(data, image.affine, image.header), folder / f'{stem}_dwi.nii.gz')
    for kind in ('bval', 'bvec'):
        table = np.atleast_2d(np.loadtxt(folder / f'{stem}_dwi.{kind}'))[:, keep]
        np.savetxt(folder / f'{stem}_dwi.{kind}', table, fmt='%.6f')


def keep_six_directions(folder: Path, stem: str) -> None:
    """Leave the first volume, which is not weighted, and six directions: the least for a tensor."""
    from bidsapp.modalities.dwi.physics.gradients import GradientTable
    from bidsapp.modalities.dwi.physics.subsets import well_spread

    bvals = np.loadtxt(folder / f'{stem}_dwi.bval')
    six = well_spread(GradientTable(np.loadtxt(folder / f'{stem}_dwi.bvec').T, bvals), 6)
    keep_volumes(folder, stem, np.r_[0, six[bvals[six] > 0]])


def without_phase_encoding(folder: Path, stem: str) -> None:
    """The metadata of a run no longer say along which axis it is distorted.

    Then no T1w image is tried as a guide of the correction, which takes as long as all other steps
    together; simulated heads are undistorted if nothing else is asked for.
    """
    sidecar = folder / f'{stem}_dwi.json'
    said = json.loads(sidecar.read_text())
    del said['PhaseEncodingDirection']
    sidecar.write_text(json.dumps(said))
