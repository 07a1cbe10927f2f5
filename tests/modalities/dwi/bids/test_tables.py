"""What is no gradient table is said."""

from __future__ import annotations

import pytest

from bidsapp.modalities.dwi.bids.tables import read_numbers
from bidsapp.problems import BadData


def test_text_that_is_no_table(tmp_path):
    path = tmp_path / 'x.bvec'
    path.write_text('0 1 2\n3 4\n')
    with pytest.raises(BadData, match='different lengths'):
        read_numbers(path)
    path.write_text('0 a 2\n')
    with pytest.raises(BadData, match='not a number'):
        read_numbers(path)
