"""A simulated participant: a head in loops of wire, its raw k-space, and the truth behind it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from bidsapp.bids.images import write_volume
from bidsapp.bids.write import write_json
from bidsapp.modalities.kspace.bids.places import LPS_TO_RAS
from bidsapp.modalities.kspace.bids.scan import survey_scan
from bidsapp.modalities.kspace.physics import sampling
from bidsapp.modalities.kspace.physics.fourier import BOTH, middle
from bidsapp.modalities.kspace.simulate.coils import loop_coils
from bidsapp.modalities.kspace.simulate.files import Protocol, write_ismrmrd
from bidsapp.modalities.kspace.simulate.objects import phase
from bidsapp.modalities.kspace.simulate.slices import FINE, measured_on, points_about_origin
from bidsapp.simulate.grids import normal
from bidsapp.simulate.t1w import T1W

if TYPE_CHECKING:
    from pathlib import Path

    from bidsapp.simulate.anatomy import Head

#: mm from the middle of the head to the coils, and LPS mm of that middle.
REACH, MIDDLE = 130.0, (0.0, 18.0, 8.0)
#: Noise samples of each coil; the noise scan's dwell time is half of the image's.
NOISE_SAMPLES, DWELL_US = 4096, (8.0, 4.0)
#: Depths in a slice that its signal is the mean of, as shares of its thickness.
DEPTHS = (-0.33, 0.0, 0.33)


@dataclass(frozen=True, slots=True)
class Design:
    """How participants are scanned."""

    shape: tuple[int, int] = (160, 192)
    slices: int = 3
    voxel_mm: float = 1.2
    thickness_mm: float = 4.0
    coils: int = 8
    acceleration: float = 1.0  #: evenly spaced lines with 0.32 / R in the middle
    noise: float = 0.01  #: σ over the largest signal of all coils together


def write_participant(
    folder: Path, label: str, head: Head, design: Design, generator: torch.Generator
) -> tuple[Path, Tensor]:
    """``anat/<label>_T1w.h5`` in ``folder``, axial, and the truth (X, Y, slices) on its grid.

    Truth is all of k-space without noise, as a root of the coils' sum of squares, in units of σ:
    what a whitened reconstruction has.
    """
    n, m = design.shape
    shift = 1.2 * design.thickness_mm
    heights = [(i - design.slices // 2) * shift for i in range(design.slices)]
    positions = tuple((MIDDLE[0], MIDDLE[1], MIDDLE[2] + height) for height in heights)
    clean = torch.stack([_slice(head, design, place, generator) for place in positions])
    inside = middle(BOTH.H(clean), n, -2)
    truth = inside.abs().square().sum(1).sqrt().movedim(0, -1)
    sigma = design.noise * float(truth.amax())
    mask = sampling.random_lines(m, 1, 1, generator)
    if design.acceleration > 1:
        kept = sampling.centre_lines(m, design.acceleration)
        mask = sampling.equispaced_lines(m, design.acceleration, kept, generator)
    noisy = clean + sigma * _noise(clean.shape, generator)
    alone = sigma * (DWELL_US[0] / DWELL_US[1]) ** 0.5
    protocol = Protocol(
        (2 * n * design.voxel_mm, m * design.voxel_mm, design.thickness_mm), n,
        positions=positions, order=(*range(1, design.slices, 2), *range(0, design.slices, 2)),
        noise=(alone * _noise((design.coils, NOISE_SAMPLES), generator)).numpy(),
        dwell_us=DWELL_US,
    )  # fmt: skip
    path = folder / 'anat' / f'{label}_T1w.h5'
    write_ismrmrd(path, noisy[:, None].numpy(), mask.bool().numpy(), protocol)
    return path, truth / sigma


def write_truth(folder: Path, label: str, scan: Path, truth: Tensor) -> None:
    """The truth of ``scan`` as a derivative, on its grid."""
    (image,) = survey_scan(scan)
    stem = folder / 'anat' / f'{label}_rec-full_desc-truth_T1w'
    affine = torch.from_numpy(image.affine)
    write_volume(stem.with_suffix('.nii.gz'), truth.numpy().astype(np.float32), affine)
    said = {'SkullStripped': False, 'Units': 'arbitrary', 'Description': 'Without noise, in σ'}
    write_json(stem.with_suffix('.json'), said)


def _slice(
    head: Head, design: Design, place: tuple[float, ...], generator: torch.Generator
) -> Tensor:
    """(C, 2X, Y) k-space without noise, twice as wide along readout, of one axial slice."""
    shape = (2 * design.shape[0], design.shape[1])
    points = points_about_origin([FINE * n for n in shape], design.voxel_mm / FINE)
    turn = torch.from_numpy(np.ascontiguousarray(np.diag(LPS_TO_RAS))).float()
    image = torch.zeros_like(points[0])
    for depth in DEPTHS:
        there = points + points.new_tensor(place)[:, None, None]
        there[2] += depth * design.thickness_mm
        tissues = head.tissues((turn[:, None, None] * there)[..., None])[..., 0]
        image += torch.tensordot(points.new_tensor(T1W), tissues, 1) / len(DEPTHS)
    signal = image * phase(image, points, generator)
    about = points.clone()
    about[2] += place[2] - MIDDLE[2]
    coils = loop_coils(design.coils, about, REACH)
    return measured_on(coils / coils.abs().mean() * signal, shape)


def _noise(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Complex, σ = 1."""
    real, imaginary = (normal(shape, generator) for _ in range(2))
    return torch.complex(real, imaginary) * math.sqrt(0.5)
