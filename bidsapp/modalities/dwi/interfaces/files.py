"""Files that steps of diffusion MRI hand to each other, and the mean b=0 image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from nipype.interfaces.base import File, TraitedSpec, traits

from bidsapp.bids.images import open_image
from bidsapp.interfaces.base import Step, StepInput
from bidsapp.interfaces.files import save_like
from bidsapp.modalities.dwi.bids.tables import b0_threshold_of, read_numbers
from bidsapp.modalities.dwi.physics import gradients
from bidsapp.modalities.dwi.physics.gradients import B0_THRESHOLD, GradientTable


def save_table(folder: Path, gtab: GradientTable, affine: np.ndarray) -> dict[str, str]:
    """Write bval and bvec files; (bval, bvec) outputs."""
    np.savetxt(folder / 'dwi.bval', gtab.bvals[None], fmt='%.6g')
    np.savetxt(folder / 'dwi.bvec', gradients.to_fsl(gtab, affine), fmt='%.8f')
    return {'bval': str(folder / 'dwi.bval'), 'bvec': str(folder / 'dwi.bvec')}


def read_table(dwi: Path, bval: Path, bvec: Path, b0_threshold: float) -> GradientTable:
    """World-axes table of an examined run."""
    affine = open_image(dwi).affine
    return gradients.from_fsl(read_numbers(bvec), read_numbers(bval).ravel(), affine, b0_threshold)


def mean_b0(dwi: Path, bval: Path, b0_threshold: float) -> np.ndarray:
    """(X, Y, Z) mean of the volumes without diffusion weighting; only those are read."""
    b0 = np.flatnonzero(read_numbers(bval).ravel() <= b0_threshold)
    voxels = open_image(dwi).dataobj
    return np.mean([np.asarray(voxels[..., int(v)], 'float32') for v in b0], axis=0)


class B0Input(StepInput):
    """Which volumes count as not diffusion-weighted."""

    b0_threshold = traits.Float(
        B0_THRESHOLD, usedefault=True, desc='s/mm2, the greatest b of those'
    )


class ScanInput(B0Input):
    """A run and its table."""

    dwi = File(exists=True, mandatory=True)
    bval = File(exists=True, mandatory=True)
    bvec = File(exists=True, mandatory=True)


class MaskedScanInput(ScanInput):
    """A run, its table and its brain."""

    mask = File(exists=True, mandatory=True)


class CorrectedOutput(TraitedSpec):
    """A run after one correction."""

    dwi = File(exists=True)
    quality = traits.Dict(desc='what shall be said of it in the sidecar')


class _MeanB0Input(StepInput):
    dwi = File(exists=True, mandatory=True)
    bval = File(exists=True, mandatory=True)


class _MeanB0(TraitedSpec):
    image = File(exists=True)


class MeanB0(Step):
    """The mean image of a preprocessed run without weighting: a T1w finds its place by it."""

    input_spec = _MeanB0Input
    output_spec = _MeanB0

    def step(self, folder: Path) -> dict[str, Any]:
        """(X, Y, Z) on the run's grid."""
        dwi = Path(self.inputs.dwi)
        array = mean_b0(dwi, Path(self.inputs.bval), b0_threshold_of(dwi))
        return {'image': str(save_like(folder / 'b0.nii', array, dwi))}
