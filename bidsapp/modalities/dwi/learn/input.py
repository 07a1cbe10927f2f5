"""The canonical q-space input of a dMRI run, and what is read beside it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from bidsapp.bids.images import crop_to, load_volume, onto_sample, open_image, to_ras
from bidsapp.core import Case, Sample
from bidsapp.learn.inputs import open_canonical
from bidsapp.modalities.dwi.bids.tables import load_table
from bidsapp.modalities.dwi.physics import qspace
from bidsapp.modalities.dwi.physics.gradients import GradientTable, in_grid
from bidsapp.modalities.dwi.physics.noise import map_noise
from bidsapp.modalities.dwi.physics.peaks import MAX_FIBRES
from bidsapp.physics.geometry import grid_axes, voxel_sizes
from bidsapp.problems import BadData

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def brain_of(case: Case) -> tuple[np.ndarray, np.ndarray, GradientTable, np.ndarray]:
    """(signals (X, Y, Z, N), brain (X, Y, Z), world table, affine) of a preprocessed run.

    The grid's axes are turned to the nearest RAS and cropped to the brain; no voxel is
    interpolated. Raises BadData if there is no brain.
    """
    image = open_image(case.files['dwi'])
    brain = load_volume(case.files['mask']) > 0
    if not brain.any():
        raise BadData(f'{case.files["mask"]} is empty: there is no brain to look at')
    gtab = load_table(case)
    data, affine = to_ras(load_volume(case.files['dwi']), image.affine)
    brain, _ = to_ras(brain, image.affine)
    box = crop_to(brain)
    corner = np.block([[np.eye(3), np.array([[s.start] for s in box])], [0, 0, 0, 1]])
    return data[box], brain[box], gtab, affine @ corner


def canonical_sample(case: Case, keep: np.ndarray | None = None) -> Sample:
    """The canonical input of a preprocessed run, from its volumes ``keep`` (default all)."""
    import torch

    data, brain, gtab, affine = brain_of(case)
    if keep is not None:
        data, gtab = data[..., keep], gtab[keep]
    local = in_grid(gtab, affine)
    s0 = data[..., gtab.b0].mean(-1)
    floor = 1e-3 * float(np.median(s0[brain])) + 1e-12
    weighted = np.moveaxis(data[..., ~gtab.b0], -1, 0)
    attenuation = np.clip(weighted / np.maximum(s0, floor), 0, 1.5)
    variance = map_noise(attenuation, brain, local[~local.b0], int(local.b0.sum()))
    size = voxel_sizes(affine)
    channels = qspace.canonical_channels(attenuation, s0, brain, local, variance, size)
    return Sample(
        torch.from_numpy(channels),
        torch.from_numpy(brain.copy())[None],
        affine,
        context=torch.tensor([*size, variance], dtype=torch.float32),
    )


def load_sample(case: Case, label: Path | None = None) -> Sample:
    """Canonical input (kept under ``case.files['canonical']``, else computed) and a label image."""
    import torch

    kept = case.files.get('canonical')
    sample = open_canonical(kept) if kept is not None else canonical_sample(case)
    if label is None:
        return sample
    array = onto_sample(load_volume(label), open_image(label).affine, sample)
    return replace(sample, target=torch.from_numpy(np.ascontiguousarray(array, np.float32)))


def load_maps(sample: Sample, labels: Sequence[Path | None]) -> Sample:
    """``sample`` with scalar maps as target (K, X, Y, Z); without one if any is missing."""
    import torch

    paths = [path for path in labels if path is not None]
    if len(paths) < len(labels):
        return sample
    parts = [onto_sample(load_volume(p), open_image(p).affine, sample) for p in paths]
    return replace(sample, target=torch.from_numpy(np.concatenate(parts).astype(np.float32)))


def load_directions(sample: Sample, label: Path | None) -> Sample:
    """``sample`` with the fibres of a direction map as target, in its own axes.

    (3 MAX_FIBRES, X, Y, Z) unit vectors, strongest first; zeros where there is none.
    """
    import torch

    if label is None:
        return sample
    world = onto_sample(load_volume(label), open_image(label).affine, sample)
    fibres = world[: 3 * MAX_FIBRES].reshape(-1, 3, *world.shape[1:])
    local = np.zeros((MAX_FIBRES, *fibres.shape[1:]), np.float32)
    local[: len(fibres)] = np.einsum('wg,nwxyz->ngxyz', grid_axes(sample.affine), fibres)
    return replace(sample, target=torch.from_numpy(local.reshape(-1, *world.shape[1:])))


def brain_signal(case: Case, sample: Sample) -> tuple[np.ndarray, GradientTable]:
    """(N, V) signals in the brain of the run's volumes, and their table in the sample's axes."""
    affine = open_image(case.files['dwi']).affine
    volumes = onto_sample(load_volume(case.files['dwi']), affine, sample)
    return volumes[:, sample.mask[0].numpy()], in_grid(load_table(case), sample.affine)


def noise_variance_of(sample: Sample) -> float:
    """Of S/S0, as the canonical map has estimated it. Raises ValueError if nobody kept it."""
    if sample.context is None or len(sample.context) < 4:
        raise ValueError('the sample does not say how noisy its scan is')
    return float(sample.context[3])
