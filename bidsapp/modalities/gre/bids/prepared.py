"""What the preparation of a gradient-echo run promises, and how it is named.

Fields stand in ``fmap``, each with a magnitude, which BIDS wants beside a field in Hz. That is
√(Σ |S|² TE² / Σ TE²) over the echoes: the noise of the field is inversely proportional to it, with
the factor in the sidecar (`NOISE_FIELD`), so that the two files tell the weights of an inversion.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bidsapp.bids.images import load_volume, open_image
from bidsapp.bids.names import parse
from bidsapp.bids.runs import Prepared
from bidsapp.bids.scans import number, said_beside
from bidsapp.core import Output
from bidsapp.modalities.gre.bids.direction import direction_of
from bidsapp.modalities.gre.bids.fields import KINDS
from bidsapp.physics.geometry import voxel_sizes
from bidsapp.problems import BadData, MissingInput

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from bidsapp.core import BoolArray, Case, FloatArray
    from bidsapp.modalities.gre.bids.runs import GreRun

#: Field of the main sidecar: the noise of the field in Hz times the magnitude.
NOISE_FIELD = 'NoiseTimesMagnitude'
BRAIN = Output('mask', {'suffix': 'mask'}, 'uint8', description='Brain.')
_IMAGE = {'extension': '.nii.gz'}


def in_fmap(kind: str, suffix: str) -> dict[str, str]:
    """Entities of the ``suffix`` 'fieldmap' or 'magnitude' of the 'local' or 'total' field."""
    return {'datatype': 'fmap', 'desc': kind, 'suffix': suffix, **_IMAGE}


#: Kind of a file that some runs have → its entities.
FURTHER = {
    'total_magnitude': in_fmap('total', 'magnitude'),
    'total': in_fmap('total', 'fieldmap'),
    'r2star': {'suffix': 'R2starmap', **_IMAGE},
    't2star': {'suffix': 'T2starmap', **_IMAGE},
    'swi': {'desc': 'swi', 'suffix': 'T2starw', **_IMAGE},
    'minip': {'desc': 'minip', 'suffix': 'T2starw', **_IMAGE},
}


def further(run: GreRun) -> list[str]:
    """Kinds of files that the preparation of ``run`` leaves beside those of every run."""
    fields = [] if run.given == KINDS[0] else ['total_magnitude', 'total']
    times = run.facts.echo_times if run.facts is not None else ()
    decay = ['r2star', 't2star'] if len(times) > 1 else []
    return [*fields, *decay, *([] if run.given else ['swi', 'minip'])]


def besides(run: GreRun) -> tuple[Mapping[str, str], ...]:
    """Entities of all those files, sidecars first."""
    return tuple(
        {**FURTHER[kind], 'extension': extension}
        for kind in further(run)
        for extension in ('.json', '.nii.gz')
    )


PREPARED = Prepared(
    datatype='anat',
    main='field',
    names={
        'magnitude': in_fmap('local', 'magnitude'),
        'mask': {'desc': 'reliable', 'suffix': 'mask', **_IMAGE},
        'field': in_fmap('local', 'fieldmap'),
    },
    outputs=((BRAIN, 'brain'),),
    besides=besides,
    words='local field (fmap/*_desc-local_fieldmap.nii.gz with magnitude and mask)',
)


def total_of(case: Case) -> Path | None:
    """The total field beside the local one of a prepared run; None where only that was given."""
    local = case.files['field']
    named = parse(local.name)
    total = local.with_name(local.name.replace(f'_desc-{named["desc"]}_', f'_desc-{KINDS[1]}_'))
    return total if total.is_file() else None


@dataclass(frozen=True, slots=True, eq=False)
class Fields:
    """The fields of a prepared run in ppm, (X, Y, Z) on its grid, and what inverts them."""

    local: FloatArray
    total: FloatArray | None  #: None where only the local one was given
    noise: FloatArray  #: standard deviation, ppm
    mask: BoolArray  #: where the total field can be believed
    affine: FloatArray
    direction: tuple[float, ...]  #: (3,) of B0 along the voxel axes

    @property
    def known(self) -> BoolArray:
        """Where the local field is known."""
        return self.mask & (self.local != 0)

    @property
    def voxel_mm(self) -> list[float]:
        """(3,) edges of a voxel."""
        return [float(size) for size in voxel_sizes(self.affine)]


def load_fields(case: Case) -> Fields:
    """Of a prepared run.

    Raises MissingInput where a sidecar lacks what they were made with, BadData for an empty mask.
    """
    path = case.files['field']
    said = said_beside(path)
    mhz, factor = number(said, 'ImagingFrequency'), number(said, NOISE_FIELD)
    if mhz is None or factor is None:
        raise MissingInput(
            f'The sidecar of {path.name} lacks ImagingFrequency or {NOISE_FIELD}. Prepare the run '
            'again: --redo preprocessing.'
        )
    mask, weight = load_volume(case.files['mask']) > 0, load_volume(case.files['magnitude'])
    if not mask.any():
        raise BadData(f'{case.files["mask"]}: there is no voxel in it whose field is known')
    noise = factor / mhz / np.maximum(weight, 1e-3 * np.median(weight[mask]))
    total = total_of(case)
    return Fields(
        local=load_volume(path) / mhz,
        total=None if total is None else load_volume(total) / mhz,
        noise=noise,
        mask=mask,
        affine=open_image(path).affine,
        direction=direction_of(path, said)[0],
    )
