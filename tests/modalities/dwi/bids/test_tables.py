"""What is no gradient table is said."""

from __future__ import annotations

import numpy as np
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


@pytest.mark.parametrize(
    'text',
    [
        b'\xef\xbb\xbf0 1000 -2.5e-1\n',
        '0 1000 -0.25\n'.encode('utf-16'),
        b'0,1000,-0.25',
        b'0, 1000, -0.25,\n',
        b'0;1000;-0.25',
        b'\n  0\t1e3   -.25  \r\n\r\n\r\n',
        b'0 1000 -0.25\r',
        b'0 1000 -0,25\n',
        b'0,0;1,0e3;-,25',
        b'# by hand, once\n0 1000 -0.25  # the last\n',
    ],
)
def test_the_same_numbers_however_they_are_spelled(text, tmp_path):
    path = tmp_path / 'x.bval'
    path.write_bytes(text)
    np.testing.assert_array_equal(read_numbers(path), [[0, 1000, -0.25]])


def test_numbers_without_points_are_parted_by_commas(tmp_path):
    path = tmp_path / 'x.bval'
    for text in ('0,1000,2000\n', '0 , 1000 , 2000', '0, 1000, 2000,'):
        path.write_text(text)
        np.testing.assert_array_equal(read_numbers(path), [[0, 1000, 2000]])


def test_an_empty_table_is_said_to_be_empty(tmp_path):
    path = tmp_path / 'x.bval'
    path.write_text('\n# nothing\n')
    with pytest.raises(BadData, match='is empty'):
        read_numbers(path)


def test_bytes_that_are_no_text_are_said_so(tmp_path):
    path = tmp_path / 'x.bval'
    path.write_bytes(b'\x93NUMPY\x80\xff')
    with pytest.raises(BadData, match='no'):
        read_numbers(path)
