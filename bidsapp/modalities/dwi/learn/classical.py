"""What diffusion tasks are done by without a network, from the very volumes that a network sees.

Comparators of `group`: each takes the volumes of an input, never those of its label, and gives its
answer in the channels of the task's head. What an estimate needs beside the volumes, such as where
white matter is, comes from the label, which favours it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from bidsapp.bids.images import load_volume, onto_sample, open_image
from bidsapp.learn.metrics import confusion, f1_macro
from bidsapp.modalities.dwi.learn.input import volumes_of
from bidsapp.modalities.dwi.physics.acquisition import acquisition
from bidsapp.modalities.dwi.physics.csd import fibre_directions, supports_deconvolution
from bidsapp.modalities.dwi.physics.diffusion import fit_tensor
from bidsapp.problems import Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch import Tensor

    from bidsapp.core import BoolArray, Case, FloatArray, Sample
    from bidsapp.modalities.dwi.physics.gradients import GradientTable

    Estimate = Callable[[Case, Sample], Tensor]

#: Candidates for each of two thresholds, and voxels that these are chosen by, at most.
_CANDIDATES, _VOXELS = 24, 60_000


def scan_of(case: Case, sample: Sample) -> tuple[np.ndarray, GradientTable, BoolArray]:
    """(X, Y, Z, N) volumes of an input, their table in its axes, the brain."""
    volumes, gtab = volumes_of(case, sample)
    return np.moveaxis(volumes, 0, -1), gtab, sample.mask[0].numpy()


def deconvolved(case: Case, sample: Sample, white: BoolArray) -> np.ndarray:
    """(X, Y, Z, 9) fibres in the axes of the sample, in ``white`` matter.

    Raises Unavailable where the input does not carry a deconvolution.
    """
    data, gtab, brain = scan_of(case, sample)
    if not supports_deconvolution(acquisition(gtab)):
        raise Unavailable('the input has too few directions, or too low a b, for a deconvolution')
    return fibre_directions(data, gtab, brain, white)


def first_direction(case: Case, sample: Sample, white: BoolArray) -> np.ndarray:
    """(X, Y, Z, 3) the strongest fibre, by deconvolution, else by the tensor."""
    try:
        return deconvolved(case, sample, white)[..., :3]
    except Unavailable:
        data, gtab, brain = scan_of(case, sample)
        return fibre_directions(data, gtab, brain, white, deconvolve=False)


def map_on_input(path: Path, sample: Sample) -> np.ndarray:
    """(X, Y, Z) of an image on the run's grid, where the sample is."""
    return onto_sample(load_volume(path), open_image(path).affine, sample)[0]


def by_thresholds(taught: Sequence[tuple[Case, Sample]]) -> Estimate:
    """Three tissues by a mean diffusivity and an anisotropy: fluid, white matter, the rest.

    The pair of thresholds is the one of best mean F1 on the labelled inputs ``taught``, targets
    (1, X, Y, Z) of 1 … 3 or shares (3, X, Y, Z).
    """
    rng = np.random.default_rng(0)
    found = [_features(case, sample) for case, sample in taught]
    md, fa, truth = (np.concatenate(part) for part in zip(*found, strict=True))
    if not len(truth):
        raise Unavailable('no labelled voxel tells tissues apart')
    some = rng.permutation(len(truth))[:_VOXELS]
    pair = best_thresholds(md[some], fa[some], truth[some])

    def estimate(case: Case, sample: Sample) -> Tensor:
        data, gtab, brain = scan_of(case, sample)
        tensor = fit_tensor(data, gtab, brain)
        return one_hot(thresholded(tensor.md, tensor.fa, *pair) - 1, 3)

    return estimate


def best_thresholds(md: FloatArray, fa: FloatArray, truth: FloatArray) -> tuple[float, float]:
    """Of MD (V,) and FA (V,), those of best mean F1 on tissues (V,) of 1 … 3."""
    known, quantiles = torch.from_numpy(truth), np.linspace(0.02, 0.98, _CANDIDATES)
    best, pair = -1.0, (0.0, 0.0)
    for water in np.quantile(md, quantiles):
        for white in np.quantile(fa, quantiles):
            said = torch.from_numpy(thresholded(md, fa, water, white))
            if (score := f1_macro(confusion(said, known, 3))) > best:
                best, pair = score, (float(water), float(white))
    return pair


def _features(case: Case, sample: Sample) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean diffusivity, anisotropy and tissue 1 … 3 of the labelled voxels of an input."""
    data, gtab, brain = scan_of(case, sample)
    tensor = fit_tensor(data, gtab, brain)
    assert sample.target is not None
    target = sample.target.numpy()
    label = target[0] if len(target) == 1 else (target.argmax(0) + 1) * (target.sum(0) > 0)
    where = brain & (label > 0)
    return tensor.md[where], tensor.fa[where], label[where].astype(np.int64)


def thresholded(md: FloatArray, fa: FloatArray, water: float, white: float) -> np.ndarray:
    """1 grey matter, 2 white matter, 3 fluid."""
    return np.where(md > water, 3, np.where(fa > white, 2, 1))


def one_hot(classes: FloatArray, count: int) -> Tensor:
    """(X, Y, Z) of 0 … count - 1 → (count, X, Y, Z) that has its maximum there."""
    found = torch.from_numpy(np.asarray(classes, np.int64))
    return torch.nn.functional.one_hot(found, count).movedim(-1, 0).float()
