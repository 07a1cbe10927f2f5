"""The tidy table of figures that stands beside a model and at the root of the derivatives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

Row = tuple[str, str, str, str, str, float]
COLUMNS = ('participant_id', 'split', 'model', 'metric', 'label', 'value')
EXPLAINED = {
    'participant_id': {'Description': 'Participant; one with several runs has several rows'},
    'split': {'Levels': {'train': 'learnt from', 'val': 'chose the best step', 'test': 'held out'}},
    'model': {'Levels': {
        'bundled': 'the model of the package, not fine-tuned',
        'finetuned': 'started from other weights and learnt from train',
        'scratch': 'started from random weights and learnt from train',
        'autoencoder': 'started from an autoencoder and learnt from train',
    }},
    'metric': {'Levels': {
        'f1_macro': 'mean over classes of F1, in labelled brain voxels',
        'accuracy': 'share of labelled brain voxels with the right class',
        'dice': 'Dice overlap of one class, in labelled brain voxels',
        'angular_error_median': 'median angle to the reference direction in white matter, degrees',
        'angular_error_mean': 'mean angle to the reference direction in white matter, degrees',
        'mae': 'mean absolute error of a parameter; of density and dispersion where there is less '
               'water than tissue',
    }},
    'label': {'Description': 'Class or region that the value is about'},
    'value': {'Description': 'The figure, against the reference label of the participant level'},
}  # fmt: skip


def tsv(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Rows as a tab-separated table; numbers with six digits, missing ones as n/a."""

    def cell(value: Any) -> str:
        if isinstance(value, float):
            return 'n/a' if np.isnan(value) else f'{value:.6g}'
        return str(value)

    lines = ['\t'.join(columns), *('\t'.join(cell(v) for v in row) for row in rows)]
    return '\n'.join(lines) + '\n'
