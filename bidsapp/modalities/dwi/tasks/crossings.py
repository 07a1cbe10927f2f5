"""How many fibres cross in a voxel; the label comes from constrained deconvolution."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from bidsapp.bids.images import load_volume, with_label
from bidsapp.core import (
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
from bidsapp.modalities.dwi.learn.classical import deconvolved, one_hot
from bidsapp.modalities.dwi.physics.csd import supports_deconvolution
from bidsapp.modalities.dwi.physics.likeness import mean_fibres
from bidsapp.modalities.dwi.physics.peaks import FIBRES, MAX_FIBRES
from bidsapp.physics.geometry import ALL_TURNS
from bidsapp.physics.longer_voxels import commonest
from bidsapp.problems import Unavailable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from bidsapp.core import FloatArray
    from bidsapp.modalities.dwi.physics.acquisition import Acquisition

#: Fewer directions miss too many crossings for their number to be a label.
MIN_DIRECTIONS = 30
#: What the network tells apart: no white matter or no fibre found in it, one, two, three.
CLASSES = ((0, 'No Fibre', '0F'), *FIBRES)
CODES = tuple(code for _, _, code in CLASSES)


DSEG = Output(
    'nfib',
    {'suffix': 'dseg', 'seg': 'nfib'},
    'uint8',
    labels=FIBRES,
    description='Number of fibres in white matter, 0 to 3; 0 elsewhere.',
    heading='Number of fibres',
    palette=('#3f6fff', '#2ec4b6', '#f0e442'),
)
PROBSEG = Output(
    'nfib_probability',
    {'suffix': 'probseg', 'seg': 'nfib'},
    'float32',
    labels=CLASSES,
    description='Probability of each number of fibres, one volume a number, the first for none.',
)
ENTROPY = Output(
    'nfib_entropy',
    {'suffix': 'probseg', 'seg': 'nfib', 'desc': 'entropy'},
    'float32',
    description='Uncertainty of the predicted number of fibres: entropy of the probabilities of 0, '
    '1, 2 and 3 over its largest value, ln 4. 0: one number for certain; 1: all four as likely.',
)


def load(sample: Sample, case: Case) -> Sample:
    """With the target (1, X, Y, Z): 1 + the number of fibres in the brain, 0 outside."""
    sample = with_label(sample, case.files.get('nfib'))
    if sample.target is None:
        return sample
    return replace(sample, target=(sample.target + 1) * sample.mask)


def finish(outputs: Mapping[str, Tensor], sample: Sample, case: Case) -> Arrays:
    """(4, X, Y, Z) logits → number of fibres, probabilities, entropy in the brain, else zero."""
    probability = class_probabilities(outputs['crossings'], sample.mask)
    return {
        'nfib': probability.argmax(-1).astype(np.uint8),
        'nfib_probability': probability,
        'nfib_entropy': entropy(probability),
    }


def metrics(output: Tensor, sample: Sample) -> list[tuple[str, str, float]]:
    """F1 macro over 0 … 3, accuracy, and Dice of each number, over brain voxels."""
    if sample.target is None:
        raise ValueError('metrics need a labelled sample')
    where = sample.mask[0] & (sample.target[0] > 0)
    predicted = output.argmax(0)[where] + 1
    return class_scores(predicted, sample.target[0][where], CODES)


def source(acquisition: Acquisition) -> str:
    """Only from a shell that resolves crossings."""
    b, directions = acquisition.best_shell
    if directions < MIN_DIRECTIONS or not supports_deconvolution(acquisition):
        raise Unavailable(
            f'the number of fibres is labelled from {MIN_DIRECTIONS} directions of one shell up '
            f'(b of 700 s/mm2 or more); the best shell here has {directions} at b={b:.0f}'
        )
    return 'reference'


def derive(case: Case) -> Arrays:
    """How many of a voxel's fibre directions are there. Raises Unavailable for the tensor's."""
    found = load_volume(case.files['fibres'])
    if found.shape[-1] == 3:
        raise Unavailable('no single fibre was found, from which deconvolution learns to count')
    fibres = found[..., : 3 * MAX_FIBRES]
    return {'nfib': number_of(fibres).astype(np.uint8)}


def classical(case: Case, sample: Sample) -> Tensor:
    """(4, X, Y, Z) by the number of fibres that a deconvolution of the input's volumes finds."""
    assert sample.target is not None
    white = (sample.target[0] > 1).numpy()
    return one_hot(np.minimum(number_of(deconvolved(case, sample, white)), MAX_FIBRES), len(CODES))


def number_of(fibres: FloatArray) -> np.ndarray:
    """(X, Y, Z, 3n) directions or zeros → how many there are."""
    lengths = np.linalg.norm(fibres.reshape(*fibres.shape[:3], -1, 3), axis=-1)
    return np.asarray((lengths > 0.5).sum(-1))


def averaged(case: Case, grid: LongerVoxels) -> Arrays:
    """The number in longer voxels, by the run's directions; without them the commonest number.

    Bundles that lie side by side in a long voxel cross in it, which only directions tell.
    """
    mask, path = load_volume(case.files['mask']) > 0, case.files['nfib']
    start = path.name.partition('_seg-')[0]
    directions = path.with_name(f'{start}_model-csd_param-direction_dwimap.nii.gz')
    if directions.is_file():
        return {'nfib': number_of(mean_fibres(load_volume(directions), mask, grid))}
    return {'nfib': commonest(load_volume(path), range(1, len(CODES)), mask, grid)}


def truth(known: Mapping[str, Tensor]) -> Tensor:
    """(1, X, Y, Z): 1 + the number of fibres in the brain, 0 outside."""
    vectors = known['fibres'].unflatten(0, (-1, 3))
    count = vectors.norm(dim=1).gt(0.5).sum(0)
    return ((count + 1) * known['brain'])[None].float()


task = Task(
    head=Head(
        channels=len(CLASSES),
        targets=1,
        loss=cross_entropy_and_dice,
        metrics=metrics,
        score='f1_macro',
        higher_is_better=True,
        words=CLASS_WORDS,
        turns=ALL_TURNS,
        weight=0.5,
    ),
    writes=(DSEG, PROBSEG, ENTROPY),
    load=load,
    finish=finish,
    label=Label(source, derive, reads=('fibres',), averaged=averaged),
    truth=truth,
    classical=Classical(
        'peaks of a constrained deconvolution, in the white matter of the label',
        lambda taught: classical,
    ),
)
