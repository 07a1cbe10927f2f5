"""Neurite density, dispersion and free water; the labels come from NODDI, and SMT beside it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from bidsapp.bids.images import load_volume, with_maps
from bidsapp.bids.scans import read_object
from bidsapp.core import Arrays, Case, Classical, Head, Label, LongerVoxels, Sample, Task
from bidsapp.modalities.dwi.bids.tables import load_table
from bidsapp.modalities.dwi.learn.classical import map_on_input, scan_of
from bidsapp.modalities.dwi.learn.losses import gaussian_nll
from bidsapp.modalities.dwi.learn.scalars import (
    deviations,
    line_of,
    scalar_map,
    uncertainty_of,
    unchanged_lines,
)
from bidsapp.modalities.dwi.physics.diffusion import FREE_WATER
from bidsapp.modalities.dwi.physics.downsampling import MOSTLY
from bidsapp.modalities.dwi.physics.noddi import fit_noddi, supports_noddi
from bidsapp.modalities.dwi.physics.qspace import in_two_ranges
from bidsapp.modalities.dwi.physics.spherical_mean import MIN_B, MIN_DIRECTIONS, fit_smt
from bidsapp.modalities.dwi.physics.unweighted import signal_at_zero
from bidsapp.physics.geometry import ALL_TURNS
from bidsapp.problems import MissingInput, Unavailable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from bidsapp.modalities.dwi.physics.acquisition import Acquisition


ICVF = scalar_map(
    'icvf', 'icvf', 'noddi', 'Intra-neurite share of the tissue without free water.',
    'Neurite density',
)  # fmt: skip
OD = scalar_map(
    'od', 'od', 'noddi', 'Orientation dispersion index, 0 parallel to 1 isotropic.',
    'Orientation dispersion',
)  # fmt: skip
ISOVF = scalar_map('isovf', 'isovf', 'noddi', 'Share of free water.', 'Free water')
SMT_ICVF = scalar_map(
    'smt_icvf', 'icvf', 'smt', 'Intra-neurite volume fraction.', 'Neurite density'
)
SMT_DIFFUSIVITY = replace(
    scalar_map('smt_diffusivity', 'diffusivity', 'smt', 'Diffusivity along neurites.',
               'Diffusivity of neurites'),
    units='mm^2/s', white=(FREE_WATER, 1e3, ' · 10⁻³ mm²/s'),
)  # fmt: skip
PARAMETERS = (ICVF, OD, ISOVF)
_LITTLE = ' Where there is next to no tissue it was not taught and means nothing.'
UNCERTAINTIES = tuple(
    uncertainty_of(output, '' if output is ISOVF else _LITTLE) for output in PARAMETERS
)
#: Above this share of free water, density and dispersion mean little.
MOSTLY_WATER = 0.5
#: Share of the signal below which there is too little tissue for its density to mean anything.
LITTLE = 0.01


def load(sample: Sample, case: Case) -> Sample:
    """With the target (3, X, Y, Z): icvf, od, isovf."""
    return with_maps(sample, [case.files.get(o.name) for o in PARAMETERS])


def finish(outputs: Mapping[str, Tensor], sample: Sample, case: Case) -> Arrays:
    """(6, X, Y, Z) logits, log deviations → values and deviations in the brain, zero outside."""
    output = outputs['microstructure']
    n = len(PARAMETERS)
    values = (output[:n].sigmoid() * sample.mask).numpy()
    spread = (deviations(output[n:]) * sample.mask).numpy()
    written = (*PARAMETERS, *UNCERTAINTIES)
    return {o.name: array for o, array in zip(written, (*values, *spread), strict=True)}


def metrics(output: Tensor, sample: Sample) -> list[tuple[str, str, float]]:
    """Mean absolute error in the brain; of density and dispersion where water is the less.

    Negative values of the target are unknown and do not count.
    """
    if sample.target is None:
        raise ValueError('metrics need a labelled sample')
    error = (output[: len(PARAMETERS)].sigmoid() - sample.target).abs()
    known = sample.mask & (sample.target >= 0)
    tissue = known & (sample.target[2] < MOSTLY_WATER)
    wheres = {'icvf': tissue[0], 'od': tissue[1], 'isovf': known[2]}
    rows = [
        ('mae', name, float(values[where].mean()))
        for values, (name, where) in zip(error, wheres.items(), strict=True)
    ]
    return [('mae', 'all', sum(value for *_, value in rows) / len(rows)), *rows]


def calibrate(outputs: Sequence[Tensor], samples: Sequence[Sample]) -> Tensor:
    """(2, 6) factors and shifts of the log deviations after which intervals hold what they say.

    Where there is tissue, and the value is known; a parameter with no such voxel is left alone.
    """
    n = len(PARAMETERS)
    lines = unchanged_lines(2 * n)
    for k in range(n):
        errors, log_sd = [], []
        for output, sample in zip(outputs, samples, strict=True):
            assert sample.target is not None
            known = sample.mask[0] & (sample.target[k] >= 0)
            if k < 2:
                known &= sample.target[2] < MOSTLY_WATER
            errors.append((output[k][known].sigmoid() - sample.target[k][known]).abs())
            log_sd.append(output[n + k][known])
        if (found := torch.cat(errors)).numel():
            lines[:, n + k] = torch.tensor(line_of(found, torch.cat(log_sd)))
    return lines


def source(acquisition: Acquisition) -> str:
    """Two shells or more tell density from dispersion and water.

    They must lie in two of the ranges of b that a network sees: what is derived can be learnt, and
    is predicted from the like.
    """
    if (reason := supports_noddi(acquisition)) is not None:
        raise Unavailable(reason)
    usable = [b for b, n in acquisition.shells if b >= MIN_B and n >= MIN_DIRECTIONS]
    if not in_two_ranges(usable):
        found = ', '.join(f'{b:.0f}' for b in usable)
        raise Unavailable(
            'neurite density and dispersion need shells in two of the ranges of b that end at '
            f'1300, 2300 and above; this run has b={found} s/mm2'
        )
    return 'noddi'


def applies(acquisition: Acquisition) -> None:
    """Where a reference could be derived: the same shells tell density from diffusivity."""
    try:
        source(acquisition)
    except Unavailable as reason:
        raise Unavailable(f'{reason}. FA and ADC are there') from reason


def derive(case: Case) -> Arrays:
    """NODDI and the spherical mean technique, in the brain."""
    data, gtab = load_volume(case.files['dwi']), load_table(case)
    brain = load_volume(case.files['mask']) > 0
    floor, spread = noise_of(case)
    noddi = fit_noddi(data, gtab, brain, sigma=floor, spread=spread)
    smt = fit_smt(data, gtab, brain, sigma=floor)
    return {
        'icvf': noddi.icvf, 'od': noddi.od, 'isovf': noddi.isovf,
        'smt_icvf': smt.icvf, 'smt_diffusivity': smt.diffusivity,
    }  # fmt: skip


def noise_of(
    case: Case, sample: Sample | None = None
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """(X, Y, Z) the noise before denoising, whose floor stays, and what is left of it.

    On the run's own grid, or on that of ``sample``.
    None of a run that was not denoised here: its own residuals tell then. Raises MissingInput for
    a map that the sidecar promises.
    """
    path = case.files['dwi']
    sidecar = path.with_name(path.name.removesuffix('.nii.gz') + '.json')
    said = read_object(sidecar) if sidecar.is_file() else {}
    maps = [
        path.with_name(uri.rpartition('/')[2])
        for uri in said.get('Denoising', {}).get('NoiseMaps', [])
    ]
    if not maps:
        return None, None
    if gone := [p.name for p in maps if not p.is_file()]:
        raise MissingInput(f'{gone[0]} is not there, which {sidecar.name} names; preprocess again.')
    floor, spread = (load_volume(p) if sample is None else map_on_input(p, sample) for p in maps)
    return floor, spread


def classical(case: Case, sample: Sample) -> Tensor:
    """(6, X, Y, Z) by NODDI from the input's own volumes. Raises Unavailable."""
    data, gtab, brain = scan_of(case, sample)
    floor, spread = noise_of(case, sample)
    found = fit_noddi(data, gtab, brain, sigma=floor, spread=spread)
    values = torch.from_numpy(np.stack([found.icvf, found.od, found.isovf]))
    return torch.cat([values.logit(1e-6), torch.zeros_like(values)])


def averaged(case: Case, grid: LongerVoxels) -> Arrays:
    """Water weighted by the signal, density and dispersion by that of tissue; -1: not known."""
    maps = np.stack([load_volume(case.files[o.name]) for o in PARAMETERS], axis=-1)
    mask = load_volume(case.files['mask']) > 0
    s0 = signal_at_zero(load_volume(case.files['dwi']), load_table(case)).clip(0) * mask
    tissue, tissue_weight = grid(maps[..., :2], s0 * (1 - maps[..., 2]).clip(0, 1))
    water, weight = grid(maps[..., 2], s0)
    inside = grid(mask.astype(np.float32), np.ones(mask.shape, np.float32))[0] >= MOSTLY
    known = inside & (tissue_weight > LITTLE * np.maximum(weight, 1e-12))
    return {
        'icvf': np.where(known, tissue[..., 0], -1), 'od': np.where(known, tissue[..., 1], -1),
        'isovf': np.where(inside, water, -1),
    }  # fmt: skip


def truth(known: Mapping[str, Tensor]) -> Tensor:
    """(3, X, Y, Z) icvf, od, isovf; negative where it cannot be known."""
    return known['microstructure']


task = Task(
    head=Head(
        channels=2 * len(PARAMETERS),
        targets=len(PARAMETERS),
        loss=gaussian_nll,
        metrics=metrics,
        score='mae',
        higher_is_better=False,
        words={
            'mae': 'mean absolute error of a parameter; of density and dispersion where there is '
            'less water than tissue'
        },
        turns=ALL_TURNS,
        calibrate=calibrate,
        weight=0.6,
    ),
    writes=(*PARAMETERS, *UNCERTAINTIES),
    load=load,
    finish=finish,
    label=Label(
        source, derive, learns=len(PARAMETERS),
        beside=((SMT_ICVF, 'smt'), (SMT_DIFFUSIVITY, 'smt')), averaged=averaged,
    ),
    truth=truth,
    classical=Classical('NODDI, where the input has two shells', lambda taught: classical),
    applies=applies,
)  # fmt: skip
