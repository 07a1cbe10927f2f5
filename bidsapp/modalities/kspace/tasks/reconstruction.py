"""The image behind lines that were left out; the label is that of all lines, else total variation.

A full scan's own image is learnt from, as its preparation has written it. Where lines were never
measured no such image is known; total variation stands beside what a network makes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bidsapp.bids.images import load_volume
from bidsapp.core import Arrays, Case, Classical, Label, Output, Sample, Task
from bidsapp.modalities.kspace.bids.prepared import KEPT
from bidsapp.modalities.kspace.learn.head import HEAD, slices_of
from bidsapp.modalities.kspace.physics.acquisition import require_lines_left_out

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from bidsapp.modalities.kspace.physics.acquisition import Acquisition

RECONSTRUCTIONS = 'reconstructions'
IMAGE = Output(
    'reconstruction', {'desc': 'recon'}, 'float32', told_by='reconstruction',
    references=('full', 'tv'), renamed={'full': {'desc': 'reference'}}, sidecar=KEPT,
    description='Magnitude of the image, combined over coils. rec- says by which method: '
    'full: of all lines, tv: total variation, unet: a network.',
    heading='Reconstruction',
)  # fmt: skip
PHASE = Output(
    'phase', {'part': 'phase', 'desc': 'recon'}, 'float32', units='rad', told_by='reconstruction',
    sidecar=KEPT, description='Phase of the image, combined over coils.',
)  # fmt: skip
SENSE = Output(
    'sense', {'desc': 'recon'}, 'float32', told_by='reconstruction', sidecar=KEPT,
    description='Magnitude of the image by CG-SENSE: least squares with a penalty on its size.',
)  # fmt: skip


def load(sample: Sample, case: Case) -> Sample:
    """The input brings the target along where all lines were measured: both are of the samples."""
    return sample


def finish(outputs: Mapping[str, Tensor], sample: Sample, case: Case) -> Arrays:
    """(2, X, Y, Z) real and imaginary part → magnitude and phase."""
    image = slices_of(outputs['reconstruction']).movedim(0, -1)
    return {'reconstruction': image.abs().numpy(), 'phase': image.angle().numpy()}


def source(acquisition: Acquisition) -> str:
    """Total variation where lines are left out. Raises Unavailable where none is."""
    require_lines_left_out(acquisition)
    return 'tv'


def derive(case: Case) -> Arrays:
    """The classical reconstructions, which the modality's steps have found."""
    found = load_volume(case.files[RECONSTRUCTIONS])
    return {'reconstruction': found[..., 0], 'sense': found[..., 1]}


def classical(case: Case, sample: Sample) -> Tensor:
    """(2, X, Y, Z) by total variation, where the network starts from."""
    return sample.image[:2]


task: Task[Acquisition] = Task(
    head=HEAD,
    writes=(IMAGE, PHASE),
    load=load,
    finish=finish,
    label=Label(source, derive, reads=(RECONSTRUCTIONS,), beside=((SENSE, 'sense'),)),
    truth=lambda known: known['image'],
    applies=require_lines_left_out,
    classical=Classical('total variation, its strength by the noise', lambda taught: classical),
)
