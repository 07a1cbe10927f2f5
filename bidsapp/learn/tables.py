"""The tidy table of figures that stands beside a model and at the root of the derivatives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: participant_id, split, model, metric, label, value
Row = tuple[str, str, str, str, str, float]
COLUMNS = ('participant_id', 'split', 'model', 'metric', 'label', 'value')
_EXPLAINED: dict[str, dict[str, Any]] = {
    'participant_id': {'Description': 'Participant; one with several runs has several rows'},
    'split': {'Levels': {'train': 'learnt from', 'val': 'chose the best step', 'test': 'held out'}},
    'model': {'Levels': {
        'bundled': 'the model of the package, not fine-tuned',
        'finetuned': 'started from other weights and learnt from train',
        'scratch': 'started from random weights and learnt from train',
        'autoencoder': 'started from an autoencoder and learnt from train',
        'classical': 'no network: the usual estimate from the same input, not on train',
    }},
    'label': {'Description': 'Class or region that the value is about'},
    'value': {'Description': 'The figure, against the reference label of the participant level, of '
              'what would be written; the mean over inputs where each shows a part of a run'},
}  # fmt: skip


def explained(words: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """What each column is, for the JSON beside a table; ``words``: metric → what it is."""
    before = {k: v for k, v in _EXPLAINED.items() if k not in ('label', 'value')}
    after = {k: _EXPLAINED[k] for k in ('label', 'value')}
    return {**before, 'metric': {'Levels': dict(words)}, **after}


def tsv(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Rows as a tab-separated table; numbers with six digits, missing ones as n/a."""

    def cell(value: Any) -> str:
        if isinstance(value, float):
            return 'n/a' if np.isnan(value) else f'{value:.6g}'
        return str(value)

    lines = ['\t'.join(columns), *('\t'.join(cell(v) for v in row) for row in rows)]
    return '\n'.join(lines) + '\n'
