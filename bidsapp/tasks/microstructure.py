"""Neurite density, dispersion and free water; the labels come from NODDI, and SMT beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from bidsapp.bids.samples import load_maps, load_sample, load_table, load_volume
from bidsapp.bids.scans import read_object
from bidsapp.core import Acquisition, Arrays, Case, Output, Sample, Task, Unavailable
from bidsapp.learn.losses import weighted_absolute_error
from bidsapp.physics.noddi import fit_noddi, supports_noddi
from bidsapp.physics.qspace import SLOTS
from bidsapp.physics.spherical_mean import fit_smt
from bidsapp.physics.turns import ALL_TURNS

if TYPE_CHECKING:
    from torch import Tensor


def _map(name: str, param: str, description: str, source: str, units: str = 'arbitrary') -> Output:
    entities = {'suffix': 'dwimap', 'param': param}
    return Output(name, entities, 'float32', units, (), description, (source,))


ICVF = _map('icvf', 'icvf', 'Intra-neurite share of the tissue without free water.', 'noddi')
OD = _map('od', 'od', 'Orientation dispersion index, 0 parallel to 1 isotropic.', 'noddi')
ISOVF = _map('isovf', 'isovf', 'Share of free water.', 'noddi')
SMT_ICVF = _map('smt_icvf', 'icvf', 'Intra-neurite volume fraction.', 'smt')
SMT_DIFFUSIVITY = _map(
    'smt_diffusivity', 'diffusivity', 'Diffusivity along neurites.', 'smt', 'mm^2/s'
)
#: Above this share of free water, density and dispersion mean little.
MOSTLY_WATER = 0.5


def load(case: Case) -> Sample:
    """Canonical input; target (3, X, Y, Z): icvf, od, isovf."""
    return load_maps(load_sample(case), [case.files.get(o.name) for o in (ICVF, OD, ISOVF)])


def loss(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Absolute error; of density and dispersion in proportion to the tissue that is there."""
    tissue = (1 - target[:, 2:]) * mask
    weight = torch.cat([tissue, tissue, mask.to(tissue)], dim=1)
    return weighted_absolute_error(prediction.sigmoid(), target, weight)


def finish(output: Tensor, sample: Sample) -> Arrays:
    """(3, X, Y, Z) logits → parameters from 0 to 1 in the brain, zero outside."""
    values = (output.sigmoid() * sample.mask).numpy()
    return {'icvf': values[0], 'od': values[1], 'isovf': values[2]}


def metrics(output: Tensor, sample: Sample) -> list[tuple[str, str, float]]:
    """Mean absolute error in the brain; of density and dispersion where water is the less."""
    if sample.target is None:
        raise ValueError('metrics need a labelled sample')
    error = (output.sigmoid() - sample.target).abs()
    brain = sample.mask[0]
    tissue = brain & (sample.target[2] < MOSTLY_WATER)
    wheres = {'icvf': tissue, 'od': tissue, 'isovf': brain}
    rows = [
        ('mae', name, float(values[where].mean()))
        for values, (name, where) in zip(error, wheres.items(), strict=True)
    ]
    return [('mae', 'all', sum(value for *_, value in rows) / len(rows)), *rows]


def reference(acquisition: Acquisition) -> str:
    """Two shells or more tell density from dispersion and water."""
    if (reason := supports_noddi(acquisition)) is not None:
        raise Unavailable(reason)
    return 'noddi'


def derive(case: Case) -> Arrays:
    """NODDI and the spherical mean technique, in the brain."""
    data, gtab = load_volume(case.files['dwi']), load_table(case)
    brain = load_volume(case.files['mask']) > 0
    noise = noise_before(case)
    noddi = fit_noddi(data, gtab, brain, sigma=noise)
    smt = fit_smt(data, gtab, brain, sigma=noise)
    return {
        'icvf': noddi.icvf, 'od': noddi.od, 'isovf': noddi.isovf,
        'smt_icvf': smt.icvf, 'smt_diffusivity': smt.diffusivity,
    }  # fmt: skip


def noise_before(case: Case) -> float | None:
    """Standard deviation of the noise before denoising, which hides it but leaves its floor."""
    path = case.files['dwi']
    sidecar = path.with_name(path.name.removesuffix('.nii.gz') + '.json')
    said = read_object(sidecar) if sidecar.is_file() else {}
    noise = said.get('Denoising', {}).get('NoiseMedian')
    return float(noise) if noise else None


task = Task(
    name='microstructure',
    modality='dwi',
    writes=(ICVF, OD, ISOVF),
    channels=3,
    load=load,
    loss=loss,
    finish=finish,
    metrics=metrics,
    score='mae',
    higher_is_better=False,
    reference=reference,
    derive=derive,
    learns=3,
    beside=((SMT_ICVF, 'smt'), (SMT_DIFFUSIVITY, 'smt')),
    options={'slots': len(SLOTS)},
    turns=ALL_TURNS,
)
