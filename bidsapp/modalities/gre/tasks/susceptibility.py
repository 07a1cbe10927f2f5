"""Magnetic susceptibility; the label is weighted total variation, or a map of the user's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bidsapp.bids.classes import classes_of
from bidsapp.bids.images import load_volume, onto_sample, open_image, with_label
from bidsapp.core import Arrays, Case, Classical, Label, Output, Sample, Statistics, Task
from bidsapp.modalities.gre.bids.prepared import load_fields
from bidsapp.modalities.gre.bids.regions import (
    CHIMAP,
    DSEG,
    columns,
    reference_region,
    row_of,
    tables,
)
from bidsapp.modalities.gre.learn.head import HEAD, deviations
from bidsapp.modalities.gre.physics.regions import referenced, stated

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from bidsapp.modalities.gre.physics.acquisition import Acquisition

CHIMAPS = 'chimaps'
#: Of what `finish` returns and no image is: the reference in words, and the mean that is removed.
NAMED, OFFSET = 'reference', 'offset'
CHI = Output(
    'chi', {'suffix': 'Chimap'}, 'float32', units='ppm',
    description='Magnetic susceptibility. It is known up to a constant: SusceptibilityReference '
    'says where it is 0 on average. A reference is by weighted total variation.',
    heading='Magnetic susceptibility',
)  # fmt: skip
UNCERTAINTY = Output(
    'chi_uncertainty', {'suffix': 'Chimap', 'desc': 'uncertainty'}, 'float32', units='ppm',
    description='Standard deviation that the network states of its error: the truth is expected '
    'within it in 68 % of voxels.',
)  # fmt: skip
DIVISION = Output(
    'tkd', {'suffix': 'Chimap'}, 'float32', units='ppm',
    description='Magnetic susceptibility by truncated division in k-space, to compare with.',
)  # fmt: skip
TIKHONOV = Output(
    'tikhonov', {'suffix': 'Chimap'}, 'float32', units='ppm',
    description="Magnetic susceptibility by Tikhonov's regularisation, to compare with.",
)  # fmt: skip

REGIONS = Output(
    'regions', {'suffix': 'stats', 'desc': 'susceptibilityunet'}, 'table',
    description='Susceptibility of regions by the network (desc-unet).',
)  # fmt: skip
COLUMNS = columns(
    'unet', 'stated_deviation',
    'Standard deviation of the error in one voxel that the network states '
    '(desc-uncertainty), root mean square over the label. Errors of neighbours go together: '
    'that of the mean is smaller, by less than the root of the number of voxels',
)  # fmt: skip


def load(sample: Sample, case: Case) -> Sample:
    """With the target (1, X, Y, Z) in ppm."""
    return with_label(sample, case.files.get('chi'))


def finish(outputs: Mapping[str, Tensor], sample: Sample, case: Case) -> Arrays:
    """(2, X, Y, Z) χ in ppm and log σ → χ less its mean in the reference, and σ; zero outside."""
    output, mask = outputs['susceptibility'], sample.mask[0].numpy()
    named, where = reference_region(case)
    if where is not None:
        where = onto_sample(where, open_image(case.files['field']).affine, sample)[0]
    chi, offset = referenced(output[0].numpy(), where, mask)
    spread = deviations(output[1]).numpy() * mask
    return {'chi': chi, 'chi_uncertainty': spread, NAMED: np.array(named), OFFSET: np.array(offset)}


def details(arrays: Arrays) -> Mapping[str, Mapping[str, Any]]:
    """Of a prediction, what is 0 in it; the sidecar of a label has it from the inversion."""
    if NAMED not in arrays:
        return {}
    offset = round(float(arrays[OFFSET]), 6)
    return {'chi': {'SusceptibilityReference': str(arrays[NAMED]), 'ReferenceOffset': offset}}


def by_region(arrays: Arrays, case: Case) -> list[dict[str, Any]]:
    """What the network says of each label of the user's."""
    doubt, dseg = arrays['chi_uncertainty'], case.files[DSEG]
    names = classes_of(dseg)
    found = stated(arrays['chi'], doubt, load_volume(dseg), doubt > 0)
    return [dict(zip(COLUMNS, row_of(region, names), strict=True)) for region in found]


def predicted_tables(case: Case) -> tuple[Statistics, ...]:
    """One of regions, where somebody has drawn some."""
    return (Statistics(REGIONS, by_region, COLUMNS),) if DSEG in case.files else ()


def source(acquisition: Acquisition) -> str:
    """Every run that has a field has its susceptibility."""
    return 'reference'


def derive(case: Case) -> Arrays:
    """The classical maps, which the modality's steps have found."""
    maps = load_volume(case.files[CHIMAPS])
    return {o.name: maps[..., k] for k, o in enumerate((CHI, DIVISION, TIKHONOV))}


def classical(case: Case, sample: Sample) -> Tensor:
    """(2, X, Y, Z) by total variation of the local field, from the input's own files."""
    from bidsapp.modalities.gre.physics import maps

    fields = load_fields(case)
    chi = maps.susceptibility(
        fields.local, fields.noise, fields.known, fields.affine, b=fields.direction
    )
    value = torch.from_numpy(onto_sample(chi, fields.affine, sample).copy()).float()
    return torch.cat([value, torch.zeros_like(value)])


def truth(known: Mapping[str, Tensor]) -> Tensor:
    """(1, X, Y, Z) in ppm."""
    return known['chi']


task: Task[Acquisition] = Task(
    head=HEAD,
    writes=(CHI, UNCERTAINTY),
    load=load,
    finish=finish,
    label=Label(
        source,
        derive,
        reads=(CHIMAPS, DSEG),
        beside=((DIVISION, 'tkd'), (TIKHONOV, 'tikhonov')),
        tables=tables,
        given=CHIMAP,
    ),
    truth=truth,
    details=details,
    tables=predicted_tables,
    classical=Classical(
        'total variation of the local field, its strength by the noise', lambda taught: classical
    ),
)
