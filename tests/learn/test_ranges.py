"""A scan like those of the tests is in range; each way to differ has its own sentence."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from bidsapp.core import Quantity
from bidsapp.learn.ranges import has_ranges, outside, spanned

#: One number; all of several together, rounded by the scanner; each for itself; no upper limit.
ECHOES = Quantity('echoes', (5.0,), 'this run has 5 echoes')
EDGES = Quantity(
    'edges', (1.0, 2.0, 3.0), 'voxels of 1 x 2 x 3 mm', 0.02, limits='{low:g}–{high:g}'
)
TIMES = Quantity('times', (4.0, 20.0), 'an echo at {value:.0f} ms', 0.1, each=True)
SIGNAL = Quantity('signal', (9.0,), 'SNR 9.0', upper=False, limits='{low:g} or more')
USUAL = (ECHOES, EDGES, TIMES, SIGNAL)
CARD = {
    'tested_ranges': {
        'echoes': [3, 8], 'edges': [0.5, 3], 'times': [[2, 10], [15, 25]], 'signal': [5, 50],
    }
}  # fmt: skip


def test_a_usual_scan_is_in_range():
    assert outside(CARD, USUAL) == []


@pytest.mark.parametrize(
    ('quantity', 'values', 'words'),
    [
        (ECHOES, (3.0,), None),
        (ECHOES, (8.0,), None),
        (ECHOES, (2.0,), 'this run has 5 echoes; the model was tested with 3 to 8: look at its'),
        (ECHOES, (9.0,), 'tested with 3 to 8'),
        (ECHOES, (8.01,), 'tested with 3 to 8'),  # a count is what it is
    ],
)
def test_one_number_lies_between_both_ends(quantity, values, words):
    found = outside(CARD, [replace(quantity, values=values)])
    assert found == [] if words is None else words in found[0]


@pytest.mark.parametrize(
    ('values', 'strange'),
    [
        ((0.495, 3.05), False),
        ((0.48, 3.0), True),
        ((0.5, 3.1), True),
        ((0.4, 3.1), True),
    ],
)
def test_the_smallest_and_the_largest_count_together_and_have_some_slack(values, strange):
    found = outside(CARD, [replace(EDGES, values=values)])
    assert len(found) == strange
    assert all('voxels of 1 x 2 x 3 mm; the model was tested with 0.5–3' in one for one in found)


def test_of_several_ranges_one_must_hold_all_that_is_judged_together():
    """Both ends lie in some range, and yet no model was tested for such a scan."""
    card = {'tested_ranges': {'edges': [[0.5, 1.5], [2.5, 4]]}}
    assert len(outside(card, [EDGES])) == 1
    assert outside(card, [replace(EDGES, values=(2.5, 3.0))]) == []


def test_each_value_that_is_strange_has_a_sentence_of_its_own():
    times = replace(TIMES, values=(1.9, 4.0, 12.0, 20.0, 27.0, 40.0))
    found = outside(CARD, [times])
    assert [text.partition(';')[0] for text in found] == ['an echo at 12 ms', 'an echo at 40 ms']
    assert all('the model was tested with 2 to 10, 15 to 25' in text for text in found)


@pytest.mark.parametrize(('value', 'strange'), [(300.0, False), (5.0, False), (4.9, True)])
def test_more_than_the_highest_is_no_reason_for_doubt_where_only_less_is(value, strange):
    found = outside(CARD, [replace(SIGNAL, values=(value,))])
    assert len(found) == strange
    assert all('tested with 5 or more' in text for text in found)


def test_what_nobody_has_looked_at_yet_is_not_judged():
    assert outside(CARD, [replace(SIGNAL, values=()), replace(TIMES, values=())]) == []


def test_what_a_card_does_not_say_is_not_judged():
    strange = replace(ECHOES, values=(99.0,))
    for card in ({}, {'tested_ranges': {}}, {'tested_ranges': {'signal': [5, 50]}}):
        assert outside(card, [strange]) == []
        assert has_ranges(card) == bool(card.get('tested_ranges'))


def test_a_model_of_a_group_says_what_it_has_learnt_from():
    card = {'learnt_times_ranges': [[2, 10]]}
    assert not has_ranges(card)
    (sentence,) = outside(card, USUAL)
    assert 'an echo at 20 ms; the model has learnt with 2 to 10' in sentence
    both = {**CARD, **card}
    assert has_ranges(both)
    assert outside(both, USUAL) == []  # what was tested counts more


def test_it_loads_no_torch():
    code = 'import sys; import bidsapp.learn.ranges; print("torch" in sys.modules)'
    said = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert said.stdout.strip() == 'False', said.stderr


def test_ranges_are_those_that_scans_span():
    def scan(n, b, edge):
        return [
            Quantity('directions', (n,), ''), Quantity('voxel_mm', (2.0, edge), ''),
            Quantity('b', b, '', each=True), Quantity('nothing', (), ''),
        ]  # fmt: skip

    found = spanned([scan(20.0, (1000.0, 2000.0), 3.0), scan(22.0, (990.0, 2010.0), 2.5)])
    assert found == {
        'directions': [20, 22], 'voxel_mm': [2.0, 3.0], 'b': [[990, 1000], [2000, 2010]],
    }  # fmt: skip
    assert spanned([scan(6.0, (1000.0,), 2.0), scan(6.0, (700.0, 2000.0), 2.0)])['b'] == [700, 2000]
