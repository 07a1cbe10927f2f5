"""Grey matter, white matter and fluid from diffusion MRI; the label comes from a T1w image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bidsapp.bids.images import load_volume, with_label
from bidsapp.core import (
    TISSUES,
    Arrays,
    Case,
    Classical,
    Head,
    Label,
    LongerVoxels,
    Output,
    Sample,
    Task,
)
from bidsapp.learn.losses import cross_entropy_and_dice
from bidsapp.learn.metrics import CLASS_WORDS, class_scores
from bidsapp.learn.predict import class_probabilities
from bidsapp.learn.uncertainty import entropy
from bidsapp.modalities.dwi.learn.classical import by_thresholds
from bidsapp.physics.geometry import MIRRORED
from bidsapp.physics.longer_voxels import shares
from bidsapp.problems import Unavailable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from bidsapp.modalities.dwi.physics.acquisition import Acquisition

CODES = tuple(code for _, _, code in TISSUES)


DSEG = Output(
    'tissue',
    {'suffix': 'dseg', 'seg': 'tissue'},
    'uint8',
    labels=TISSUES,
    description='Tissue with the largest share of each brain voxel; 0 is outside the brain and, of '
    'a reference, where less than half of a voxel is brain in the T1w image.',
)
PROBSEG = Output(
    'tissue_probability',
    {'suffix': 'probseg', 'seg': 'tissue'},
    'float32',
    labels=TISSUES,
    description='Probability of each tissue, one volume a tissue.',
)
ENTROPY = Output(
    'tissue_entropy',
    {'suffix': 'probseg', 'seg': 'tissue', 'desc': 'entropy'},
    'float32',
    description='Uncertainty of the predicted tissue: entropy of the probabilities of grey matter, '
    'white matter and fluid over its largest value, ln 3. 0: one tissue for certain; 1: all three '
    'as likely. A voxel that truly holds two tissues is uncertain too.',
)


def load(sample: Sample, case: Case) -> Sample:
    """With the target (1, X, Y, Z): 1 … 3 where labelled, 0 elsewhere; or (3, X, Y, Z) shares."""
    return with_label(sample, case.files.get('tissue'))


def finish(outputs: Mapping[str, Tensor], sample: Sample, case: Case) -> Arrays:
    """(3, X, Y, Z) logits → labels, probabilities and entropy in the brain, zero outside."""
    probability = class_probabilities(outputs['tissue'], sample.mask)
    label = (probability.argmax(-1) + 1) * sample.mask[0].numpy()
    return {
        'tissue': label.astype(np.uint8),
        'tissue_probability': probability,
        'tissue_entropy': entropy(probability),
    }


def labels_of(target: Tensor) -> Tensor:
    """(X, Y, Z) 1 … 3, 0 unlabelled, of a target that holds labels (1, …) or fractions (3, …)."""
    if len(target) == 1:
        return target[0]
    return (target.argmax(0) + 1) * (target.sum(0) > 0)


def metrics(output: Tensor, sample: Sample) -> list[tuple[str, str, float]]:
    """F1 macro, accuracy, and Dice of each tissue over labelled brain voxels."""
    if sample.target is None:
        raise ValueError('metrics need a labelled sample')
    truth = labels_of(sample.target)
    where = sample.mask[0] & (truth > 0)
    return class_scores(output.argmax(0)[where] + 1, truth[where], CODES)


def source(acquisition: Acquisition) -> str:
    """The label is carried over from the participant's T1w image."""
    if not acquisition.has_t1w:
        raise Unavailable('tissue labels come from a T1w image, and there is none for this run')
    return 'reference'


def derive(case: Case) -> Arrays:
    """The most probable of the tissue probabilities that the anatomical workflow carried over."""
    posteriors = load_volume(case.files['tissue_posteriors'])
    inside = posteriors.sum(-1) > 0
    return {'tissue': ((posteriors.argmax(-1) + 1) * inside).astype(np.uint8)}


def averaged(case: Case, grid: LongerVoxels) -> Arrays:
    """(X, Y, Z, 3) shares of the tissues in longer voxels."""
    return {'tissue': shares(load_volume(case.files['tissue']), [i for i, *_ in TISSUES], grid)}


def truth(known: Mapping[str, Tensor]) -> Tensor:
    """(3, X, Y, Z) fractions of grey matter, white matter and fluid."""
    return known['tissue']


task = Task(
    head=Head(
        channels=len(TISSUES),
        targets=len(TISSUES),
        loss=cross_entropy_and_dice,
        metrics=metrics,
        score='f1_macro',
        higher_is_better=True,
        words=CLASS_WORDS,
        turns=MIRRORED,
    ),
    writes=(DSEG, PROBSEG, ENTROPY),
    load=load,
    finish=finish,
    label=Label(source, derive, reads=('tissue_posteriors',), averaged=averaged, of_run=False),
    truth=truth,
    classical=Classical(
        'two thresholds, on mean diffusivity and on fractional anisotropy, chosen on train',
        by_thresholds,
    ),
)
