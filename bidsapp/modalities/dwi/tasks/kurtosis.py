"""How far diffusion is from Gaussian: mean, axial and radial kurtosis; the labels come from DKI."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from bidsapp.bids.images import load_volume
from bidsapp.core import Arrays, Case, Classical, Label, Sample, Task
from bidsapp.modalities.dwi.bids.tables import load_table
from bidsapp.modalities.dwi.learn.classical import scan_of
from bidsapp.modalities.dwi.learn.scalars import Scalars, scalar_map
from bidsapp.modalities.dwi.physics.acquisition import acquisition
from bidsapp.modalities.dwi.physics.kurtosis import (
    LEAST,
    MOST,
    fit_kurtosis,
    supports_kurtosis,
    usable_shells,
)
from bidsapp.modalities.dwi.physics.qspace import in_two_ranges
from bidsapp.problems import Unavailable

if TYPE_CHECKING:
    from torch import Tensor

    from bidsapp.modalities.dwi.physics.acquisition import Acquisition

RANGE = ' Within -3/7 and 10, as DIPY clips it; 0 where it is not known.'
MK = scalar_map(
    'mk', 'mk', 'dki', 'Mean kurtosis over all directions; where no tensors fit and AK and RK are '
    "not known, that of the shells' mean signals." + RANGE, 'Mean kurtosis',
)  # fmt: skip
AK = scalar_map(
    'ak', 'ak', 'dki', "Kurtosis along the tensor's main axis." + RANGE, 'Axial kurtosis'
)
RK = scalar_map(
    'rk', 'rk', 'dki', "Mean kurtosis across the tensor's main axis." + RANGE,
    'Radial kurtosis', white=2.0,
)  # fmt: skip
KURTOSIS = Scalars((MK, AK, RK), LEAST, MOST)


def source(acquisition: Acquisition) -> str:
    """Two shells tell kurtosis from diffusivity, in two of the ranges of b that a network sees."""
    if (reason := supports_kurtosis(acquisition)) is not None:
        raise Unavailable(reason)
    usable = [b for b, _ in usable_shells(acquisition)]
    if not in_two_ranges(usable):
        raise Unavailable(
            'kurtosis is learnt from shells in two of the ranges of b that end at 1300, 2300 and '
            f'above; this run has b={", ".join(f"{b:.0f}" for b in usable)} s/mm2'
        )
    return 'dki'


def applies(acquisition: Acquisition) -> None:
    """Where a reference could be derived."""
    source(acquisition)


def derive(case: Case) -> Arrays:
    """Diffusion kurtosis imaging, in the brain."""
    data, brain = (load_volume(case.files[kind]) for kind in ('dwi', 'mask'))
    found = fit_kurtosis(data, load_table(case), brain > 0)
    return {'mk': found.mk, 'ak': found.ak, 'rk': found.rk}


def classical(case: Case, sample: Sample) -> Tensor:
    """(6, X, Y, Z) by the same fit from the input's own volumes. Raises Unavailable."""
    data, gtab, brain = scan_of(case, sample)
    if (reason := supports_kurtosis(acquisition(gtab))) is not None:
        raise Unavailable(reason)
    found = fit_kurtosis(data, gtab, brain)
    values = torch.from_numpy(np.stack([found.mk, found.ak, found.rk]))
    return torch.cat([values, torch.zeros_like(values)])


#: No ``truth``: a simulated scan knows its compartments and not the kurtosis of their mixture.
task: Task[Acquisition] = Task(
    head=KURTOSIS.head('mean absolute error of kurtosis, where it is known'),
    writes=KURTOSIS.writes,
    load=KURTOSIS.load,
    finish=KURTOSIS.finish,
    label=Label(source, derive, learns=3, averaged=KURTOSIS.averaged),
    applies=applies,
    classical=Classical(
        'the fit of the label, where the input carries it', lambda taught: classical
    ),
)
