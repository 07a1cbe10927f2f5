"""Who is learnt from, who chooses the best step, who is held out: always whole participants."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING

import numpy as np

from bidsapp.problems import BadData, MissingInput

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

SPLITS = ('train', 'val', 'test')
#: Fewer participants than this cannot be divided into train, val and test.
MIN_PARTICIPANTS = 3
#: Shares of val and test; at least one participant each.
VAL_SHARE, TEST_SHARE = 0.2, 0.2


def make_split(subjects: Sequence[str], seed: int) -> dict[str, str]:
    """Participant → train, val or test; the same participants and seed give the same split."""
    shuffled = list(np.random.default_rng(seed).permutation(sorted(subjects)))
    n_test = max(1, round(TEST_SHARE * len(shuffled)))
    n_val = max(1, round(VAL_SHARE * len(shuffled)))
    names = ['test'] * n_test + ['val'] * n_val + ['train'] * (len(shuffled) - n_test - n_val)
    return {str(s): name for s, name in zip(shuffled, names, strict=True)}


def divide(subjects: Iterable[str], seed: int, why: str, where: Path) -> dict[str, str]:
    """`make_split` of those who have ``why``. Raises MissingInput if they are too few."""
    people = sorted(set(subjects))
    if len(people) < MIN_PARTICIPANTS:
        raise MissingInput(
            f'{len(people)} participants in {where} have {why}; at least {MIN_PARTICIPANTS} are '
            'needed, one each to learn from, to choose by and to hold out.'
        )
    return make_split(people, seed)


def read_split(path: Path) -> dict[str, str]:
    """A split file: tab-separated participant_id and split. Raises MissingInput or BadData."""
    if not path.is_file():
        raise MissingInput(f'The split file {path} does not exist.')
    rows = list(csv.DictReader(io.StringIO(path.read_text(encoding='utf-8-sig')), delimiter='\t'))
    try:
        split = {row['participant_id'].removeprefix('sub-'): row['split'] for row in rows}
    except (KeyError, AttributeError) as error:
        raise BadData(f'{path} needs the columns participant_id and split, by tabs.') from error
    if unknown := set(split.values()) - set(SPLITS):
        raise BadData(
            f'{path}: split is {", ".join(map(str, unknown))}; expected train, val, test.'
        )
    return split
