"""Who is learnt from, who chooses the best step, who is held out: always whole participants."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING

import numpy as np

from bidsapp.problems import BadData, MissingInput

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

SPLITS = ('train', 'val', 'test')
#: Shares of val and test; at least one participant each.
VAL_SHARE, TEST_SHARE = 0.2, 0.2


def make_split(subjects: Sequence[str], seed: int) -> dict[str, str]:
    """Participant → train, val or test; the same participants and seed give the same split."""
    shuffled = list(np.random.default_rng(seed).permutation(sorted(subjects)))
    n_test = max(1, round(TEST_SHARE * len(shuffled)))
    n_val = max(1, round(VAL_SHARE * len(shuffled)))
    names = ['test'] * n_test + ['val'] * n_val + ['train'] * (len(shuffled) - n_test - n_val)
    return {str(s): name for s, name in zip(shuffled, names, strict=True)}


def read_split(path: Path) -> dict[str, str]:
    """A split file: tab-separated participant_id and split. Raises MissingInput or BadData."""
    if not path.is_file():
        raise MissingInput(f'The split file {path} does not exist.')
    rows = list(csv.DictReader(io.StringIO(path.read_text(encoding='utf-8')), delimiter='\t'))
    try:
        split = {row['participant_id'].removeprefix('sub-'): row['split'] for row in rows}
    except (KeyError, AttributeError) as error:
        raise BadData(f'{path} needs the columns participant_id and split, by tabs.') from error
    if unknown := set(split.values()) - set(SPLITS):
        raise BadData(
            f'{path}: split is {", ".join(map(str, unknown))}; expected train, val, test.'
        )
    return split
